"""Inputs and targets on the scale for which weights are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.experiments._patient import Patient
from gradscope.experiments._remedies._registry import Case, Change, remedy

_RULES = (
    "input-scale",
    "saturated-units",
    "dead-units",
    "update-too-large",
    "exploding-activation",
    "output-pairing",
    "collapsed-batch",
    "vanishing-gradient",
    "vanishing-activation",
)
MOST_SHOWN = 12
"""Features whose numbers the code names; for more it says how they are computed."""

_CAUSES = ("inputs have", "normalize", "input")


@dataclass(frozen=True)
class Standardize:
    """(x − mean)/std of the arguments of a model, before its forward: a forward pre-hook.

    Attributes:
        by: place or keyword of an argument → mean and standard deviation, which broadcast over it.
    """

    by: dict[int | str, tuple[Tensor, Tensor]]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments so changed."""
        changed = tuple(self._of(i, value) for i, value in enumerate(args))
        return changed, {name: self._of(name, value) for name, value in kwargs.items()}

    def _of(self, key: int | str, value: Any) -> Any:
        if key not in self.by or not isinstance(value, Tensor):
            return value
        mean, std = (part.to(value.device, value.dtype) for part in self.by[key])
        return (value - mean) / std


@remedy("normalized inputs", rules=_RULES, causes=_CAUSES)
def normalized(case: Case) -> Change | None:
    """One mean and one standard deviation for all entries of an input that is far from size 1."""
    found = {key: (x.mean(), _safe(x.std(correction=0))) for key, x in _arguments(case).items() if _is_far(x)}
    return _change(case, found) if found else None


@remedy("inputs normalized by feature", rules=_RULES, causes=_CAUSES)
def normalized_by_feature(case: Case) -> Change | None:
    """A mean and a standard deviation for each feature or channel of an input that is far from size 1."""
    convolution = any(isinstance(m, nn.modules.conv._ConvNd) for m in case.patient.model.modules())
    found = {}
    for key, x in _arguments(case).items():
        axis = 1 if convolution and x.dim() > 2 else x.dim() - 1
        dims = [i for i in range(x.dim()) if i != axis]
        mean, std = x.mean(dims, keepdim=True), x.std(dims, correction=0, keepdim=True)
        whole = _safe((x - mean).std(correction=0))
        if x.shape[axis] > 1 and (_is_far(x) or bool((std > 30).any() or (mean.abs() > 30).any())):
            # A feature that never changes has no scale of its own: 1 where it is small, the others' where it is not.
            flat = std <= 1e-6 * mean.abs().clamp_min(1e-30)
            found[key] = (mean[0], torch.where(flat, whole, std)[0])
    return _change(case, found) if found else None


def _arguments(case: Case) -> dict[int | str, Tensor]:
    """The floating arguments of two or more dimensions, of all batches together, in float64."""
    rows: dict[int | str, list[Tensor]] = {}
    for inputs, _ in case.batches:
        listed = inputs if isinstance(inputs, tuple) else (inputs,)
        for key, value in inputs.items() if isinstance(inputs, dict) else enumerate(listed):
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2:
                rows.setdefault(key, []).append(value.detach())
    found = {}
    for key, values in rows.items():
        like = [v for v in values if v.shape[1:] == values[0].shape[1:]]
        found[key] = torch.cat(like).double()
    return {key: x for key, x in found.items() if bool(torch.isfinite(x).all())}


def _is_far(x: Tensor) -> bool:
    rms, mean, std = float(x.square().mean().sqrt()), float(x.mean()), float(x.std(correction=0))
    return rms > 3 or 0 < rms < 0.3 or abs(mean) > 3 * std > 0


def _safe(std: Tensor) -> Tensor:
    return torch.where(std > 0, std, torch.ones_like(std))


def _change(case: Case, found: dict[int | str, tuple[Tensor, Tensor]]) -> Change:
    def do(patient: Patient) -> None:
        patient.model.register_forward_pre_hook(Standardize(found), with_kwargs=True)

    lines = []
    for key, (mean, std) in found.items():
        name = "inputs" if isinstance(case.inputs, Tensor) else f"inputs[{key!r}]"
        if mean.numel() == 1:
            lines.append(f"{name} = ({name} - {float(mean):.6g}) / {float(std):.6g}  # of the training set")
        elif mean.numel() <= MOST_SHOWN:
            shape = "" if mean.dim() == 1 else f".reshape({', '.join(map(str, mean.shape))})"
            lines += [
                f"mean, std = torch.tensor({_numbers(mean)}){shape}, torch.tensor({_numbers(std)}){shape}",
                f"{name} = ({name} - mean) / std  # of the training set",
            ]
        else:
            dims = tuple(i + 1 for i, n in enumerate(mean.shape) if n == 1)
            lines += [
                f"dims = {(0, *dims)}  # x: the inputs of the training set",
                "mean, std, whole = x.mean(dims, keepdim=True), x.std(dims, keepdim=True), x.std()",
                f"{name} = ({name} - mean) / torch.where(std > 0, std, whole)",
            ]
    return Change(tuple(lines), do)


def _numbers(values: Tensor) -> str:
    return "[" + ", ".join(f"{v:.6g}" for v in values.flatten().tolist()) + "]"


def _squared(case: Case) -> bool:
    """Whether the loss is a squared error, which knows the factor on its targets as its square."""
    nodes = [] if case.course.recording is None else case.course.recording.facts.get("loss_graph") or []
    return any(str(node["node"]).startswith("MseLoss") for node in nodes[:4])


@remedy("normalized targets", rules=("output-pairing",), causes=("targets",))
def normalized_targets(case: Case) -> Change | None:
    """The targets of a squared error less their mean, over their standard deviation; losses stay in the old units."""
    target = case.batches[0][1]
    if not _squared(case) or not isinstance(target, Tensor) or not target.is_floating_point():
        return None
    rows = torch.cat([t.detach().flatten() for _, t in case.batches]).double()
    mean, std = float(rows.mean()), float(rows.std(correction=0))
    if not (math.isfinite(std) and std > 0) or (0.1 < std < 10 and abs(mean) < 3 * std):
        return None

    def do(patient: Patient) -> None:
        loss_fn = patient.loss_fn
        assert loss_fn is not None  # there are targets
        patient.loss_fn = lambda out, target: loss_fn(out, (target - mean) / std)
        patient.units *= std**2

    code = (
        f"targets = (targets - {mean:.6g}) / {std:.6g}  # of the training set",
        f"# and to predict: model(inputs) * {std:.6g} + {mean:.6g}",
    )
    return Change(code, do, "loop")


@remedy("inputs and targets from 0 to 1", rules=("input-scale", "output-pairing"), causes=("targets",))
def from_0_to_1(case: Case) -> Change | None:
    """Inputs and targets of a squared error divided by the largest, where what is rebuilt is the input itself."""
    inputs, target = case.batches[0]
    if case.patient.loss_fn is None or not isinstance(inputs, Tensor) or not isinstance(target, Tensor):
        return None
    if not (inputs.is_floating_point() and target.is_floating_point() and _squared(case)):
        return None
    low, largest = (float(f(torch.stack([f(x) for x, _ in case.batches]))) for f in (torch.min, torch.max))
    lowest, most = (float(f(torch.stack([f(y) for _, y in case.batches]))) for f in (torch.min, torch.max))
    if low < 0 or lowest < 0 or largest < 3 or not 0.5 < most / largest < 2:
        return None

    def do(patient: Patient) -> None:
        whole = Standardize({0: (torch.zeros(()), torch.tensor(largest))})
        patient.model.register_forward_pre_hook(whole, with_kwargs=True)
        loss_fn = patient.loss_fn
        assert loss_fn is not None
        patient.loss_fn = lambda out, target: loss_fn(out, target / largest)
        patient.units *= largest**2

    return Change((f"inputs, targets = inputs / {largest:.6g}, targets / {largest:.6g}",), do, "loop")
