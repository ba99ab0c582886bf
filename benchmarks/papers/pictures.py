"""One look for all pictures of the gallery: a heading, a line under it, panels side by side."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradscope.report._style import FAINT, SOFT, new_figure

PANEL, HEIGHT = 4.1, 3.7
"""Inches."""

DASHED = (0, (5, 3))
"""The line style of theory, everywhere."""


def panels(title: str, note: str, *headings: str) -> tuple[Figure, list[Axes]]:
    """A figure with one panel for each heading."""
    width = 0.35 + (PANEL + 0.35) * len(headings)
    figure = new_figure(width, HEIGHT)
    figure.text(0.2 / width, 1 - 0.3 / HEIGHT, title, fontsize=12, fontweight="bold")
    figure.text(0.2 / width, 1 - 0.52 / HEIGHT, note, fontsize=8.5, color=SOFT)
    found = []
    for i, heading in enumerate(headings):
        left = 0.85 + i * (PANEL + 0.35)
        axes = figure.add_axes((left / width, 0.55 / HEIGHT, (PANEL - 0.55) / width, (HEIGHT - 1.5) / HEIGHT))
        axes.set_title(heading, fontsize=9.5)
        axes.grid(True, color=FAINT, linewidth=0.6)
        found.append(axes)
    return figure, found
