"""Whether the model's output and the loss belong together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gradscope.diagnosis._evidence import START, Evidence, median
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._registry import rule
from gradscope.recording import Site

_LOSSES = {
    "NllLoss": "cross-entropy",
    "NllLoss2D": "cross-entropy",
    "BinaryCrossEntropyWithLogits": "binary cross-entropy with logits",
    "MseLoss": "squared error",
    "L1Loss": "absolute error",
    "SmoothL1Loss": "smooth absolute error",
    "HuberLoss": "Huber's error",
    "BinaryCrossEntropy": "binary cross-entropy",
}
_REGRESSION = ("MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss")
_BOUNDS = {
    "Sigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Relu": (0.0, math.inf),
    "Softmax": (0.0, 1.0),
    "Hardtanh": (-1.0, 1.0),
}
_PASSED_THROUGH = (
    "View",
    "Reshape",
    "UnsafeView",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "T",
    "Permute",
    "Alias",
    "ToCopy",
    "Select",
    "Slice",
    "Expand",
    "Clone",
    "Mean",
    "Div",
    "Sum",
    "Mul",
)


@rule(
    "output-pairing",
    limit="two softmaxes or two logistics in a row; an output that cannot reach its targets; a loss of classes that "
    "begins beyond twice ln C plus 1",
    reference="torch.nn.CrossEntropyLoss, BCEWithLogitsLoss",
)
def output_pairing(evidence: Evidence) -> Iterator[Finding]:
    """What the model ends with does not go with the loss."""
    nodes: list[dict[str, Any]] = evidence.facts.get("loss_graph") or []
    kinds = [node["node"].removesuffix("0").removesuffix("Backward") for node in nodes]
    last = _last_site(evidence)
    found = _twice(kinds) or _bounded(evidence, nodes, kinds)
    if found is not None:
        said, remedy, value = found
        yield Finding(
            "output-pairing",
            "error",
            said,
            remedy,
            "torch.nn.CrossEntropyLoss, BCEWithLogitsLoss",
            direction="both",
            sites=() if last is None else (last.name,),
            frontier=last,
            value=value,
            unit="operations that do not belong together",
            limit=0.0,
            limit_from="the operations between the model's output and the loss",
            causes=(" ← ".join(kinds[:6]),),
        )
        return
    yield from _first_loss(evidence, kinds, last)


def _twice(kinds: Sequence[str]) -> tuple[str, str, float] | None:
    """Softmax before cross-entropy, logistic before its own."""
    for i, kind in enumerate(kinds):
        behind = _next(kinds, i + 1)
        if kind == "LogSoftmax" and behind in ("Softmax", "LogSoftmax", "SafeSoftmax"):
            what = "softmax" if "Log" not in behind else "log-softmax"
            if what == "log-softmax":  # idempotent: no harm
                continue
            return (
                "The model ends with a softmax, and cross-entropy takes another of it: the outputs lie in [0, 1], so "
                "that the loss cannot fall below about ln(C − 1 + e) − 1, and the gradient is small everywhere.",
                "remove the softmax from the model: torch.nn.CrossEntropyLoss takes logits; or take the logarithm, and "
                "torch.nn.NLLLoss",
                2.0,
            )
        if kind == "LogSoftmax" and behind in ("Sigmoid", "Tanh"):
            return (
                f"The model ends with a {behind.lower()}, and cross-entropy takes a softmax of it: the outputs are "
                "bounded, so that no class can become much likelier than the others.",
                f"remove the {behind.lower()} from the model: torch.nn.CrossEntropyLoss takes logits",
                2.0,
            )
        if kind == "LogSoftmax" and behind == "Relu":
            return (
                "The model ends with a ReLU, and cross-entropy takes a softmax of it: a class whose unit is zero gets "
                "no gradient.",
                "remove the ReLU behind the last layer: torch.nn.CrossEntropyLoss takes logits",
                2.0,
            )
        if kind == "BinaryCrossEntropyWithLogits" and behind in ("Sigmoid", "Softmax", "Relu", "Tanh"):
            return (
                f"The model ends with a {behind.lower()}, and the loss applies the logistic to it again: its "
                "probabilities cannot leave a narrow range.",
                f"remove the {behind.lower()} from the model, or use torch.nn.BCELoss behind a sigmoid",
                2.0,
            )
        if kind == "NllLoss" and behind in ("Softmax", "AddmmBackward", "Addmm"):
            what = "a softmax" if behind == "Softmax" else "a linear layer"
            return (
                f"NLLLoss takes logarithms of probabilities, and gets the output of {what}.",
                "use torch.nn.CrossEntropyLoss on the logits, or log_softmax before NLLLoss",
                2.0,
            )
    return None


def _bounded(
    evidence: Evidence, nodes: Sequence[dict[str, Any]], kinds: Sequence[str]
) -> tuple[str, str, float] | None:
    """An output that cannot reach the targets of a regression."""
    for i, kind in enumerate(kinds):
        if kind not in _REGRESSION:
            continue
        behind = _next(kinds, i + 1)
        low, high = _BOUNDS.get(behind or "", (-math.inf, math.inf))
        least, most = nodes[i].get("target_min"), nodes[i].get("target_max")
        if least is None or most is None or behind is None:
            continue
        room = 0.05 * (most - least)
        if least < low - room or most > high + room:
            word = f"from {low:g} to {high:g}" if math.isfinite(high) else f"from {low:g} on"
            return (
                f"The model ends with a {behind.lower()}, whose values lie {word}, and the targets of the "
                f"{_LOSSES[kind]} from {least:.3g} to {most:.3g}: it cannot reach them.",
                f"remove the {behind.lower()} behind the last layer, or scale the targets into its range",
                float(max(low - least, most - high)),
            )
    return None


def _next(kinds: Sequence[str], start: int) -> str | None:
    for kind in kinds[start:]:
        if not kind.startswith(_PASSED_THROUGH):
            return kind
    return None


def _first_loss(evidence: Evidence, kinds: Sequence[str], last: Site | None) -> Iterator[Finding]:
    """A loss of classes that begins far from ln C: the first logits are large."""
    if not any(kind.startswith("NllLoss") for kind in kinds) or last is None:
        return
    classes = _classes(evidence, last)
    loss = evidence.loss[:START]
    if classes is None or classes < 2 or not np.isfinite(loss).any():
        return
    first, expected = float(median(loss)), math.log(classes)
    if first <= 2 * expected + 1:
        return
    level = evidence.values("activation")[:START, [i for i, s in enumerate(evidence.sites("activation")) if s == last]]
    size = float(median(level.reshape(-1)))
    if not size > 1:
        return
    yield Finding(
        "output-pairing",
        "warning",
        f"The loss begins at {first:.3g}, where guessing among {classes} classes costs {expected:.2f}: the first "
        f"logits have an rms of {size:.3g}, and are sure of what they cannot know. The first steps only undo that.",
        f"begin with a small last layer: torch.nn.init.normal_(model.get_submodule({last.module!r}).weight, std=0.01)",
        "Karpathy (2019), A recipe for training neural networks",
        direction="both",
        sites=(last.name,),
        frontier=last,
        value=first,
        unit="loss",
        limit=2 * expected + 1,
        limit_from=f"twice ln {classes} plus 1",
        expected=expected,
        causes=(f"logits of rms {size:.3g}",),
    )


def _classes(evidence: Evidence, last: Site) -> int | None:
    for node in evidence.facts.get("loss_graph") or []:
        if "classes" in node:
            return int(node["classes"])
    return last.shape[-1] if len(last.shape) == 2 else None


def _last_site(evidence: Evidence) -> Site | None:
    found = [s for s in evidence.sites("activation") if s.role == "pre-activation"]
    return max(found, key=lambda s: s.depth) if found else None
