"""The first sick sites on a profile: a cross each, with words at the side where they cover least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from gradscope.report._run_curves import Line, log10
from gradscope.report._style import DPI, INK

_SIZE, _LONGEST = 8.5, 70
_LETTER, _LINE = 0.56, 1.5
"""Width of a letter and height of a line, in sizes of the font."""
_AWAY, _APART = 7, 10
"""From the mark to the words, sideways and up or down, points."""


def mark_verdicts(axes: Axes, lines: Sequence[Line]) -> None:
    """Cross and name the first sick sites of each line, once the lines are drawn; of one site the worst finding."""
    low, high = axes.get_ylim()
    marks = [(line, one) for line in lines for one in {v.site: v for v in reversed(line.verdicts)}.values()]
    style: dict[str, Any] = {"markersize": 9, "markeredgecolor": "white", "clip_on": False, "zorder": 4}
    places = []
    for line, one in marks:
        values = dict(zip(line.profile.sites, log10(line.profile.values).tolist(), strict=True))
        height = values.get(one.site, np.nan)
        height = high if one.site in line.nonfinite else height if np.isfinite(height) else low  # 0, or no gradient
        places.append((float(one.site.depth), min(height, high)))
        x, y = places[-1]
        axes.plot([x], [y], "X", color=INK, label=f"first sick site: {one.label}", **style)
    for (_, one), place in zip(marks, places, strict=True):
        _call_out(axes, *place, _short(f"first sick site: {one.label}"))


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else "…" + label[-(_LONGEST - 1) :]


def _call_out(axes: Axes, x: float, y: float, text: str) -> None:
    """Name a mark: of the four corners around it the words go to that where they stay inside and cross fewest lines."""
    width, height = axes.bbox.width * 72 / DPI, axes.bbox.height * 72 / DPI
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    at = np.array([(x - x0) / (x1 - x0) * width, (y - y0) / (y1 - y0) * height])
    points = np.concatenate([np.zeros((0, 2)), *_points(axes)])
    points = (points - (x0, y0)) / (x1 - x0, y1 - y0) * (width, height)
    box = np.array([len(text) * _LETTER * _SIZE, _LINE * _SIZE])

    def cost(side: tuple[int, int]) -> float:
        start = at + np.array(side) * (_AWAY, _APART)
        low, high = np.minimum(start, start + side * box), np.maximum(start, start + side * box)
        outside = np.maximum(0, -low).sum() + np.maximum(0, high - (width, height)).sum()
        return float(1e3 * outside + ((points >= low) & (points <= high)).all(axis=1).sum())

    right, up = min(product((1, -1), (1, -1)), key=cost)
    axes.annotate(
        text,
        (x, y),
        (right * _AWAY, up * _APART),
        textcoords="offset points",
        ha="left" if right > 0 else "right",
        va="bottom" if up > 0 else "top",
        fontsize=_SIZE,
        zorder=5,
    )


def _points(axes: Axes) -> Iterator[NDArray[np.float64]]:
    """Of the lines drawn, close enough to each other that none slips through a box."""
    for line in axes.lines:
        x, y = (np.asarray(part, dtype=np.float64) for part in line.get_data())
        known = np.isfinite(x) & np.isfinite(y)
        x, y = x[known], y[known]
        if line.get_linestyle() == "None" or len(x) < 2:
            yield np.column_stack([x, y])
        else:
            fine = np.linspace(0, len(x) - 1, 40 * len(x))
            yield np.column_stack([np.interp(fine, np.arange(len(x)), part) for part in (x, y)])
