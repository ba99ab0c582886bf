"""Modules in place of others: another activation in the hidden layers, nothing in place of a doubled output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.experiments._patient import Patient
from gradscope.experiments._remedies._registry import Case, Change, remedy
from gradscope.experiments._remedies._weights import DEPTH, drawn
from gradscope.init._layer_fans import is_layer
from gradscope.init._untouched import run, untouched

Made = Callable[[], nn.Module]


def called(case: Case, chosen: Callable[[nn.Module], bool]) -> tuple[list[str], list[str], Any]:
    """Names of the chosen modules called before the last layer, of those called after it, and the model's output."""
    model = case.patient.model
    order: list[tuple[str, bool]] = []
    handles = []
    for name, module in model.named_modules():
        if is_layer(module) or chosen(module):
            layer = not chosen(module)
            handles.append(module.register_forward_hook(lambda *_, name=name, layer=layer: order.append((name, layer))))
    try:
        with untouched(model), torch.no_grad():
            out = run(model, case.inputs)
    finally:
        for handle in handles:
            handle.remove()
    last = max((i for i, (_, layer) in enumerate(order) if layer), default=-1)
    before = [name for name, layer in order[: last + 1] if not layer]
    return list(dict.fromkeys(before)), [name for name, _ in order[last + 1 :]], out


def _swap(case: Case, old: type[nn.Module], shown: str, new: Made, *, anew: bool) -> Change | None:
    names, _, _ = called(case, lambda module: type(module) is old)
    names = [name for name in names if name]
    if not names:
        return None
    weights = drawn(case, "auto", "'auto'") if anew else None

    def do(patient: Patient) -> None:
        for name in names:
            patient.model.set_submodule(name, new().train(patient.model.training))
        if weights is not None:
            weights.do(patient)

    lines = (f"for name in {names!r}:", f"    model.set_submodule(name, torch.nn.{shown})")
    return Change((*lines, *(weights.code if weights is not None else ())), do)


_SLOPES = (*DEPTH, "saturated-units", "collapsed-batch", "init-mismatch", "default-init", "uneven-learning")


@remedy("tanh for sigmoid", rules=_SLOPES, causes=("sigmoid", "Sigmoid"), invasive=2)
def tanh_for_sigmoid(case: Case) -> Change | None:
    """Tanh in place of the hidden sigmoids, and weights for it: its slope at 0 is 1, not 1/4."""
    return _swap(case, nn.Sigmoid, "Tanh()", nn.Tanh, anew=True)


@remedy("ReLU for sigmoid", rules=_SLOPES, causes=("sigmoid", "Sigmoid"), invasive=2)
def relu_for_sigmoid(case: Case) -> Change | None:
    """ReLU in place of the hidden sigmoids, and weights for it."""
    return _swap(case, nn.Sigmoid, "ReLU()", nn.ReLU, anew=True)


@remedy("ReLU for tanh", rules=("saturated-units", "vanishing-gradient"), causes=("tanh", "Tanh"), invasive=2)
def relu_for_tanh(case: Case) -> Change | None:
    """ReLU in place of the hidden tanhs, and weights for it: it does not saturate."""
    return _swap(case, nn.Tanh, "ReLU()", nn.ReLU, anew=True)


@remedy("tanh for an activation that overflows", rules=("non-finite", "dtype-overflow", "exploding-activation"),
        causes=("exp",), invasive=2)  # fmt: skip
def tanh_for_unbounded(case: Case) -> Change | None:
    """Tanh in place of a module without weights that is no layer of torch's, and weights for it."""
    name = case.finding.frontier.module if case.finding.frontier is not None else ""
    old = case.patient.model.get_submodule(name) if name else None
    if old is None or type(old).__module__.startswith("torch.") or any(True for _ in old.parameters()):
        return None
    return _swap(case, type(old), "Tanh()", nn.Tanh, anew=True)


@remedy("leaky ReLU for ReLU", rules=("dead-units",), causes=("biases", "update threw"), invasive=2)
def leaky_for_relu(case: Case) -> Change | None:
    """Leaky ReLU in place of ReLU, the weights as they are: units that are dead get a gradient again."""
    return _swap(case, nn.ReLU, "LeakyReLU(0.1)", lambda: nn.LeakyReLU(0.1), anew=False)


@remedy("GELU for ReLU", rules=("dead-units", "collapsed-batch"), invasive=2)
def gelu_for_relu(case: Case) -> Change | None:
    """GELU in place of ReLU, and weights for it."""
    return _swap(case, nn.ReLU, "GELU()", nn.GELU, anew=True)


_ENDS = (nn.Softmax, nn.Sigmoid, nn.ReLU, nn.Tanh, nn.LogSoftmax)


@remedy("no activation at the output", rules=("output-pairing", "dead-units", "saturated-units"),
        causes=("softmax", "sigmoid", "ReLU", "relu", "tanh"))  # fmt: skip
def bare_output(case: Case) -> Change | None:
    """Nothing in place of the activation with which the model ends, where the loss has one of its own."""
    name = _end(case)
    if name is None or case.finding.rule != "output-pairing":
        return None

    def do(patient: Patient) -> None:
        patient.model.set_submodule(name, nn.Identity())

    return Change((f"model.set_submodule({name!r}, torch.nn.Identity())",), do)


def _end(case: Case) -> str | None:
    """The module with which the model ends, where that is an activation and no layer comes after it."""
    _, after, out = called(case, lambda module: isinstance(module, _ENDS))
    names = [name for name in after if name]
    return names[-1] if names and isinstance(out, Tensor) else None
