"""Weights that something other than the optimizer has changed between two steps.

The rms of w + u is within rms(u) of that of w (triangle inequality). Where two recorded steps follow each other and the
weight's rms has changed by more than the update between them, someone else has written to it.
"""

from __future__ import annotations

import numpy as np

from gradscope.diagnosis._evidence import Evidence, Floats, median
from gradscope.recording import Site

_ROUNDING = 1e-3
"""Of the weight's rms: moments are read at different times, and reduced precision rounds each entry."""


def changed_outside(evidence: Evidence, place: int) -> list[Site]:
    """The weights that changed between a step that counts and the one before it, and not by its update."""
    if place <= 0 or evidence.steps[place] != evidence.steps[place - 1] + 1:
        return []
    weight = {s.name: v for s, v in zip(evidence.sites("weight"), evidence.values("weight").T, strict=True)}
    update = {s.name: v for s, v in zip(evidence.sites("update"), evidence.values("update").T, strict=True)}
    found = []
    for site in evidence.sites("weight"):
        before, after = weight[site.name][place - 1 : place + 1]
        moved = update[site.name][place - 1] if site.name in update else np.nan
        if abs(after - before) > 1.01 * moved + _ROUNDING * before:
            found.append(site)
    return found


def inputs_rise(evidence: Evidence, place: int) -> float:
    """Decades by which an input of a step is above the median of those before; 0 where there are none."""
    inputs = [i for i, s in enumerate(evidence.sites("activation")) if s.role == "input"]
    if not inputs or place <= 0:
        return 0.0
    level = evidence.level("activation")[:, inputs]
    rise = risen(level, place)
    return float(np.max(rise[np.isfinite(rise)], initial=0.0))


def risen(level: Floats, place: int, since: int = 0) -> Floats:
    """How far each column is above its median over the places before; NaN where both are −∞, logarithms of zero."""
    with np.errstate(invalid="ignore"):
        return np.asarray(level[place] - median(level[since:place]), dtype=np.float64)
