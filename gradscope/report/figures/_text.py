"""Sentences on a figure, broken where they would leave it: by the letters' own widths, not by their number."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from gradscope.report._style import DPI

LINE = 0.17
"""Height of a line of a sentence, inches."""


def wrapped(figure: Figure, text: str, inches: float, size: float = 9.5) -> str:
    """The text with line breaks between words, so that no line is wider than so many inches at a size in points."""
    canvas: Any = figure.canvas  # Agg's, of which all our figures are
    measure, font = canvas.get_renderer().get_text_width_height_descent, FontProperties(size=size)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and measure(longer, font, False)[0] > inches * DPI:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)
