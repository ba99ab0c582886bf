"""How fast each layer learns: the update-to-weight ratio over the steps of a run."""

from __future__ import annotations

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
from gradscope.report.figures._text import LINE, wrapped

RULE_OF_THUMB = -3.0
"""log10 of the ratio that practitioners often aim at; a mark for the eye, not a limit."""
_MAP = "viridis"
_MOST_STILL = 6
_TOP = 0.88  # viridis' last tenth is too pale for a line on white


@styled
def update_to_weight(recording: Recording, shown: UpdateRatio | None = None) -> Figure:
    """rms(update) / rms(weight) over steps, one line a weight of two or more dimensions, coloured by depth.

    y is log10 of the ratio, so that a weight that does not change has no line. The fastest and the slowest weight
    are named at their line's end and drawn heavier, and those that do not change below them. Of a long run 1,000
    steps are drawn, and those that were skipped or not finite; small print says so. `shown` is what `update_ratio`
    gave, where that is known already.
    """
    shown = shown or update_ratio(recording)
    if not shown.known:
        raise ValueError("signal='update' has no data in this recording: no optimizer step was observed")
    height = 5.4
    figure = new_figure(9.6, height)
    figure.text(0.075, 1 - 0.38 / height, "How fast each layer learns", fontsize=14, fontweight="bold")
    sentence = wrapped(figure, update_sentence(shown), 8.65)
    head = 1.03 + LINE * (sentence.count("\n") + 1)
    figure.text(0.075, 1 - 0.58 / height, sentence, va="top", linespacing=1.3)
    top_note(figure, small_print(recording, "rms", shown.drawn))
    axes = figure.add_axes((0.075, 0.62 / height, 0.70, (height - 0.62 - head) / height))
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
    _depth_bar(figure.add_axes((0.94, 0.62 / height, 0.014, (height - 0.62 - head) / height)), shown)
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
    """At the right: the fastest and the slowest weight, and at the floor those that do not change."""
    low, high = axes.get_ylim()
    line = 0.05 * (high - low)
    words = ("fastest\n", "slowest\n") if len(shown.extremes) == 2 else ("",) * len(shown.extremes)
    blocks = []
    for column, word in zip(shown.extremes, words, strict=True):
        end = log10(shown.ratio[:, column])
        depth = shown.sites[column].depth
        blocks.append((float(end[np.isfinite(end)][-1]), f"{word}{_short(shown.sites[column].name)}\ndepth {depth}"))
    if shown.still:
        blocks.append((low, _unchanged(shown)))
    blocks.sort(key=lambda block: block[0])
    floor = low
    for height, text in blocks:  # from below, none on another
        half = line * (text.count("\n") + 1) / 2
        height = max(height, floor + half)
        floor = height + half
        axes.text(1.012, height, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)


def _unchanged(shown: UpdateRatio) -> str:
    sites = [shown.sites[i] for i in shown.still]
    names = [_short(site.name) for site in sites[:_MOST_STILL]]
    more = [f"and {len(sites) - _MOST_STILL} more"] if len(sites) > _MOST_STILL else []
    return "\n".join([f"{len(sites)} unchanged" if len(sites) > 1 else "unchanged", *names, *more])


def _short(name: str) -> str:
    return name if len(name) <= 20 else "…" + name[-19:]


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
