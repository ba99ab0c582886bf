"""The main picture: how the signal grows or shrinks with depth, forward and backward, beside the theory."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from gradscope.recording import SweepCell
from gradscope.report._curves import DIRECTIONS, Curve, Direction, curve
from gradscope.report._passage import Passage, passage
from gradscope.report._style import BLUE, HEALTHY, INK, SOFT, VERMILION, new_figure, styled
from gradscope.report._words import signed
from gradscope.report.figures._axes import corner_text, decade_axis, depth_axis, free_corner, span

COLOURS: dict[Direction, str] = {"forward": BLUE, "backward": VERMILION}
_FILLS: dict[Direction, str] = {"forward": "#a9cfe6", "backward": "#f2c3a3"}
_MARKERS: dict[Direction, str] = {"forward": "o", "backward": "s"}
_HEADS: dict[Direction, str] = {"forward": "Forward: the signal at each layer", "backward": "Backward: its gradient"}
_FLOWS: dict[Direction, str] = {
    "forward": "layer, in order of execution    (the signal flows →)",
    "backward": "layer, in order of execution    (← the gradient flows)",
}
FLOAT32 = (-44.85, 38.53)
"""log10 of the smallest and the largest float32."""
_BAND = "#dedede"
DASHED, DOTTED = (0, (5, 3)), (0, (1, 2))


@styled
def signal_vs_depth(cell: SweepCell) -> Figure:
    """Two panels against depth: forward activation rms, backward activation_grad rms, on an axis of decades.

    Each holds the median and the 10-90 % band over seeds at the pre-activations, dots after the activation
    function, the theory's curve and band, the healthy band, the slope in decades per layer and a line that says it in
    words; y values are log10 of rms.
    """
    figure = new_figure(10.6, 5.2)
    figure.text(0.068, 0.935, f"{cell.init} · {cell.activation}", fontsize=14, fontweight="bold")
    unit = "channels" if cell.family == "conv" else "units"
    kind = "3×3 convolutions" if cell.family == "conv" else "plain network"
    seeds = "1 seed" if cell.seeds == 1 else f"{cell.seeds} seeds"
    facts = f"{kind} · {cell.depth} layers of {cell.width} {unit} · {seeds}"
    figure.text(0.985, 0.938, facts, ha="right", color=SOFT)
    for left, direction in zip((0.068, 0.568), DIRECTIONS, strict=True):
        _panel(figure.add_axes((left, 0.215, 0.417, 0.525)), cell, direction)
    _legend(figure, cell)
    return figure


def _panel(axes: Axes, cell: SweepCell, direction: Direction) -> None:
    shown, way = curve(cell, direction), passage(cell, direction)
    colour = COLOURS[direction]
    low, high = _limits(shown)
    decade_axis(axes, low, high)
    depth_axis(axes, shown.depth, _FLOWS[direction])
    axes.set_ylabel("rms")
    if np.isfinite(shown.healthy[0]):
        axes.axhspan(*shown.healthy, color=HEALTHY, linewidth=0, zorder=0, label="healthy band")
    for edge, name in zip(FLOAT32, ("smallest", "largest"), strict=True):
        if low < edge < high:
            axes.axhline(edge, color=SOFT, linewidth=0.8, linestyle=DOTTED, label=f"float32 {name}")
    if np.isfinite(shown.theory_low).any():
        axes.fill_between(
            shown.depth, shown.theory_low, shown.theory_high, color=_BAND, linewidth=0, zorder=1, label="theory's band"
        )
    axes.fill_between(
        shown.depth, shown.low, shown.high, color=_FILLS[direction], linewidth=0, zorder=1.5, label="seeds"
    )
    axes.plot(shown.depth, shown.after, ".", color=colour, markersize=2.6, zorder=2.2, label="after")
    axes.plot(shown.depth, shown.theory, color=INK, linewidth=1.3, linestyle=DASHED, zorder=3, label="theory")
    axes.plot(
        shown.depth,
        shown.median,
        color=colour,
        linewidth=2,
        marker=_MARKERS[direction],
        markersize=4.5,
        markerfacecolor="white",
        markeredgewidth=1.2,
        markevery=max(1, len(shown.depth) // 12),
        zorder=2.5,
        label="median",
    )
    if way.frontier is not None:
        _frontier(axes, shown, way)
    if way.dies_at is not None:
        axes.axvline(way.dies_at, color=INK, linewidth=1.2, linestyle=DOTTED, zorder=2, label="float32 ends")
    _heading(axes, way)
    _slopes(axes, shown, way)


def _frontier(axes: Axes, shown: Curve, way: Passage) -> None:
    assert way.frontier is not None
    height = shown.median[way.frontier - 1]
    if np.isfinite(height):
        axes.plot(
            [way.frontier],
            [height],
            "X",
            color=INK,
            markersize=8.5,
            markeredgecolor="white",
            zorder=4,
            label="frontier",
        )


def _limits(shown: Curve) -> tuple[float, float]:
    """Around everything drawn, but no further beyond float32 than needed to see the theory leave it."""
    theory = np.clip(shown.theory, FLOAT32[0] - 12, FLOAT32[1] + 12)
    band = (np.clip(one, FLOAT32[0] - 12, FLOAT32[1] + 12) for one in (shown.theory_low, shown.theory_high))
    return span(shown.low, shown.high, shown.after, theory, *band, shown.healthy, least=3.0)


def _heading(axes: Axes, way: Passage) -> None:
    axes.text(0, 1.175, _HEADS[way.direction], transform=axes.transAxes, fontsize=10.5, fontweight="bold")
    sentence = textwrap.fill(way.words, 60)
    axes.text(0, 1.145, sentence, transform=axes.transAxes, va="top", linespacing=1.25)


def _slopes(axes: Axes, shown: Curve, way: Passage) -> None:
    corner = free_corner(axes, (shown.depth, shown.median), (shown.depth, shown.theory))
    slope = f"{signed(way.decades_per_layer)} decades per layer"
    if not np.isfinite(way.decades_per_layer):
        slope = "no slope: fewer than two layers"
    note = "" if not np.isfinite(way.expected) else f"theory: {signed(way.expected)}"
    corner_text(axes, corner, slope, note, COLOURS[shown.direction])


def _legend(figure: Figure, cell: SweepCell) -> None:
    ways = [passage(cell, direction) for direction in DIRECTIONS]
    cross: dict[str, Any] = {"linestyle": "none", "marker": "X", "markersize": 8, "markeredgecolor": "white"}
    measured = Line2D([], [], color=SOFT, linewidth=2, marker="o", markersize=4.5, markerfacecolor="white")
    band = Patch(facecolor=HEALTHY)
    median = "pre-activations, median of seeds" if cell.seeds > 1 else "pre-activations"
    entries: list[tuple[Line2D | Patch, str]] = [
        (measured, median),
        (band, "healthy band: a decade either side of where it enters"),
    ]
    if cell.seeds > 1:
        entries.append((Patch(facecolor="#cfcfcf"), "10–90 % of seeds"))
    entries.append((Line2D([], [], color=SOFT, **{**cross, "marker": ".", "markersize": 7}), "after the activation"))
    if any(way.frontier for way in ways):
        entries.append((Line2D([], [], color=INK, **cross), "leaves the healthy band"))
    if cell.expected is not None and cell.expected.valid.any():
        entries.append((Line2D([], [], color=INK, linewidth=1.3, linestyle=DASHED), f"theory: {cell.expected.label}"))
        if cell.expected.stable:
            entries.append((Patch(facecolor=_BAND), "95 % of networks, by theory"))
    if any(way.dies_at for way in ways):
        entries.append((Line2D([], [], color=INK, linewidth=1.2, linestyle=DOTTED), "float32 ends"))
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.058, 0.0), ncols=4, columnspacing=1.6)
    figure.text(0.068, 0.886, _note(cell), fontstyle="italic", fontsize=9)


def _note(cell: SweepCell) -> str:
    if cell.expected is None:
        return ""
    if not cell.expected.valid.all():
        return f"Where there is no dashed curve, the theory ({cell.expected.label}) does not hold."
    if not cell.expected.stable:
        return (
            "The theory's fixed point repels here: a small deviation grows with depth, and the dashed curve is no"
            " forecast for a single network."
        )
    return ""
