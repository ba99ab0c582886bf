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


def undone(evidence: Evidence) -> tuple[list[Site], float, int]:
    """The weights most of whose updates something takes back before the next step, the share, and the step it begins.

    The mean of w + u is the mean of w plus the mean of u, exactly: what the means of two steps in a row do not have of
    the update between them was taken back. The share is the least-squares factor of what is lacking on the update.
    """
    if not evidence.training or len(evidence.at) < 2 * evidence.limits.hysteresis:
        return [], 0.0, 0
    weight = evidence.by_layer("weight", "mean")
    update = evidence.by_layer("update", "mean")[:-1]
    lacking = update - np.diff(weight, axis=0)
    following = np.diff(evidence.steps)[:, None] == 1
    rounding = 1e-6 * evidence.by_layer("weight", "rms")[:-1]
    known = np.isfinite(lacking) & following & (np.abs(update) > 10 * rounding)
    begins = _first_lasting(known & (np.abs(lacking) > 0.5 * np.abs(update)), known)
    known[:begins] = False
    product = np.where(known, lacking * update, 0.0).sum(axis=0)
    square = np.where(known, update * update, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(known.sum(axis=0) >= evidence.limits.hysteresis, product / square, np.nan)
    found = [i for i in np.flatnonzero(share > 0.9).tolist() if share[i] < 1.1]
    if not found or 2 * len(found) < np.isfinite(share).sum():
        return [], 0.0, 0
    return [evidence.layers[i].weight for i in found], float(np.median(share[found])), evidence.step(begins)


def _first_lasting(bad: np.ndarray, known: np.ndarray) -> int:
    """The place from which half of what is known of each step is bad, to the end."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = bad.sum(axis=1) / known.sum(axis=1)
    sound = np.flatnonzero(share < 0.5)
    return 0 if not sound.size else int(sound[-1]) + 1
