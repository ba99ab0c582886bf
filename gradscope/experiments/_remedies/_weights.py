"""First weights: by theory, by measurement, or by one of the classical schemes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gradscope.experiments._patient import Patient
from gradscope.experiments._remedies._registry import Case, Change, remedy
from gradscope.init import LSUV, Siren, initialize, plan
from gradscope.init._trace import trace

DEPTH = ("vanishing-gradient", "exploding-gradient", "vanishing-activation", "exploding-activation")
WEIGHTS = (
    *DEPTH,
    "default-init",
    "init-mismatch",
    "saturated-units",
    "dead-units",
    "symmetric-units",
    "collapsed-batch",
    "dtype-overflow",
    "non-finite",
    "uneven-learning",
    "no-gradient",
)
_START = ("default-init", "init-mismatch", "first weights", "weights")


def drawn(case: Case, scheme: Any, shown: str) -> Change:
    """All weights anew by a scheme, from the trial's seed."""

    def do(patient: Patient) -> None:
        with torch.no_grad():
            initialize(patient.model, scheme, generator=case.generator(), inputs=case.inputs)

    seed = f"torch.Generator({_device(case)}).manual_seed({case.seed})"
    return Change((f"gradscope.init.initialize(model, {shown}, generator={seed}, inputs=inputs)",), do)


def _device(case: Case) -> str:
    device = case.generator().device
    return "" if device.type == "cpu" else repr(str(device))


@remedy("initialize by activation", rules=(*WEIGHTS, "output-pairing"), causes=_START, invasive=1)
def recommended(case: Case) -> Change | None:
    """The scheme recommended for the activation behind each layer, with its true fans; biases of 0."""
    return drawn(case, "auto", "'auto'")


@remedy("propagate", rules=(*DEPTH, "default-init", "init-mismatch", "collapsed-batch"), causes=_START, invasive=1)
def propagate(case: Case) -> Change | None:
    """Each layer scaled so that the predicted profiles are flat in both directions."""
    return drawn(case, "propagate", "'propagate'")


@remedy("LSUV", rules=WEIGHTS, causes=_START, invasive=1)
def lsuv(case: Case) -> Change | None:
    """Orthogonal weights, scaled until each layer's outputs have variance 1 on the batch."""
    return drawn(case, LSUV(), "'lsuv'")


@remedy("orthogonal", rules=(*DEPTH, "init-mismatch", "collapsed-batch", "symmetric-units"), invasive=1)
def orthogonal(case: Case) -> Change | None:
    """Orthogonal weights."""
    return drawn(case, "orthogonal", "'orthogonal'")


@remedy("sine network's weights", rules=WEIGHTS, causes=("sin",), invasive=1)
def siren(case: Case) -> Change | None:
    """Sitzmann et al.'s weights, for networks of sines."""
    model = case.patient.model
    if not any(call.activation in ("sin", "sine") for call in trace(model, case.inputs)):
        return None
    factors = [vars(m)[key] for m in model.modules() for key in _OMEGA if isinstance(vars(m).get(key), (int, float))]
    omega = float(factors[-1]) if factors else Siren().omega
    return drawn(case, Siren(omega), f"gradscope.init.Siren({omega:g})")


_OMEGA = ("omega", "omega_0", "w0", "w")


def _named(name: str, scheme: str) -> None:
    @remedy(name, rules=(*DEPTH, "init-mismatch", "default-init", "saturated-units"), invasive=1)
    def one(case: Case) -> Change | None:
        rows = plan(case.patient.model, inputs=case.inputs)
        if {row.scheme for row in rows if row.fans is not None and row.activation != "identity"} <= {scheme}:
            return None  # as the scheme by activation does already
        return drawn(case, scheme, repr(scheme))

    one.__doc__ = f"{name} weights everywhere; biases of 0."


for _name, _scheme in (("He", "he_normal"), ("Glorot", "glorot_normal"), ("LeCun", "lecun_normal")):
    _named(_name, _scheme)


@remedy("biases of 0", rules=("dead-units", "saturated-units", "collapsed-batch", "no-gradient"), causes=("bias",))
def zero_biases(case: Case) -> Change | None:
    """Biases far from 0 back to it, the weights as they are."""
    far = [n for n, p in case.patient.model.named_parameters() if _is_far(case.patient.model, n, p)]
    if not far:
        return None

    def do(patient: Patient) -> None:
        with torch.no_grad():
            for name in far:
                patient.model.get_parameter(name).zero_()

    return Change(_each(far, "zero_()"), do)


def _is_far(model: nn.Module, name: str, parameter: torch.Tensor) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    kind = isinstance(owner, (nn.Linear, nn.modules.conv._ConvNd))
    return kind and name.endswith("bias") and float(parameter.detach().abs().mean()) > 0.5


@remedy(
    "embeddings of size 1",
    rules=("saturated-units", "exploding-activation", "init-mismatch", "input-scale", "vanishing-activation",
           "output-pairing"),
    causes=("mbedding",),
    invasive=1,
)  # fmt: skip
def embeddings(case: Case) -> Change | None:
    """Embeddings far from an rms of 1 divided by theirs."""
    found = {
        f"{name}.weight".lstrip("."): float(module.weight.detach().double().square().mean().sqrt())
        for name, module in case.patient.model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    }
    found = {name: size for name, size in found.items() if size > 5 or 0 < size < 1e-3}
    if not found:
        return None

    def do(patient: Patient) -> None:
        with torch.no_grad():
            for name, size in found.items():
                patient.model.get_parameter(name).div_(size)

    lines = [f"    model.get_parameter({name!r}).div_({size:.6g})" for name, size in found.items()]
    return Change(("with torch.no_grad():", *lines), do)


@remedy("constant weights drawn anew", rules=("symmetric-units", "no-gradient"), causes=("zero", "equal"), invasive=1)
def redrawn(case: Case) -> Change | None:
    """Weights that are all the same, in modules whose use of them is not known, from N(0, 0.02²)."""
    known = {row.parameter for row in plan(case.patient.model, inputs=case.inputs) if row.scheme}
    named = case.patient.model.named_parameters()
    names = [n for n, p in named if p.requires_grad and p.dim() >= 2 and n not in known and _is_constant(p)]
    if not names:
        return None

    def do(patient: Patient) -> None:
        generator = case.generator()
        with torch.no_grad():
            for name in names:
                patient.model.get_parameter(name).normal_(std=0.02, generator=generator)

    seed = f"generator = torch.Generator({_device(case)}).manual_seed({case.seed})"
    return Change((seed, *_each(names, "normal_(std=0.02, generator=generator)")), do)


def _is_constant(parameter: torch.Tensor) -> bool:
    return parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())


def _each(names: list[str], call: str) -> tuple[str, ...]:
    return (
        "with torch.no_grad():",
        f"    for name in {names!r}:",
        f"        model.get_parameter(name).{call}",
    )
