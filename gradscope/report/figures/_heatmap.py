"""A recorded signal at every site and step: where and when it dies or blows up."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gradscope.diagnosis import Findings
from gradscope.recording import Recording, Signal
from gradscope.report._run_curves import StepMap, step_map
from gradscope.report._style import INK, SOFT, VERMILION, new_figure, styled
from gradscope.report._words import NAMES, map_sentence, sampled, small_print
from gradscope.report.figures._axes import log_ticks, top_note
from gradscope.report.figures._text import LINE, wrapped

_NOTHING, _ZERO = "#e6e6e6", "#000000"
_HATCH = "//////"
_MOST_NAMES, _LONGEST_NAME = 42, 26
_MOST_RECTANGLES = 2000  # a hatch costs time; cells without one are still white


@styled
def depth_step_heatmap(
    recording: Recording, signal: Signal, shown: StepMap | None = None, findings: Findings | None = None
) -> Figure:
    """log10 of rms of one signal, sites in order of execution upward, steps to the right.

    Where a cell has a NaN or an infinity it is hatched, and its step is crossed above; cells of exact zeros are
    black, cells without data grey. Skipped steps are marked above. Of a long run 1,000 steps are shown, and those that
    were skipped or not finite; small print says so. With `findings`, what `diagnose` gave, the first sick site of each
    is crossed at the step from which it holds. `shown` is what `step_map` gave, where that is known already.
    """
    shown = shown or step_map(recording, signal, findings)
    if not shown.sites or not len(shown.steps):
        raise ValueError(f"signal={signal!r} has no data in this recording")
    named = len(shown.sites) <= _MOST_NAMES
    height = 5.4 if len(shown.sites) <= 30 else 6.4
    longest = max(len(_short(s.name)) for s in shown.sites) if named else 4
    left = 0.55 + 0.075 * longest
    figure = new_figure(9.6, height)
    sentence = wrapped(figure, map_sentence(shown), 9.2)
    head = 0.98 + LINE * (sentence.count("\n") + 1)
    figure.text(0.2 / 9.6, 1 - 0.38 / height, f"{NAMES[signal]} over the run", fontsize=14, fontweight="bold")
    figure.text(0.2 / 9.6, 1 - 0.58 / height, sentence, va="top", linespacing=1.3)
    top_note(figure, small_print(recording, "rms", shown.drawn))
    entries = _entries(shown)
    bottom = 0.95 if entries else 0.6
    up = height - bottom - head
    axes = figure.add_axes((left / 9.6, bottom / height, (8.55 - left) / 9.6, up / height))
    norm = _norm(shown)
    axes.pcolorfast(_edges(shown.steps), np.arange(len(shown.sites) + 1) - 0.5, _colours(shown, norm))
    _hatch(axes, shown)
    _ticks(axes, shown, named)
    _marks(axes, shown)
    bar = figure.add_axes((8.68 / 9.6, bottom / height, 0.14 / 9.6, up / height))
    _colour_bar(bar, norm, f"rms{sampled(recording, 'rms')}".replace(" ", "\n"))
    if entries:
        handles, labels = zip(*entries, strict=True)
        anchor = (left / 9.6 - 0.01, 0.0)
        figure.legend(handles, labels, loc="lower left", bbox_to_anchor=anchor, ncols=4, labelcolor=INK)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "…" + name[-(_LONGEST_NAME - 1) :]


def _norm(shown: StepMap) -> Normalize:
    finite = shown.log10_rms[np.isfinite(shown.log10_rms)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    spare = max(0.0, 1.0 - (high - low)) / 2  # a signal that hardly moves should look so
    return Normalize(low - spare, high + spare)


def _colours(shown: StepMap, norm: Normalize) -> NDArray[np.float64]:
    """RGBA `(sites, steps, 4)`."""
    colours = matplotlib.colormaps["cividis"](norm(np.nan_to_num(shown.log10_rms)))
    colours[np.isnan(shown.log10_rms)] = to_rgba(_NOTHING)
    colours[shown.zero] = to_rgba(_ZERO)
    colours[shown.nonfinite] = to_rgba("white")
    return np.asarray(colours.transpose(1, 0, 2), dtype=np.float64)


def _edges(steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Columns meet halfway between the recorded steps; at a change of pace no column is wider than its own pace."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[steps[0] - (middle[0] - steps[0])], middle, [steps[-1] + (steps[-1] - middle[-1])]])


def _hatch(axes: Axes, shown: StepMap) -> None:
    """Hatch the non-finite cells: one rectangle for each run of steps that neighbouring sites share."""
    edges, rows = _edges(shown.steps), len(shown.sites)
    started: dict[tuple[int, int], int] = {}
    rectangles = []
    for row in range(rows + 1):
        runs = _runs(shown.nonfinite[:, row]) if row < rows else set()
        for run in [run for run in started if run not in runs]:
            (x0, x1), y0, y1 = edges[list(run)], started.pop(run) - 0.5, row - 0.5
            rectangles.append([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        for run in runs:
            started.setdefault(run, row)
    if rectangles:
        style: dict[str, Any] = {"facecolor": "none", "edgecolor": VERMILION, "hatch": _HATCH, "linewidth": 0}
        axes.add_collection(PolyCollection(rectangles[:_MOST_RECTANGLES], **style), autolim=False)


def _runs(sick: NDArray[np.bool_]) -> set[tuple[int, int]]:
    """(start, stop) of each run of true values."""
    change = np.flatnonzero(np.diff(np.concatenate([[False], sick, [False]]).astype(np.int8)))
    return {(int(start), int(stop)) for start, stop in change.reshape(-1, 2)}


def _ticks(axes: Axes, shown: StepMap, named: bool) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))  # there is no step 2.5
    rows = len(shown.sites)
    if named:
        axes.set_yticks(range(rows), [_short(s.name) for s in shown.sites], fontsize=7.5 if rows > 24 else 8.5)
    else:
        at = np.unique(np.linspace(0, rows - 1, 9).round().astype(int))
        axes.set_yticks(at, [str(shown.sites[i].depth) for i in at])
        axes.set_ylabel("depth, in order of execution")
    axes.tick_params(axis="y", length=2)


def _marks(axes: Axes, shown: StepMap) -> None:
    above = len(shown.sites) - 0.5 + 0.014 * len(shown.sites)
    for mask, marker, colour, label in (
        (shown.nonfinite.any(axis=1), "x", VERMILION, "non-finite"),
        (shown.skipped, "v", SOFT, "skipped"),
    ):
        steps = shown.steps[mask]
        if len(steps):
            axes.plot(steps, np.full(len(steps), above), marker, color=colour, markersize=4, clip_on=False, label=label)
    for moment in shown.moments:
        axes.plot([moment.steps[0]], [above], "v", color=VERMILION, markersize=7, clip_on=False, label=moment.rule)
    for one in shown.verdicts:
        at = int(np.searchsorted(shown.steps, one.since or 0))
        step, row = shown.steps[min(at, len(shown.steps) - 1)], shown.sites.index(one.site)
        style: dict[str, Any] = {"color": VERMILION, "markersize": 9, "markeredgecolor": "white", "clip_on": False}
        axes.plot([step], [row], "X", label=f"first sick site: {one.label}", **style)
    axes.set_ylim(-0.5, len(shown.sites) - 0.5)


def _colour_bar(bar: Axes, norm: Normalize, title: str) -> None:
    low, high = float(norm.vmin or 0), float(norm.vmax or 0)
    bar.imshow(np.linspace(0, 1, 256)[:, None], aspect="auto", origin="lower", cmap="cividis", extent=(0, 1, low, high))
    ticks, labels = log_ticks(low, high, 9)
    bar.set_yticks(ticks, labels)
    bar.yaxis.tick_right()
    bar.set_xticks([])
    for spine in bar.spines.values():
        spine.set_visible(False)
    bar.set_title(title, fontsize=9, loc="left", pad=5)


def _entries(shown: StepMap) -> list[tuple[Patch | Line2D, str]]:
    """What the legend explains."""
    entries: list[tuple[Patch | Line2D, str]] = []
    if shown.nonfinite.any():
        entries.append(
            (
                Patch(facecolor="white", edgecolor=VERMILION, hatch=_HATCH, linewidth=0),
                "some entry is NaN or infinite (✕ above: in that step)",
            )
        )
    if shown.zero.any():
        entries.append((Patch(facecolor=_ZERO), "every entry is exactly 0"))
    if (np.isnan(shown.log10_rms) & ~shown.nonfinite & ~shown.zero).any():
        nothing = "no gradient" if shown.signal in ("activation_grad", "weight_grad") else "no data"
        entries.append((Patch(facecolor=_NOTHING), nothing))
    if shown.verdicts:
        cross: dict[str, Any] = {"linestyle": "none", "marker": "X", "markersize": 8, "markeredgecolor": "white"}
        entries.append((Line2D([], [], color=VERMILION, **cross), "first sick site, where it begins"))
    for rule in dict.fromkeys(one.rule for one in shown.moments):
        entries.append((Line2D([], [], color=VERMILION, linestyle="none", marker="v", markersize=7), rule))
    if shown.skipped.any():
        entries.append((Line2D([], [], color=SOFT, linestyle="none", marker="v", markersize=5), "step skipped"))
    return entries
