"""Statistics: what is derived from moments, each with its unit. A new one is one registered function."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gradscope.recording._errors import unknown_name
from gradscope.recording._moments import Floats, MomentColumns


class Statistic(NamedTuple):
    """A statistic's unit, and the function that derives it from moments: `(rows,)` float64."""

    unit: str
    function: Callable[[MomentColumns], Floats]


STATISTICS: dict[str, Statistic] = {}
"""Name → statistic; the single source for the command line's choices, exports and tables."""


def statistic(unit: str) -> Callable[[Callable[[MomentColumns], Floats]], Callable[[MomentColumns], Floats]]:
    """Register the decorated function of the moments under its own name."""

    def register(function: Callable[[MomentColumns], Floats]) -> Callable[[MomentColumns], Floats]:
        STATISTICS[function.__name__.rstrip("_")] = Statistic(unit, function)
        return function

    return register


def get_statistic(name: str) -> Statistic:
    """The statistic of that name; ValueError with the nearest match where there is none."""
    if name not in STATISTICS:
        raise unknown_name("stat", name, STATISTICS)
    return STATISTICS[name]


@statistic("entries")
def count(m: MomentColumns) -> Floats:
    """All entries of the tensor, those that are not finite included."""
    return m.count.astype(np.float64)


@statistic("value")
def mean(m: MomentColumns) -> Floats:
    """Mean of the finite entries."""
    return m.mean


@statistic("value²")
def var(m: MomentColumns) -> Floats:
    """Population variance of the finite entries; inf or 0 where it leaves float64 (`std` does not)."""
    with np.errstate(over="ignore", under="ignore"):
        return np.square(m.std)


@statistic("value")
def std(m: MomentColumns) -> Floats:
    """Population standard deviation of the finite entries."""
    return m.std


@statistic("value")
def rms(m: MomentColumns) -> Floats:
    """Root mean square of the finite entries, √(mean² + std²), for every size that float64 holds."""
    return np.hypot(m.mean, m.std)


@statistic("value")
def min_(m: MomentColumns) -> Floats:
    """Smallest finite entry."""
    return m.min


@statistic("value")
def max_(m: MomentColumns) -> Floats:
    """Largest finite entry."""
    return m.max


@statistic("value")
def abs_max(m: MomentColumns) -> Floats:
    """Largest size of a finite entry."""
    return np.maximum(np.abs(m.min), np.abs(m.max))


@statistic("fraction in [0, 1]")
def zero_fraction(m: MomentColumns) -> Floats:
    """Share of all entries that are exactly zero; NaN for a tensor without entries."""
    with np.errstate(invalid="ignore"):
        return m.zeros / m.count.astype(np.float64)


@statistic("fraction in [0, 1]")
def subnormal_fraction(m: MomentColumns) -> Floats:
    """Share of all entries that are subnormal in the tensor's dtype; NaN where not counted, or without entries."""
    with np.errstate(invalid="ignore"):
        return np.where(m.subnormals < 0, np.nan, m.subnormals / m.count.astype(np.float64))


@statistic("entries")
def nonfinite_count(m: MomentColumns) -> Floats:
    """Entries that are NaN or infinite."""
    return (m.nans + m.infs).astype(np.float64)
