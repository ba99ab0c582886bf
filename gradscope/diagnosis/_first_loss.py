"""The first loss beside what it should be: ln C for C classes, and targets of the size of the outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.diagnosis._evidence import Evidence
from gradscope.recording import Site

SURPRISE = 2.0
"""A first loss of classes may be so many times ln C, and one more: logits of size 1 add about a half."""

_SAME_SIZE = frozenset(("Mean", "View", "Reshape", "Squeeze", "Unsqueeze", "Alias", "ToCopy", "Clone", "Div"))
"""Between a loss and what is noted of it, these leave its size; a division, by the number of micro-steps, makes it
smaller, and so never a surprise."""

TARGETS = 100.0
"""Targets may be so many times the size of the first outputs: a step of Adam moves an output by about the rate."""


OUTSIDE = 2.0
"""First outputs may be so many times the targets."""


@dataclass(frozen=True)
class FirstLoss:
    """A first loss that is far from what a model that knows nothing has.

    Attributes:
        last: the site of the last layer.
        value: the loss, or the size of the targets.
        expected: ln C, or the size of the outputs.
        classes: C; None for a regression.
        size: rms of the outputs.
        outside: of a regression, whether it is the outputs that are too large, and not the targets.
    """

    last: Site
    value: float
    expected: float
    classes: int | None
    size: float
    outside: bool = False


def kinds_of(evidence: Evidence) -> list[str]:
    """The operations under the loss, nearest first, without `Backward0`."""
    nodes = evidence.facts.get("loss_graph") or []
    return [node["node"].rstrip("0123456789").removesuffix("Backward") for node in nodes]


def last_site(evidence: Evidence) -> Site | None:
    """That of the last layer."""
    found = [s for s in evidence.sites("activation") if s.role == "pre-activation"]
    return max(found, key=lambda s: s.depth) if found else None


def first_loss(evidence: Evidence) -> FirstLoss | None:
    """None where it is as it should be, or is not known."""
    return evidence.once(_first_loss)


def _first_loss(evidence: Evidence) -> FirstLoss | None:
    last, kinds = last_site(evidence) or output_site(evidence), kinds_of(evidence)
    loss = evidence.loss[np.isfinite(evidence.loss)]
    if last is None or not loss.size or not evidence.from_the_start:
        return None
    first, kind = float(loss[0]), mean_loss(evidence, kinds)
    size, classes = _first_size(evidence, last), None
    if kind.startswith("NllLoss"):
        classes = classes_of(evidence, last)
    elif kind.startswith("BinaryCrossEntropyWithLogits"):
        classes = 2
    if classes is not None and classes > 1:
        expected = math.log(classes)
        return FirstLoss(last, first, expected, classes, size) if first > SURPRISE * expected + 1 and size > 1 else None
    target = _target_size(evidence)
    if target is not None and size > 0 and target > TARGETS * max(size, 0.1):
        return FirstLoss(last, target, size, None, size)
    return _outside(evidence, first, kind)


def guesses(evidence: Evidence) -> bool:
    """Whether a loss of classes is still about what guessing costs, at the end: then there is something to learn."""
    last, kind = last_site(evidence), mean_loss(evidence, kinds_of(evidence))
    known = evidence.loss[np.isfinite(evidence.loss)]
    if last is None or not known.size:
        return False
    classes = 2 if kind.startswith("BinaryCrossEntropy") else None
    if kind.startswith("NllLoss"):
        classes = classes_of(evidence, last)
    return classes is not None and classes > 1 and float(np.median(known[-3:])) > 0.7 * math.log(classes)


def recovers(evidence: Evidence, expected: float) -> bool:
    """Whether the loss is down to what knowing nothing costs within the first quarter of the recorded steps."""
    soon = evidence.loss[: max(5, len(evidence.loss) // 4)]
    return bool(np.isfinite(soon).any()) and float(np.median(soon[-3:])) < 1.1 * expected


def _outside(evidence: Evidence, first: float, kind: str) -> FirstLoss | None:
    """First outputs beyond all targets: zero for an answer costs the mean square of the targets."""
    target, output = _target_size(evidence), output_site(evidence)
    if target is None or output is None or not kind.startswith("MseLoss"):
        return None
    size = _first_size(evidence, output)
    if not (target > 0 and first > OUTSIDE**2 * target**2 and size > OUTSIDE * target):
        return None
    return FirstLoss(output, size, target, None, size, outside=True)


def _first_size(evidence: Evidence, site: Site) -> float:
    return float(evidence.values("activation")[0, evidence.sites("activation").index(site)])


def output_site(evidence: Evidence) -> Site | None:
    """That of which the loss is computed, as far as the graph under it tells; else the last layer's."""
    named = {node["site"] for node in evidence.facts.get("loss_graph") or [] if node.get("output") and "site" in node}
    found = [s for s in evidence.sites("activation") if s.name in named]
    return found[0] if len(found) == 1 else last_site(evidence)


def _target_size(evidence: Evidence) -> float | None:
    """The rms of a regression's targets, where they could be read; in older files the largest of them."""
    for node in (evidence.facts.get("loss_graph") or [])[:4]:
        if node["node"].startswith(("MseLoss", "SmoothL1Loss", "HuberLoss")) and "target_max" in node:
            largest = max(abs(float(node["target_min"])), abs(float(node["target_max"])))
            return float(node.get("target_rms", largest))
    return None


def mean_loss(evidence: Evidence, kinds: Sequence[str]) -> str:
    """The operation that made the loss; empty where it was multiplied, added to, or summed up over the batch: its size
    then tells nothing."""
    for i, kind in enumerate(kinds):
        if kind not in _SAME_SIZE:
            return "" if evidence.facts["loss_graph"][i].get("reduction") == "sum" else kind
    return ""


def is_a_mean_term(nodes: Sequence[dict[str, Any]], kinds: Sequence[str], place: int) -> bool:
    """Whether a loss is a mean that nothing multiplies, and is added to other terms."""
    if nodes[place].get("reduction") in ("sum", "none"):
        return False
    above = nodes[place].get("under")
    while above is not None and kinds[above] in _SAME_SIZE:
        above = nodes[above].get("under")
    return above is not None and kinds[above] == "Add"


def classes_of(evidence: Evidence, last: Site) -> int | None:
    for node in evidence.facts.get("loss_graph") or []:
        if "classes" in node:
            return int(node["classes"])
    return last.shape[-1] if len(last.shape) == 2 else None
