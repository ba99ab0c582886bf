"""`compare`: two runs of what should be the same model, number by number. Shared by `diff` and by tests.

Numbers differ where |log10 obtained − log10 expected| > log10(1 + rtol). Zero and what is not finite differ from all
but themselves. A loss may be negative: it is compared by its difference, relative to the larger of the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gradscope.recording._baseline import Array, Baseline, Compared, Spreads
from gradscope.recording._common_steps import at_common_steps
from gradscope.recording._comparison import Comparison, Difference
from gradscope.recording._recording import Recording
from gradscope.recording._structure import gradient_changes, renamed_sites, structure_changes

RTOL = 1e-3
"""Relative. One machine repeats a run to the bit; this is room for a rounded baseline and for the order of a sum."""
WIDENED = 10.0
"""Factor of the tolerance where the torch version, the machine or the kind of device is another."""
_ORDER: tuple[Compared, ...] = (
    "weight", "activation", "loss", "activation_grad", "weight_grad", "gradient norm", "update",
)  # fmt: skip
_FACTS = ("torch", "machine", "device", "dtype", "seed")


def compare(
    expected: Recording | Baseline, obtained: Recording | Baseline, rtol: float = RTOL, *, bands: Spreads | None = None
) -> Comparison:
    """What of a run is not as in an earlier one: structure exactly, sizes within a tolerance.

    Only steps and signals that both have are compared, of over a hundred steps a hundred. Where the two were made with
    another torch version, on another machine or another kind of device, the tolerance is ten times as wide, and a note
    says so.

    Args:
        expected: the earlier run.
        obtained: the later one.
        rtol: relative tolerance of every size.
        bands: in place of it, by signal and site the decades allowed at each step of `obtained`; what has no band is
            not compared.

    Raises:
        TypeError, ValueError: an argument is not as above, no step is common to both, or one is of several seeds and
            the other of one, or of another number.
    """
    if isinstance(rtol, bool) or not isinstance(rtol, (int, float)) or not 0 < rtol < math.inf:
        raise ValueError(f"rtol is {rtol!r}; a finite number above 0 is allowed")
    a, b, cut = at_common_steps(expected, obtained)
    if a.facts.get("seeds") != b.facts.get("seeds"):
        raise ValueError(f"one run is of {seeds_of(a)} and the other of {seeds_of(b)}, so they cannot be compared")
    notes, foreign = _notes(a.facts, b.facts)
    rtol = rtol * WIDENED if foreign else rtol
    if foreign and bands is None:
        notes.append(f"the tolerance is widened to {rtol:g}")
    notes += cut
    changes = structure_changes(a.places, b.places)
    if a.gradients and b.gradients:
        changes += gradient_changes(a.gradients, b.gradients, renamed_sites(a.places, b.places))
    allowed = math.log10(1.0 + rtol)
    found, compared = [], 0
    for signal, site, x, y in _pairs(a, b):
        limit = np.full(len(a.steps), allowed)
        if bands is not None:
            band = bands.get(signal, {}).get(site)
            if band is None:
                continue
            limit = band[np.isin(obtained.steps, a.steps)]
        compared += len(a.steps)
        found += _worst(signal, site, a.steps, x, y, limit)
    found.sort(key=lambda one: -abs(one.decades))
    first = min(found, key=_beginning(a), default=None)
    return Comparison(tuple(changes), tuple(found), first, compared, None if bands is not None else rtol, tuple(notes))


def seeds_of(baseline: Baseline) -> str:
    """Of how many seeds it is, in words."""
    count = baseline.facts.get("seeds")
    return "one seed" if count is None else f"{count} seeds"


def _notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[list[str], bool]:
    """In which facts the two differ, and whether numbers may then differ a little though nothing has changed."""
    other = [key for key in _FACTS if key in a and key in b and a[key] != b[key]]
    notes = [f"{key} was {a[key]}, and is now {b[key]}" for key in other]
    kinds = [str(facts.get("device", "")).split(":")[0] for facts in (a, b)]
    return notes, "torch" in other or "machine" in other or kinds[0] != kinds[1]


def _pairs(a: Baseline, b: Baseline) -> Iterator[tuple[Compared, str, Array, Array]]:
    for signal, sizes in a.sizes.items():
        others = b.sizes.get(signal, {})
        yield from ((signal, site, x, others[site]) for site, x in sizes.items() if site in others)
    if a.sizes.get("weight_grad") and b.sizes.get("weight_grad"):
        yield "gradient norm", "", a.gradient_norm, b.gradient_norm
    yield "loss", "", a.loss, b.loss


def _worst(signal: Compared, site: str, steps: Any, x: Array, y: Array, allowed: Array) -> list[Difference]:
    """The worst step of one site, where it is off at any."""
    if signal == "loss":
        with np.errstate(invalid="ignore", divide="ignore"):
            off = np.abs(y - x) / np.maximum(np.abs(x), np.abs(y))
        away = np.where(x == y, 0.0, np.log10(1.0 + off) * np.where(y < x, -1.0, 1.0))
    else:
        with np.errstate(invalid="ignore"):
            away = np.where(x == y, 0.0, y - x)
    nothing = np.isnan(x) & np.isnan(y)
    away = np.where(nothing, 0.0, np.where(np.isnan(x) | np.isnan(y), np.inf, away))
    excess = np.abs(away) > allowed
    if not excess.any():
        return []
    k = int(np.argmax(np.where(excess, np.abs(away), -1.0)))
    before, after = (float(v[k]) if signal == "loss" else _power(float(v[k])) for v in (x, y))
    since = int(steps[np.argmax(excess)])
    count = int(excess.sum())
    return [Difference(signal, site, int(steps[k]), since, count, before, after, float(allowed[k]), float(away[k]))]


def _power(log10: float) -> float:
    return math.nan if math.isnan(log10) else math.inf if log10 > 308.0 else float(10.0**log10)


def _beginning(a: Baseline) -> Any:
    """Sorts differences by where a fault begins: the step, then the order in which the signals come about in it."""
    places: dict[str, dict[str, int]] = {s: {name: i for i, name in enumerate(of)} for s, of in a.sizes.items()}

    def key(one: Difference) -> tuple[int, int, int]:
        position = places.get(one.signal, {}).get(one.site, 0)
        backward = one.signal in ("activation_grad", "weight_grad")
        return one.since, _ORDER.index(one.signal), -position if backward else position

    return key
