"""A figure with a head: its title, and below it what it says in sentences."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradscope.report._style import new_figure

MARGIN = 0.75
"""Left of the axes and of the head, inches."""
_PER_INCH = 14.4
"""Letters of a sentence in an inch."""


class Headed:
    """A figure whose parts are placed in inches: a head, a body for axes, and a foot for labels and legend.

    Args:
        width: of the figure, inches.
        body: height between head and foot, inches.
        foot: height below the axes, inches.
        title: in bold.
        sentences: below it, each on lines of its own.
    """

    def __init__(self, width: float, body: float, foot: float, title: str, sentences: Sequence[str]) -> None:
        letters = int(_PER_INCH * (width - MARGIN - 0.25))
        text = "\n".join(textwrap.fill(sentence, letters) for sentence in sentences)
        lines = text.count("\n") + 1 if text else 0
        self.width, self.height, self._foot = width, foot + body + 0.72 + 0.17 * lines, foot
        self.figure: Figure = new_figure(width, self.height)
        left, top = MARGIN / width, self.height
        self.figure.text(left, 1 - 0.36 / top, title, fontsize=14, fontweight="bold")
        self.figure.text(left, 1 - 0.55 / top, text, va="top", linespacing=1.3, fontsize=9)

    def axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        """Axes whose lower left corner is so many inches from the figure's left and from the foot's top."""
        return self.figure.add_axes(
            (left / self.width, (self._foot + bottom) / self.height, width / self.width, height / self.height)
        )
