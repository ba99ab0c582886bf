"""Whether the model's output and the loss belong together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._first_loss import kinds_of, last_site
from gradscope.diagnosis._output_size import confined, surprise
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
_PASSED_THROUGH = frozenset(
    [
        "View",
        "Reshape",
        "ReshapeAlias",
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
        "Index",
        "Cat",
        "Stack",
        "AsStrided",
    ]
)


@rule(
    "output-pairing",
    limit="two softmaxes or two logistics in a row, or a softmax over another axis than the classes; an output "
    "that is broadcast against its target; one that "
    "cannot reach its targets, or begins beyond them all; a loss of classes that begins beyond twice ln C plus 1, or "
    "logits that spread no further where that loss cannot fall below half of what it is",
    reference="torch.nn.CrossEntropyLoss, BCEWithLogitsLoss",
    of_the_start=True,
)
def output_pairing(evidence: Evidence) -> Iterator[Finding]:
    """What the model ends with does not go with the loss."""
    nodes: list[dict[str, Any]] = evidence.facts.get("loss_graph") or []
    kinds = kinds_of(evidence)
    last = last_site(evidence)
    found = _broadcast(nodes) or _twice(nodes, kinds) or _bounded(nodes, kinds) or _axis(nodes, kinds)
    if found is not None:
        said, remedy, value = found
        last = _offending(evidence, nodes, kinds) or last
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
    yield from surprise(evidence)
    yield from confined(evidence, kinds)


def _twice(nodes: Sequence[dict[str, Any]], kinds: Sequence[str]) -> tuple[str, str, float] | None:
    """Softmax before cross-entropy, logistic before its own."""
    for i, kind in enumerate(kinds):
        behind = _behind(nodes, kinds, i)
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
        if kind == "LogSoftmax" and behind in ("Sigmoid", "Tanh", "Hardtanh", "Clamp"):
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
        if kind == "MseLoss" and behind == "Softmax" and not _is_one_term(nodes, kinds, i):
            return (
                "The model ends with a softmax, and the loss is the squared error of its probabilities: where the "
                "softmax is sure, and wrong, its slope is gone, and the gradient with it.",
                "use torch.nn.CrossEntropyLoss on the logits, without the softmax",
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


def _broadcast(nodes: Sequence[dict[str, Any]]) -> tuple[str, str, float] | None:
    """An output of (N, 1) beside a target of (N,)."""
    if not any(node.get("broadcast") for node in nodes):
        return None
    return (
        "The loss makes N × N differences of N outputs: an output of shape (N, 1) meets a target of shape (N,), each "
        "output is compared with every target, and the best answer is the mean of them all.",
        "give both the same shape: output.squeeze(-1), or target.unsqueeze(-1)",
        2.0,
    )


def _axis(nodes: Sequence[dict[str, Any]], kinds: Sequence[str]) -> tuple[str, str, float] | None:
    """A softmax that goes over another axis than that of the classes."""
    for i, kind in enumerate(kinds):
        if not kind.startswith("NllLoss") or "classes" not in nodes[i]:
            continue
        for j in _chain(nodes, kinds, i):
            over = nodes[j].get("classes")
            if kinds[j] not in ("Softmax", "LogSoftmax", "Log", "Add", "Clamp") and kinds[j] not in _PASSED_THROUGH:
                break  # a layer, and what is before it has an axis of its own
            if kinds[j] in ("Softmax", "LogSoftmax") and over is not None and over != nodes[i]["classes"]:
                return (
                    f"The loss takes probabilities of {nodes[i]['classes']} classes, and the softmax before it goes "
                    f"over an axis of {over}: it makes the samples compete with each other, and not the classes.",
                    "give the softmax the axis of the classes (dim=1, or −1), or take it out and use "
                    "torch.nn.CrossEntropyLoss on the logits",
                    float(over),
                )
    return None


def _chain(nodes: Sequence[dict[str, Any]], kinds: Sequence[str], place: int) -> Iterator[int]:
    """The places of what an operation was computed from, one after the other, as long as that is one thing."""
    while True:
        below = [i for i, node in enumerate(nodes) if node.get("under", i - 1) == place and i > place]
        if len(below) != 1:
            return
        place = below[0]
        yield place


def _bounded(nodes: Sequence[dict[str, Any]], kinds: Sequence[str]) -> tuple[str, str, float] | None:
    """An output that cannot reach the targets of a regression."""
    for i, kind in enumerate(kinds):
        if kind not in _REGRESSION:
            continue
        behind = _behind(nodes, kinds, i)
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


def _offending(evidence: Evidence, nodes: Sequence[dict[str, Any]], kinds: Sequence[str]) -> Site | None:
    """The site of the first bounded operation under the loss, where it is a module's."""
    for node, kind in zip(nodes, kinds, strict=True):
        if kind in _BOUNDS and "site" in node:
            return next((s for s in evidence.sites("activation") if s.name == node["site"]), None)
    return None


def _is_one_term(nodes: Sequence[dict[str, Any]], kinds: Sequence[str], place: int) -> bool:
    """Whether a loss is added to others: then it may be there to keep something near, and not to teach the classes."""
    above = nodes[place].get("under")
    while above is not None:
        if kinds[above] in ("Add", "Sub"):
            return True
        above = nodes[above].get("under")
    return False


def _behind(nodes: Sequence[dict[str, Any]], kinds: Sequence[str], place: int) -> str | None:
    """What an operation was computed from, through what changes no bound; None where that is more than one thing."""
    while True:
        below = [i for i, node in enumerate(nodes) if node.get("under", i - 1) == place and i > place]
        if len(below) != 1 and (len(below) != 2 or kinds[place] in ("Mul", "Add", "Sub", "Div")):
            return None
        place = below[0]
        if kinds[place] not in _PASSED_THROUGH:
            return kinds[place]
