"""Statistics that are derived from unit moments, each with its unit; of activations only, NaN at other steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gradscope.recording._moments import Floats, Ints
from gradscope.recording._unit_moments import UnitMoments


class UnitStatistic(NamedTuple):
    """A statistic's unit, and the function that derives it from unit moments: `(rows,)` float64."""

    unit: str
    function: Callable[[UnitMoments], Floats]


UNIT_STATISTICS: dict[str, UnitStatistic] = {}
"""Name → statistic of unit moments; `values` and `profile` take these names as those of `STATISTICS`."""


def unit_statistic(unit: str) -> Callable[[Callable[[UnitMoments], Floats]], Callable[[UnitMoments], Floats]]:
    """Register the decorated function of the unit moments under its own name."""

    def register(function: Callable[[UnitMoments], Floats]) -> Callable[[UnitMoments], Floats]:
        UNIT_STATISTICS[function.__name__] = UnitStatistic(unit, function)
        return function

    return register


def _share(part: Ints, whole: Ints) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((part < 0) | (whole <= 0), np.nan, part / whole.astype(np.float64))


@unit_statistic("fraction in [0, 1]")
def dead_fraction(m: UnitMoments) -> Floats:
    """Share of the units that were zero for every entry of this read and of each before it (10 reads at most)."""
    return _share(m.dead_units, m.units)


@unit_statistic("fraction in [0, 1]")
def silent_fraction(m: UnitMoments) -> Floats:
    """Share of the units that were zero for every entry of this read."""
    return _share(m.silent_units, m.units)


@unit_statistic("fraction in [0, 1]")
def saturated_fraction(m: UnitMoments) -> Floats:
    """Share of a bounded activation's entries whose slope is below 1 % of its largest; NaN for other sites."""
    return _share(m.saturated, m.entries)


@unit_statistic("slope")
def slope_rms(m: UnitMoments) -> Floats:
    """Root mean square slope of a pointwise activation, √E[f'(z)²]; NaN for other sites."""
    return np.sqrt(m.slope)


@unit_statistic("cosine in [−1, 1]")
def batch_similarity(m: UnitMoments) -> Floats:
    """Mean inner product of two different samples over the mean square of one; 1: all samples are the same."""
    return m.batch_similarity


@unit_statistic("1 − cosine")
def batch_spread(m: UnitMoments) -> Floats:
    """1 − batch_similarity, exact where that is near 1."""
    return m.batch_spread


@unit_statistic("fraction in [0, 1]")
def unit_spread(m: UnitMoments) -> Floats:
    """Share of the sum of squares that is not common to all units; 0: all units are the same."""
    return m.unit_spread
