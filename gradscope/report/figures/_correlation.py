"""The correlation map: what one more layer does to the correlation of two inputs."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradscope.report._style import BLUE, GREEN, SOFT, VERMILION, styled
from gradscope.report._theory_words import correlation_words
from gradscope.report.figures._headed import MARGIN, Headed
from gradscope.theory import CorrelationCurve, CorrelationCurves

_COLOURS = (BLUE, GREEN, VERMILION)
_STYLES = ((0, (5, 2)), "solid", (0, (5, 1.5, 1, 1.5)))
_SIDE = 4.3
"""Of the square, inches."""


@styled
def correlation_map(curves: CorrelationCurves) -> Figure:
    """c to the right, c' upward: one curve for each variance of the weights, the diagonal, and a point at each c*."""
    foot = 0.72 + 0.19 * (len(curves.curves) + 1)
    title = f"{curves.activation.name}: two inputs, one layer further"
    page = Headed(6.6, _SIDE, foot, title, correlation_words(curves))
    axes = page.axes(MARGIN + 0.1, 0.0, _SIDE, _SIDE)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, label="c′ = c: a correlation that stays")
    for curve, colour, style in zip(curves.curves, _COLOURS, _STYLES, strict=False):
        _draw(axes, curve, colour, style)
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(min(0.0, *(float(curve.after.min()) for curve in curves.curves), 0.0), 1.0)
    axes.set_xlabel("c, correlation of two inputs' pre-activations")
    axes.set_ylabel("c′, after one more layer")
    lines = [line for line in axes.lines if not str(line.get_label()).startswith(("_", "c*"))]
    page.figure.legend(
        lines, [str(line.get_label()) for line in lines], loc="lower left",
        bbox_to_anchor=((MARGIN - 0.12) / page.width, 0.0), handlelength=3.2,
    )  # fmt: skip
    return page.figure


def _draw(axes: Axes, curve: CorrelationCurve, colour: str, style: Any) -> None:
    label = (
        f"{curve.phase}: σ_w = {curve.sigma_w:.3g}, σ_b = {curve.sigma_b:.3g}, q = {curve.q:.3g},"
        f" χ = {curve.chi:.3g}, c* = {curve.fixed:.3g}"
    )
    axes.plot(curve.c, curve.after, color=colour, linewidth=2.2, linestyle=style, label=label, zorder=2)
    axes.plot(
        [curve.fixed], [curve.fixed], "o", color=colour, markersize=8, markeredgecolor="white", clip_on=False,
        zorder=3, label=f"c* of σ_w = {curve.sigma_w:.3g}",
    )  # fmt: skip
