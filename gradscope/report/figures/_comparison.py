"""Two profiles of one signal, as it should be and as it is, and how far apart they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from gradscope.recording import Baseline, Signal
from gradscope.report._style import BLUE, FAINT, INK, SOFT, VERMILION, new_figure, styled
from gradscope.report._words import NAMES
from gradscope.report.figures._axes import decade_axis, depth_axis, span

_MOST_NAMES = 30
_LONGEST_NAME = 26
_ALIKE = 1e-4
"""Decades."""
_EXPECTED: dict[str, Any] = {"color": BLUE, "linewidth": 1.9, "marker": "o", "markersize": 4.5, "mfc": "white"}
_OBTAINED: dict[str, Any] = {
    "color": VERMILION, "linewidth": 1.6, "linestyle": (0, (5, 2)), "marker": "X", "markersize": 4.5,
}  # fmt: skip
Array = NDArray[np.float64]


@styled
def comparison(
    expected: Baseline,
    obtained: Baseline,
    signal: Signal,
    step: int = 0,
    *,
    allowed: Mapping[str, Array] | None = None,
) -> Figure:
    """log10 of the rms at each site of both, in order of execution, and obtained over expected below.

    A line joins what is alike: of parameters the matrices, while biases are points of their own.

    Args:
        expected, obtained: baselines; sites that only one has are gaps in the other's line.
        signal: which both have.
        step: index into the steps of each.
        allowed: by site, decades by which it may differ at each step, drawn as a band; None draws none.
    """
    a, b = expected.sizes.get(signal, {}), obtained.sizes.get(signal, {})
    names = [*a, *(name for name in b if name not in a)]
    if not names:
        raise ValueError(f"signal={signal!r} has no data in either")
    y, z = (np.array([float(of[name][step]) if name in of else np.nan for name in names]) for of in (a, b))
    figure = new_figure(9.6, 5.6)
    figure.text(0.085, 0.945, f"{NAMES[signal]}: expected and obtained", fontsize=14, fontweight="bold")
    there = np.array([[name in a, name in b] for name in names])
    figure.text(0.085, 0.905, _sentence(expected, names, y, z, there[:, 1], step), fontsize=9.5, color=SOFT)
    above = figure.add_axes((0.085, 0.45, 0.875, 0.42))
    below = figure.add_axes((0.085, 0.22, 0.875, 0.17))
    x = np.arange(len(names))
    decade_axis(above, *span(y, z))
    points = np.array([_is_bias(name) for name in names]) & (signal in ("weight", "weight_grad", "update"))
    for values, style in ((y, _EXPECTED), (z, _OBTAINED)):
        above.plot(x[~points], values[~points], **style)
        above.plot(x[points], values[points], **{**style, "linestyle": "none", "markersize": 3.5})
    _mark_what_has_no_size(above, x, there, y, z)
    above.set_ylabel("rms")
    above.tick_params(labelbottom=False)
    away = _away(y, z)
    if allowed is not None:
        half = np.array([float(allowed[name][step]) if name in allowed else np.nan for name in names])
        below.bar(x, 2.0 * half, 0.8, -half, color=FAINT)
    below.axhline(0.0, color=INK, linewidth=0.8)
    below.vlines(x, 0.0, np.nan_to_num(away), color=VERMILION, linewidth=2.2)
    below.set_ylabel("decades")
    depth_axis(below, x, "sites, in order of execution")
    above.set_xlim(below.get_xlim())
    if len(names) <= _MOST_NAMES:
        below.set_xticks(x, list(map(_short, names)), rotation=50, ha="right", rotation_mode="anchor", fontsize=7)
        below.set_xlabel("")
    handles: list[Any] = [Line2D([], [], **_EXPECTED), Line2D([], [], **_OBTAINED)]
    labels = ["expected", "obtained"]
    if allowed is not None:
        handles, labels = [*handles, Patch(color=FAINT)], [*labels, "allowed"]
    figure.legend(handles, labels, loc="upper right", bbox_to_anchor=(0.97, 0.985), ncols=len(labels))
    return figure


def _is_bias(name: str) -> bool:
    return "bias" in name.rpartition(".")[2]


def _short(name: str) -> str:
    """The end of a name tells more than its beginning."""
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _mark_what_has_no_size(axes: Axes, x: NDArray[Any], there: NDArray[np.bool_], y: Array, z: Array) -> None:
    """At the foot, `0` for zero and `NaN` for what is not finite, in the colour of the side that it is of."""
    for values, side, colour, height in ((y, 0, BLUE, 0.01), (z, 1, VERMILION, 0.075)):
        for at in np.flatnonzero(there[:, side] & ~np.isfinite(values)).tolist():
            axes.text(
                x[at], height, "0" if values[at] < 0 else "NaN", color=colour, fontsize=7.5, fontweight="bold",
                ha="center", transform=axes.get_xaxis_transform(),
            )  # fmt: skip


def _away(y: Array, z: Array) -> Array:
    with np.errstate(invalid="ignore"):
        away = z - y
    return np.where(np.isfinite(away), away, np.nan)


def _sentence(expected: Baseline, names: list[str], y: Array, z: Array, obtained: NDArray[np.bool_], step: int) -> str:
    """Where the two are farthest apart, how many have lost their size, and of which step and how many seeds it is."""
    away, parts = _away(y, z), []
    known = np.nan_to_num(np.abs(away))
    if known.max() > _ALIKE:
        worst = int(np.argmax(known))
        parts.append(f"Farthest apart at {names[worst]}: a factor of {10 ** away[worst]:.4g}.")
    else:
        parts.append("Where both have a size they agree.")
    for said, now in (("zero", np.isneginf(z)), ("not finite", np.isnan(z) & obtained)):
        lost = np.flatnonzero(now & np.isfinite(y)).tolist()
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            parts.append(f"{names[lost[0]]}{more} became {said}.")
    if len(expected.steps) > 1:
        parts.append(f"Step {int(expected.steps[step])}.")
    if "seeds" in expected.facts:
        parts.append(f"Medians of {expected.facts['seeds']} seeds; gradients relative to the last layer's.")
    return " ".join(parts)
