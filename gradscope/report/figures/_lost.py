"""Sites of a profile that have no place on an axis of decades: marked at its edge, as what they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from gradscope.recording import Site
from gradscope.report._run_curves import Line
from gradscope.report._style import VERMILION

_KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("no gradient", {"marker": "v", "markerfacecolor": "white"}),
    ("exactly 0", {"marker": "v"}),
    ("NaN or infinite", {"marker": "x", "markeredgewidth": 1.4}),
)
_STYLE: dict[str, Any] = {"linestyle": "none", "color": VERMILION, "markersize": 6}


def mark_lost(axes: Axes, line: Line) -> None:
    """At the floor where no gradient came or every entry is 0, at the ceiling where nothing is finite."""
    low, high = axes.get_ylim()
    high -= 0.03 * (high - low)  # names stand above
    for label, look, sites in _of(line):
        height = high if look["marker"] == "x" else low
        depth = [site.depth for site in sites]
        axes.plot(depth, [height] * len(depth), label=label, clip_on=False, zorder=3.5, **_STYLE, **look)


def lost_entries(line: Line) -> list[tuple[Line2D, str]]:
    """Of the legend."""
    return [(Line2D([], [], **_STYLE, **look), label) for label, look, _ in _of(line)]


def _of(line: Line) -> Iterator[tuple[str, dict[str, Any], tuple[Site, ...]]]:
    for (name, look), sites in zip(_KINDS, (line.silent, line.zero, line.nonfinite), strict=True):
        shown = tuple(site for site in sites if site.param is None or len(site.shape) >= 2)  # biases lie at their depth
        if shown:
            noun = "weight" if shown[0].param else "site"
            yield f"{name}: {len(shown)} {noun}{'' if len(shown) == 1 else 's'}", look, shown
