"""Two profiles of one signal, as it should be and as it is, and how far apart they are."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from gradscope.recording import Baseline, Signal
from gradscope.report._style import BLUE, INK, SOFT, VERMILION, new_figure, styled
from gradscope.report._words import NAMES
from gradscope.report.figures._axes import decade_axis, depth_axis, span

_MOST_NAMES = 30


@styled
def comparison(expected: Baseline, obtained: Baseline, signal: Signal, step: int = 0) -> Figure:
    """log10 of the rms at each site of both, in order of execution, and obtained over expected below.

    Args:
        expected, obtained: baselines; sites that only one has are gaps in the other's line.
        signal: which both have.
        step: index into the steps of each.
    """
    a, b = expected.sizes.get(signal, {}), obtained.sizes.get(signal, {})
    names = [*a, *(name for name in b if name not in a)]
    if not names:
        raise ValueError(f"signal={signal!r} has no data in either")
    y, z = (np.array([float(of[name][step]) if name in of else np.nan for name in names]) for of in (a, b))
    figure = new_figure(9.6, 5.6)
    figure.text(0.075, 0.945, f"{NAMES[signal]}: expected and obtained", fontsize=14, fontweight="bold")
    figure.text(0.075, 0.905, _sentence(names, y, z), fontsize=9.5, color=SOFT)
    above = figure.add_axes((0.075, 0.42, 0.885, 0.45))
    below = figure.add_axes((0.075, 0.17, 0.885, 0.18))
    x = np.arange(len(names))
    decade_axis(above, *span(y, z))
    above.plot(x, y, color=BLUE, linewidth=1.9, marker="o", markersize=4.5, markerfacecolor="white")
    above.plot(x, z, color=VERMILION, linewidth=1.6, linestyle=(0, (5, 2)), marker="X", markersize=4.5)
    above.set_ylabel("rms")
    above.tick_params(labelbottom=False)
    away = _away(y, z)
    below.axhline(0.0, color=INK, linewidth=0.8)
    below.vlines(x, 0.0, np.nan_to_num(away), color=VERMILION, linewidth=2.2)
    below.set_ylabel("decades")
    depth_axis(below, x, "sites, in order of execution")
    above.set_xlim(below.get_xlim())
    if len(names) <= _MOST_NAMES:
        below.set_xticks(x, names, rotation=50, ha="right", rotation_mode="anchor", fontsize=7)
        below.set_xlabel("")
    handles = [
        Line2D([], [], color=BLUE, linewidth=1.9, marker="o", markersize=4.5, markerfacecolor="white"),
        Line2D([], [], color=VERMILION, linewidth=1.6, linestyle=(0, (5, 2)), marker="X", markersize=4.5),
    ]
    figure.legend(handles, ["expected", "obtained"], loc="upper right", bbox_to_anchor=(0.97, 0.985), ncols=2)
    return figure


def _away(y: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        away = z - y
    return np.where(np.isfinite(away), away, np.nan)


def _sentence(names: list[str], y: NDArray[np.float64], z: NDArray[np.float64]) -> str:
    away = _away(y, z)
    if not np.isfinite(away).any():
        return "No site has a size in both."
    worst = int(np.nanargmax(np.abs(away)))
    return f"Farthest apart at {names[worst]}: a factor of {10 ** away[worst]:.4g}."
