"""Axes in decades: values are log10, labels are powers of ten.

The values stay logarithms because a forecast may leave float64 (weights N(0, 1), some hundred layers), and
because matplotlib's own log axis costs more time than all the rest of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from gradscope.report._style import FAINT, SOFT

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def power_of_ten(exponent: int) -> str:
    """A decade's label.

    >>> [power_of_ten(e) for e in (-30, -1, 0, 1, 2)]
    ['10⁻³⁰', '0.1', '1', '10', '100']
    """
    plain = {-2: "0.01", -1: "0.1", 0: "1", 1: "10", 2: "100"}
    return plain.get(exponent, "10" + str(exponent).translate(_SUPERSCRIPT))


def decade_ticks(low: float, high: float, most: int = 7) -> list[int]:
    """Whole decades between two log10 values, at most `most` of them, evenly spaced and including 1 if inside."""
    for step in _STEPS:
        ticks = range(math.ceil(low / step) * step, math.floor(high / step) * step + 1, step)
        if len(ticks) <= most:
            return list(ticks)
    return [math.ceil(low), math.floor(high)]


def log_ticks(low: float, high: float, most: int = 7) -> tuple[list[float], list[str]]:
    """Positions (log10) and labels between two log10 values: whole decades, and 2 and 5 times them where few fit.

    >>> log_ticks(-0.4, 1.1)[1]
    ['0.5', '1', '2', '5', '10']
    """
    if high - low > 2.2:
        ticks = decade_ticks(low, high, most)
        return [float(t) for t in ticks], [power_of_ten(t) for t in ticks]
    found = [
        (math.log10(digit) + decade, digit, decade)
        for decade in range(math.floor(low) - 1, math.ceil(high) + 1)
        for digit in (1, 2, 5)
        if low <= math.log10(digit) + decade <= high
    ]
    return [at for at, _, _ in found], [_short_label(digit, decade) for _, digit, decade in found]


def _short_label(digit: int, decade: int) -> str:
    if digit == 1:
        return power_of_ten(decade)
    return f"{digit * 10.0**decade:.3g}" if -3 < decade < 3 else f"{digit}×{power_of_ten(decade)}"


def span(*values: ArrayLike, least: float = 3.0, pad: float = 0.06) -> tuple[float, float]:
    """Limits around all finite log10 values, at least `least` decades apart."""
    flat = np.concatenate([np.ravel(np.asarray(v, dtype=np.float64)) for v in values])
    flat = flat[np.isfinite(flat)]
    if flat.size == 0:
        return -least / 2, least / 2
    low, high = float(flat.min()), float(flat.max())
    spare = max(0.0, least - (high - low)) / 2
    low, high = low - spare, high + spare
    return low - pad * (high - low), high + pad * (high - low)


def decade_axis(axes: Axes, low: float, high: float) -> None:
    """Make y an axis of log10 values: labels in powers of ten, faint lines at the labels."""
    ticks, labels = log_ticks(low, high)
    axis = axes.yaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(labels))
    axis.set_minor_locator(NullLocator())
    axis.grid(True, color=FAINT, linewidth=0.6)
    axes.set_ylim(low, high)


def depth_axis(axes: Axes, depths: NDArray[np.int64] | Iterable[int], label: str) -> None:
    """Make x an axis of whole depths with a label that says which way the signal flows."""
    values = np.asarray(list(depths))
    first, last = int(values.min()), int(values.max())
    step = next((s for s in _STEPS if (last - first) / s <= 8), _STEPS[-1])
    ticks = [first, *(t for t in range(0, last + 1, step) if t - first >= 0.6 * step)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([str(t) for t in ticks]))
    margin = max(0.5, 0.025 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    axes.set_xlabel(label)


def free_corner(axes: Axes, *curves: tuple[ArrayLike, ArrayLike], width: float = 0.46, height: float = 0.16) -> str:
    """The corner, as in `upper right`, whose box (fractions of the axes) the fewest points of the curves enter."""
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    x = np.concatenate([np.asarray(c[0], dtype=np.float64).ravel() for c in curves])
    y = np.concatenate([np.asarray(c[1], dtype=np.float64).ravel() for c in curves])
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = (x[keep] - x0) / (x1 - x0), (y[keep] - y0) / (y1 - y0)
    best, fewest = "upper right", math.inf
    for corner in ("upper right", "upper left", "lower left", "lower right"):
        inside_x = x > 1 - width if corner.endswith("right") else x < width
        inside_y = y > 1 - height if corner.startswith("upper") else y < height
        hits = int(np.count_nonzero(inside_x & inside_y))
        if hits < fewest:
            best, fewest = corner, hits
    return best


def corner_text(axes: Axes, corner: str, text: str, note: str, colour: str) -> None:
    """Put a few bold words, and a plain note under them, into a corner of the axes."""
    right, upper = corner.endswith("right"), corner.startswith("upper")
    x, side = (0.985, "right") if right else (0.02, "left")
    line = 0.062
    first = 0.975 if upper else 0.03 + (line if note else 0)
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": side, "va": "top" if upper else "bottom", "zorder": 5}
    axes.text(x, first, text, fontsize=10.5, fontweight="bold", color=colour, **place)
    if note:
        axes.text(x, first - line, note, fontsize=8.5, **place)


def top_note(figure: Figure, text: str) -> None:
    """Put small print, two lines at most, into the upper right corner of a figure."""
    if text:
        width, height = figure.get_size_inches()
        place: dict[str, Any] = {"ha": "right", "va": "top", "linespacing": 1.3}
        figure.text(1 - 0.2 / width, 1 - 0.2 / height, text, fontsize=8, color=SOFT, **place)
