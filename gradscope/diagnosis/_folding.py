"""One cause gives one finding: what follows from another is folded into it.

The table says what can follow from what; it does where it did not begin earlier. Roots are taken in the table's order,
which is that of the causes: what comes in and how the model is wired, before what the weights are, before what a step
does to them, before what is seen of all that in the signals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._finding import SEVERITIES, Finding

_DEPTH = ("vanishing-gradient", "exploding-gradient", "vanishing-activation", "exploding-activation")
_BREAKS = ("non-finite", "dtype-overflow", "loss-scale")

FOLLOWS: dict[str, tuple[str, ...]] = {
    "symmetric-units": (*_DEPTH, "no-gradient", "collapsed-batch", "init-mismatch", "uneven-learning",
                        "saturated-units", "dead-units", "update-too-small", "update-too-large"),
    "input-scale": ("saturated-units", "dead-units", "exploding-activation", "exploding-gradient", "vanishing-gradient",
                    "update-too-large", "uneven-learning", "output-pairing", "gradient-spike", "init-mismatch",
                    "clipping-always", "collapsed-batch", "vanishing-activation", "no-gradient", *_BREAKS),
    "dead-units": ("collapsed-batch", "vanishing-gradient", "vanishing-activation", "no-gradient", "uneven-learning",
                   "update-too-small", "init-mismatch"),
    "saturated-units": ("output-pairing", "vanishing-gradient", "exploding-gradient", "collapsed-batch",
                        "uneven-learning", "init-mismatch", "exploding-activation", "update-too-small"),
    "exploding-activation": ("exploding-gradient", "init-mismatch", "output-pairing", "update-too-large",
                             "uneven-learning", "clipping-always", "collapsed-batch", "gradient-spike", *_BREAKS),
    "exploding-gradient": ("init-mismatch", "uneven-learning", "update-too-large", "clipping-always", "gradient-spike",
                           *_BREAKS),
    "vanishing-activation": ("collapsed-batch", "default-init", "init-mismatch", "uneven-learning", "update-too-small",
                             "vanishing-gradient", "dtype-underflow", "exploding-activation", "exploding-gradient"),
    "vanishing-gradient": ("collapsed-batch", "default-init", "init-mismatch", "uneven-learning", "update-too-small",
                           "vanishing-activation", "dtype-underflow", "exploding-activation", "exploding-gradient"),
    "dtype-underflow": ("no-gradient", "uneven-learning", "update-too-small", "loss-scale"),
    "collapsed-batch": ("default-init", "init-mismatch", "uneven-learning", "vanishing-gradient",
                        "vanishing-activation", "dead-units", "no-gradient", "update-too-small"),
    "no-gradient": ("uneven-learning", "update-too-small", "vanishing-gradient"),
    "update-too-large": ("gradient-spike", "exploding-activation", "exploding-gradient", "vanishing-activation",
                         "vanishing-gradient", "saturated-units", "dead-units", "collapsed-batch", "uneven-learning",
                         "clipping-always", "output-pairing", "no-gradient", *_BREAKS),
    "gradient-spike": ("update-too-large", "dead-units", "saturated-units", "collapsed-batch", "uneven-learning",
                       "clipping-always", "no-gradient", *_DEPTH, *_BREAKS),
    "non-finite": ("gradient-spike", "loss-scale", "dtype-overflow", "uneven-learning", "update-too-large"),
    "dtype-overflow": ("gradient-spike", "loss-scale", "non-finite", "collapsed-batch", "dtype-underflow",
                       "no-gradient", "vanishing-activation", "update-too-large"),
    "init-mismatch": ("uneven-learning", "output-pairing", "default-init"),
    "default-init": ("uneven-learning", "init-mismatch", "output-pairing"),
    "loss-scale": ("update-too-small",),
    "clipping-always": ("update-too-small",),
}  # fmt: skip

_MOVERS = ("input-scale", "gradient-spike", "update-too-large")

UNIT_OF_THE_LOSS = "steps with a loss that is not finite"
"""Of a finding on a loss that the loss function made infinite or NaN, whatever the model gave it."""

SLACK = 3
"""Recorded steps by which what follows may be seen before its cause: rules need a few to be sure."""


def folded(found: Sequence[Finding], evidence: Evidence) -> list[Finding]:
    """The findings that stand for themselves, with what follows from each."""
    places = {s: int(np.searchsorted(evidence.recording.steps, s)) for one in found for s in one.steps[:1]}
    left = sorted(found, key=_order)
    roots: list[Finding] = []
    while left:
        root = left.pop(0)
        inner = [one for one in left if _follows(one, root, places)]
        left = [one for one in left if one not in inner]
        roots.append(_with(root, inner))
    return roots


def _order(one: Finding) -> tuple[int, int, int, int, float]:
    since = _since(one)
    place = list(FOLLOWS).index(one.rule) if one.rule in FOLLOWS else len(FOLLOWS)
    if one.rule == "collapsed-batch" and one.severity == "error":  # at once, at one layer: no matter of depth
        place = list(FOLLOWS).index("dead-units")
    if not since and (one.rule == "dtype-overflow" or one.unit == UNIT_OF_THE_LOSS):
        place = 1
    if since and one.rule in _MOVERS:  # what was sound before was changed by a step, or by a batch
        place = -1
    if one.rule == "update-too-small" and one.severity != "error":  # small steps are what small gradients make
        place += 1
    early = 0 if not since else 1
    return (
        early if one.severity != "note" else 2,
        place,
        since if place < 0 else 0,
        _MOVERS.index(one.rule) if place < 0 else SEVERITIES.index(one.severity),
        -abs(one.value or 0.0),
    )


def _follows(one: Finding, root: Finding, places: Mapping[int, int]) -> bool:
    if root.severity == "note" and one.severity != "note":
        return False
    if one.rule == "no-gradient" and root.rule in _MOVERS and not one.steps:
        return False  # what is cut from the start was not cut by a step
    if one.rule == root.rule:
        return one.direction == root.direction and one.rule not in ("no-gradient",)
    return one.rule in FOLLOWS.get(root.rule, ()) and _place(one, places) >= _place(root, places) - SLACK


def _since(one: Finding) -> int:
    return one.steps[0] if one.steps else 0


def _place(one: Finding, places: Mapping[int, int]) -> int:
    """Among the recorded steps: a step in ten may have been."""
    return places[one.steps[0]] if one.steps else 0


def _with(root: Finding, inner: Sequence[Finding]) -> Finding:
    if not inner:
        return root
    worst = min((root.severity, *(one.severity for one in inner)), key=SEVERITIES.index)
    causes = root.causes
    for one in inner:  # why the weights are so is a cause, not a consequence
        if one.rule in ("default-init", "init-mismatch") and root.rule not in _DEPTH:
            causes = (*causes, f"{one.rule}: {one.explanation}")
    said = tuple(
        f"{one.rule}{f' at {one.sites[0]}' if one.sites else ''}" + (f", step {one.steps[0]}" if one.steps else "")
        for one in inner
        if one.rule not in ("default-init", "init-mismatch")
    )
    return replace(root, severity=worst, causes=causes, consequences=(*root.consequences, *said))
