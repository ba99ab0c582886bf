"""Why a signal shrinks or grows with depth: candidates, each with the evidence for it, the likeliest first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis._evidence import START, Evidence, median
from gradscope.diagnosis._passage import Passage
from gradscope.diagnosis._start import Start, starts
from gradscope.diagnosis._words import INITIALIZE, count, factor
from gradscope.recording import Site

_SMALL_SLOPES = {"sigmoid": 0.25, "hardsigmoid": 1 / 6, "logsigmoid": 1.0}


@dataclass(frozen=True)
class Cause:
    """One reason, and how much of the decades it explains.

    Attributes:
        kind: `default-init`, `init-mismatch`, `slope`, `saturated`, `dead`, `norm`, `update`, `bias` or `recurrence`.
        sentence: with its evidence.
        decades: explained.
        remedy: what undoes it.
    """

    kind: str
    sentence: str
    decades: float
    remedy: str = ""


def causes_of_depth(evidence: Evidence, found: Passage, sick: Sequence[Site], since: int | None) -> tuple[Cause, ...]:
    """Those of a signal lost or won over the depth."""
    causes = [*_of_units(evidence, sick)]
    if since is None:
        causes += _of_start(evidence, found)
    else:
        causes += _of_training(evidence, since)
    return tuple(sorted(causes, key=lambda cause: -cause.decades))


def remedy_of(causes: Sequence[Cause]) -> str:
    """That of the likeliest cause."""
    for cause in causes:
        if cause.remedy:
            return cause.remedy
    return INITIALIZE


def _of_start(evidence: Evidence, found: Passage) -> Iterator[Cause]:
    rows = starts(evidence)
    hidden = [s for s in rows if s.activation != "identity"] or rows
    if not hidden:
        return
    sign = -1.0 if found.lost else 1.0
    backward = found.signal == "activation_grad"

    def share(row: Start) -> float:
        return sign * (row.backward if backward else row.forward)

    small = [row for row in hidden if row.activation in _SMALL_SLOPES and backward and found.lost]
    default = [row for row in hidden if row.is_default and row not in small]
    decades = sum(map(share, default))
    kinds = sorted({row.activation for row in default})
    if default and decades > 0.3:
        yield Cause(
            "default-init",
            f"{count(len(default), 'layer')} of {len(hidden)} have torch's default weights, of variance 1/(3·fan_in): "
            f"before {', '.join(kinds)} theory expects them to lose {decades:.1f} decades",
            decades,
            INITIALIZE,
        )
    others = [row for row in hidden if row not in default and share(row) > 0.05]
    sloped = [row for row in small if share(row) > 0.05]
    if sloped:
        largest = _SMALL_SLOPES[sloped[0].activation]
        yield Cause(
            "slope",
            f"{sloped[0].activation} has slopes of at most {largest:.2g}, so that each of {len(sloped)} layers shrinks "
            "the gradient whatever its weights",
            sum(map(share, sloped)),
            "replace it by tanh or ReLU in the hidden layers, or gradscope.init.initialize(model, 'propagate', "
            "inputs=batch)",
        )
    wrong = [row for row in others if row not in sloped]
    decades = sum(map(share, wrong))
    if wrong and decades > 0.3:
        typical = 10 ** float(np.median([share(row) for row in wrong]))
        word = "small" if found.lost else "large"
        yield Cause(
            "init-mismatch",
            f"the first weights of {count(len(wrong), 'layer')} are too {word}: each "
            f"{'divides' if found.lost else 'multiplies'} the rms by about {factor(typical)}, {decades:.1f} decades in "
            "all by theory",
            decades,
            INITIALIZE,
        )


def _of_units(evidence: Evidence, sick: Sequence[Site]) -> Iterator[Cause]:
    if not evidence.unit_at.size:
        return
    sites = evidence.sites("activation")
    wanted = {site.name for site in sick}
    for stat, kind, word in (("saturated_fraction", "saturated", "saturated"), ("silent_fraction", "dead", "dead")):
        share = median(evidence.unit(stat)[:START])
        found = [(s, v) for s, v in zip(sites, share.tolist(), strict=True) if s.name in wanted and v > 0.75]
        if found:
            yield Cause(
                kind,
                f"{count(len(found), 'layer')} {'is' if len(found) == 1 else 'are'} {word}: {found[0][1]:.0%} of "
                f"{found[0][0].name!r}",
                math.inf if kind == "dead" else 1.0,
            )


def _of_training(evidence: Evidence, since: int) -> Iterator[Cause]:
    if not evidence.has("update"):
        return
    before = slice(max(0, since - 2), since + 1)
    largest = float(np.nanmax(evidence.relative_update[before], initial=0.0)) if since else 0.0
    if largest > 0.1:
        yield Cause(
            "update",
            f"around step {evidence.step(since)} an update changed a weight by {largest:.0%} of its size",
            largest,
            "lower the learning rate, or clip: torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)",
        )
