"""What can be read of the unit moments of a recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from gradscope.recording._errors import unknown_name
from gradscope.recording._moments import Floats, Ints
from gradscope.recording._site import Site
from gradscope.recording._source import Source
from gradscope.recording._statistics import STATISTICS
from gradscope.recording._unit_moments import UnitMoments
from gradscope.recording._unit_statistics import UNIT_STATISTICS


def unit_function(signal: str, stat: str) -> Callable[[UnitMoments], Floats] | None:
    """The function of a statistic of unit moments, None of one of the moments; ValueError where it is neither."""
    if stat in STATISTICS:
        return None
    if stat not in UNIT_STATISTICS:
        raise unknown_name("stat", stat, (*STATISTICS, *UNIT_STATISTICS))
    if signal != "activation":
        raise ValueError(f"stat={stat!r} is of activations only, got signal={signal!r}")
    return UNIT_STATISTICS[stat].function


def unit_moments(source: Source, at: int) -> tuple[tuple[Site, ...], UnitMoments]:
    """Those of one step, in order of execution; nothing where it has none."""
    column = source.columns("activation")
    for _, ids, moments in list(source.units(np.array([at]))):
        order = np.argsort(column[ids])
        return tuple(source.contents.sites[i] for i in ids[order]), moments.take(order)
    return (), UnitMoments.empty()


def unit_values(
    source: Source, functions: Mapping[str, Callable[[UnitMoments], Floats]], chosen: Ints
) -> dict[str, Floats]:
    """Statistics of them at some steps, each `(steps, sites)`; NaN where there are none."""
    column = source.columns("activation")
    out = {stat: np.full((len(chosen), column.max(initial=-1) + 1), np.nan) for stat in functions}
    for at, ids, moments in source.units(chosen):
        row = np.searchsorted(chosen, at)
        for stat, function in functions.items():
            out[stat][row, column[ids]] = function(moments)
    return out
