"""How fast each layer learns: the update-to-weight ratio over the steps of a run."""

from __future__ import annotations

import textwrap

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradscope.recording import Recording
from gradscope.report._run_curves import UpdateRatio, log10, update_ratio
from gradscope.report._style import SOFT, new_figure, styled
from gradscope.report._words import sampled, small_print, update_sentence
from gradscope.report.figures._axes import decade_axis, span, top_note

RULE_OF_THUMB = -3.0
"""log10 of the ratio that practitioners often aim at; a mark for the eye, not a limit."""
_MAP = "viridis"
_TOP = 0.88  # viridis' last tenth is too pale for a line on white


@styled
def update_to_weight(recording: Recording, shown: UpdateRatio | None = None) -> Figure:
    """rms(update) / rms(weight) over steps, one line a weight of two or more dimensions, coloured by depth.

    y is log10 of the ratio, so that a weight that does not change has no line. The fastest and the slowest weight
    are named at their line's end and drawn heavier. Of a long run 1,000 steps are drawn, and those that were skipped or
    not finite; small print says so. `shown` is what `update_ratio` gave, where that is known already.
    """
    shown = shown or update_ratio(recording)
    if not shown.extremes:
        raise ValueError("signal='update' has no data in this recording: no optimizer step was observed")
    height = 5.4
    figure = new_figure(9.6, height)
    figure.text(0.075, 1 - 0.38 / height, "How fast each layer learns", fontsize=14, fontweight="bold")
    figure.text(0.075, 1 - 0.58 / height, textwrap.fill(update_sentence(shown), 122), va="top", linespacing=1.3)
    top_note(figure, small_print(recording, "rms", shown.drawn))
    axes = figure.add_axes((0.075, 0.62 / height, 0.70, (height - 0.62 - 1.2) / height))
    low, high = span(log10(shown.ratio), [RULE_OF_THUMB], least=2)
    decade_axis(axes, low, high)
    axes.set_ylabel(f"rms of the update / rms of the weight{sampled(recording, 'rms')}")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))  # there is no step 2.5
    first, last = int(shown.steps[0]), int(shown.steps[-1])
    axes.set_xlim(first - 0.01 * (last - first) - 0.5, last + 0.01 * (last - first) + 0.5)
    axes.axhline(RULE_OF_THUMB, color=SOFT, linewidth=0.9, linestyle=(0, (1, 2)), label="rule of thumb")
    figure.text(0.775, 0.14 / height, "dotted: 10⁻³, a common rule of thumb", ha="right", color=SOFT, fontsize=8.5)
    _lines(axes, shown)
    _name_extremes(axes, shown)
    _depth_bar(figure.add_axes((0.94, 0.62 / height, 0.014, (height - 0.62 - 1.2) / height)), shown)
    return figure


def _depth_range(shown: UpdateRatio) -> tuple[int, int]:
    depths = [s.depth for s in shown.sites]
    return min(depths), max(depths)


def _lines(axes: Axes, shown: UpdateRatio) -> None:
    low, high = _depth_range(shown)
    colours = [matplotlib.colormaps[_MAP](_TOP * (s.depth - low) / max(1, high - low)) for s in shown.sites]
    segments = [
        np.column_stack([shown.steps[keep], column[keep]])
        for column in log10(shown.ratio).T
        for keep in [np.isfinite(column)]
    ]
    extremes = shown.extremes
    widths = [2.2 if i in extremes else 1.1 for i in range(len(segments))]
    axes.add_collection(LineCollection(segments, colors=colours, linewidths=widths, label="ratio"), autolim=False)
    for points, colour in zip(segments, colours, strict=True):
        if len(points) < 3:  # too short to be seen as a line
            axes.plot(points[:, 0], points[:, 1], "o", color=colour, markersize=4)


def _name_extremes(axes: Axes, shown: UpdateRatio) -> None:
    columns, median = shown.extremes, shown.median
    low, high = axes.get_ylim()
    apart = 0.15 * (high - low)  # three lines of text
    ends = [column[np.isfinite(column)] for column in log10(shown.ratio[:, columns]).T]
    heights = [float(end[-1]) if end.size else low + apart / 2 for end in ends]
    if len(heights) == 2 and abs(heights[0] - heights[1]) < apart:
        middle, sign = sum(heights) / 2, 1 if heights[0] >= heights[1] else -1
        heights = [middle + sign * apart / 2, middle - sign * apart / 2]
    words = ("fastest\n", "slowest\n") if len(columns) == 2 else ("",)
    for height, column, word in zip(heights, columns, words, strict=True):
        site = shown.sites[column]
        name = site.name if len(site.name) <= 20 else "…" + site.name[-19:]
        still = ", unchanged" if median[column] == 0 else ""
        text = f"{word}{name}\ndepth {site.depth}{still}"
        axes.text(1.012, height, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)


def _depth_bar(bar: Axes, shown: UpdateRatio) -> None:
    low, high = _depth_range(shown)
    bar.imshow(
        np.linspace(0, _TOP, 256)[:, None], aspect="auto", origin="lower", cmap=_MAP, vmin=0, vmax=1,
        extent=(0, 1, low - 0.5, high + 0.5),
    )  # fmt: skip
    bar.set_xticks([])
    bar.set_yticks(sorted({low, (low + high) // 2, high}))
    bar.yaxis.tick_right()
    bar.set_title("depth", fontsize=9, loc="left", pad=5)
    for spine in bar.spines.values():
        spine.set_visible(False)
