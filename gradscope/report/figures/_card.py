"""An activation's card as one picture: function, gains and slopes against the length, fates over depth, numbers."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gradscope.report._style import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, SOFT, VERMILION, styled
from gradscope.report._theory_words import card_rows
from gradscope.report.figures._activation import DENSITY
from gradscope.report.figures._axes import decade_axis, depth_axis, log_ticks, span
from gradscope.report.figures._headed import MARGIN, Headed
from gradscope.theory import CardCurves

Array = NDArray[np.float64]

_WIDTH, _PANEL, _GAP = 11.6, (3.0, 2.1), (0.72, 0.98)
"""Of the figure, of each panel, and between panels, inches."""
_BESIDE = 1e-6
"""So close to a kink, on both sides, the slope is drawn: a jump is upright."""
_FARTHEST = 2.5
"""Decades to either side of 1 that the panel of chi and of the length slope shows."""
_DEEPEST = 45.0
"""Decades that a fate's panel shows: what float32 holds."""
_FATES = (
    (INK, "solid", 2.6),
    (BLUE, (0, (6, 2)), 2.2),
    (ORANGE, (0, (2, 1.5)), 2.2),
    (GREEN, (0, (5, 1.5, 1, 1.5)), 1.8),
    (PURPLE, (0, (1, 1)), 1.8),
)
"""Colour, dashes and width of each gain's curve; where two are the same, the later lies on the wider one."""


@styled
def activation_card(curves: CardCurves) -> Figure:
    """Six panels; lengths q, gains, slopes, and the profiles over depth are on axes of log10.

    Above: the function and its slope with the density of N(0, q) behind them, the gains, and chi with the length map's
    slope, both against q. Below: log10 of the length and of the gradient's mean square layer by layer under the gains
    in common use, and the card's numbers.
    """
    card = curves.card
    title = f"{card.activation.name}, behind pre-activations of mean square q = {card.q:g}"
    body = 2 * _PANEL[1] + _GAP[1] + 0.25
    page = Headed(_WIDTH, body, 1.12, title, card.advice)
    lefts = [MARGIN + i * (_PANEL[0] + _GAP[0]) for i in range(3)]
    upper, lower = _PANEL[1] + _GAP[1], 0.0
    _function(page.axes(lefts[0], upper, *_PANEL), curves)
    _gains(page.axes(lefts[1], upper, *_PANEL), curves)
    _slopes(page.axes(lefts[2], upper, *_PANEL), curves)
    _fates(page.axes(lefts[0], lower, *_PANEL), curves, "log10_q", "length: mean square forward", "q")
    _fates(page.axes(lefts[1], lower, *_PANEL), curves, "log10_p", "gradient's mean square, from the output", "p")
    _numbers(page.axes(lefts[2] - 0.35, lower, _PANEL[0] + 0.35, _PANEL[1]), curves)
    handles, labels = page.figure.axes[3].get_legend_handles_labels()
    page.figure.legend(
        handles, labels, loc="lower left", bbox_to_anchor=((MARGIN - 0.12) / _WIDTH, 0.0), ncols=3, handlelength=3.4
    )
    return page.figure


def _function(axes: Axes, curves: CardCurves) -> None:
    row, q = curves.card.activation, curves.card.q
    reach = 4.5 * math.sqrt(q)
    kinks = [k for kink in row.kinks if abs(kink) < reach for k in (kink - _BESIDE, kink + _BESIDE)]
    z = np.unique(np.concatenate([np.linspace(-reach, reach, 401), kinks]))
    value, slope = row.function(z), row.derivative(z)
    low, high = float(min(value.min(), slope.min(), 0.0)), float(max(value.max(), slope.max()))
    pad = 0.06 * (high - low)
    bell = np.exp(-0.5 * z**2 / q)
    axes.fill_between(z, low - pad, low - pad + 0.5 * (high - low) * bell, color=DENSITY, linewidth=0, label="density")
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.plot(z, value, color=BLUE, linewidth=2, label="f(z)")
    axes.plot(z, slope, color=VERMILION, linewidth=1.8, linestyle=(0, (4, 1.5)), label="f′(z)")
    axes.set_xlim(-reach, reach)
    axes.set_ylim(low - pad, high + 3 * pad)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_xlabel("pre-activation z")
    _head(axes, f"function and slope over N(0, {curves.card.q:g})")
    axes.legend(loc="upper left", ncols=3, handlelength=1.6, columnspacing=1.0, borderaxespad=0.1)


def _gains(axes: Axes, curves: CardCurves) -> None:
    forward, backward = np.log10(curves.forward_gain), np.log10(curves.backward_gain)
    decade_axis(axes, *span(forward, backward, least=0.7))
    _lengths(axes, curves)
    at = np.log10(curves.q)
    axes.plot(at, forward, color=BLUE, linewidth=2, label="forward", snap=False)
    axes.plot(at, backward, color=VERMILION, linewidth=1.8, linestyle=(0, (4, 1.5)), label="backward", snap=False)
    _head(axes, "gain")
    axes.legend(loc="best", handlelength=1.8)


def _slopes(axes: Axes, curves: CardCurves) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        chi, slope = np.log10(curves.chi), np.log10(curves.length_slope)
    shown = [np.clip(one, -_FARTHEST, _FARTHEST) for one in (chi, slope, np.zeros(1))]
    decade_axis(axes, *span(*shown, least=0.9))
    _lengths(axes, curves)
    axes.axhline(0, color=INK, linewidth=0.8, label="_kept")
    at = np.log10(curves.q)
    axes.plot(at, slope, color=BLUE, linewidth=2, label="V′, a length's deviation", snap=False)
    axes.plot(at, chi, color=VERMILION, linewidth=1.8, linestyle=(0, (4, 1.5)), label="χ, gradient", snap=False)
    _head(axes, "factor per layer under the forward gain")
    axes.legend(loc="best", handlelength=1.8)


def _lengths(axes: Axes, curves: CardCurves) -> None:
    """Make x an axis of log10 q and mark the card's own."""
    low, high = float(np.log10(curves.q[0])), float(np.log10(curves.q[-1]))
    axes.set_xlim(low, high)
    axes.set_xticks(*log_ticks(low, high, 5))
    axes.axvline(math.log10(curves.card.q), color=FAINT, linewidth=1.2, zorder=0)
    axes.set_xlabel("q, mean square of the pre-activations")


def _fates(axes: Axes, curves: CardCurves, which: str, title: str, label: str) -> None:
    profiles: list[Array] = [getattr(fate, which) for fate in curves.fates]
    decade_axis(axes, *span(*(np.clip(one, -_DEEPEST, _DEEPEST) for one in profiles), least=2.0))
    depth = len(profiles[0])
    depth_axis(axes, range(1, depth + 1), "layer")
    for fate, profile, (colour, dashes, width) in zip(curves.fates, profiles, _FATES, strict=False):
        axes.plot(
            np.arange(1, depth + 1), profile, color=colour, linestyle=dashes, linewidth=width,
            label=f"{fate.title}: {fate.gain:.4g}",
        )  # fmt: skip
    axes.set_ylabel(label)
    _head(axes, title)


def _numbers(axes: Axes, curves: CardCurves) -> None:
    axes.set_axis_off()
    _head(axes, "numbers")
    for i, (left, right) in enumerate(card_rows(curves.card)):
        at = 0.95 - i * 0.105
        axes.text(0.0, at, left, transform=axes.transAxes, va="center", fontsize=8.2, color=SOFT)
        axes.text(0.56, at, right, transform=axes.transAxes, va="center", fontsize=8.2)


def _head(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=9.5, fontweight="bold")
