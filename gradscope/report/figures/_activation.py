"""One activation: its function, its slope, where it saturates, and where the pre-activations lie."""

from __future__ import annotations

import math
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gradscope.activations import Activation, get
from gradscope.report._activation_words import SOFTMAX_WIDTH, pre_activations, response, sentences
from gradscope.report._style import BLUE, FAINT, INK, SOFT, VERMILION, new_figure, styled

DENSITY, SATURATED = "#e4e4e4", "#9a9a9a"
PANEL = 2.0
"""Height of each of the two panels, inches."""


@styled
def activation_curve(activation: str | Activation) -> Figure:
    """The function above its slope against the pre-activation z, saturated regions hatched.

    Behind both lies the density of pre-activations N(0, 1). Softmax has no function of one number: z is then
    one logit less the log-sum-exp of the others, 256 units with N(0, 1) logits.
    """
    row = get(activation)
    text = "\n".join(textwrap.fill(sentence, 112) for sentence in sentences(row))
    head = 0.72 + 0.17 * (text.count("\n") + 1)  # inches; a line of text takes 0.17
    height = 0.85 + 2 * PANEL + 0.2 + head
    figure = new_figure(8.4, height)
    figure.text(0.09, 1 - 0.36 / height, row.name, fontsize=14, fontweight="bold")
    scheme = f"recommended weights: {row.scheme}"
    figure.text(0.975, 1 - 0.36 / height, scheme, ha="right", color=SOFT)
    figure.text(0.09, 1 - 0.55 / height, text, va="top", linespacing=1.3, fontsize=9)
    z = _grid(row)
    value, slope = response(row, z)
    top = figure.add_axes((0.09, (0.85 + PANEL + 0.2) / height, 0.885, PANEL / height))
    bottom = figure.add_axes((0.09, 0.85 / height, 0.885, PANEL / height))
    for axes, curve, colour, label in ((top, value, BLUE, "output f(z)"), (bottom, slope, VERMILION, "slope f′(z)")):
        _curve(axes, row, z, curve, colour, label)
    top.set_xticklabels([])
    bottom.set_xlabel("pre-activation z" if row.elementwise else "z: one logit less the log-sum-exp of the others")
    _legend(figure, row)
    return figure


def _grid(row: Activation) -> NDArray[np.float64]:
    """Wide enough for the pre-activations and for where the function saturates; no kink falls between points."""
    mean = pre_activations(row)[0]
    ends = [abs(end) for end in row.saturation if math.isfinite(end)]
    reach = min(12.0, max([4.5, *(1.25 * end for end in ends)]))
    low, high = min(-reach, mean - 4.5), max(reach, mean + 4.5)
    kinks = [k for kink in row.kinks if low < kink < high for k in np.nextafter(kink, (-np.inf, np.inf))]
    return np.unique(np.concatenate([np.linspace(low, high, 601), kinks]))


def _curve(
    axes: Axes, row: Activation, z: NDArray[np.float64], values: NDArray[np.float64], colour: str, label: str
) -> None:
    low, high = min(0.0, float(values.min())), float(values.max())
    pad = 0.08 * (high - low)
    axes.set_ylim(low - pad, high + 1.6 * pad)
    axes.set_xlim(float(z[0]), float(z[-1]))
    mean, std = pre_activations(row)
    bell = np.exp(-0.5 * ((z - mean) / std) ** 2)
    base = low - pad
    axes.fill_between(
        z, base, base + 0.5 * (high + 1.6 * pad - base) * bell, color=DENSITY, linewidth=0, label="density"
    )
    for lo, hi in ((z[0], row.saturation[0]), (row.saturation[1], z[-1])):
        if math.isfinite(lo) and math.isfinite(hi) and hi > lo:
            span = axes.axvspan(lo, hi, facecolor="none", edgecolor=SATURATED, hatch="///", linewidth=0)
            span.set_label("saturated")
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.plot(z, values, color=colour, linewidth=2.2, label=label)
    axes.set_ylabel(label, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))


def _legend(figure: Figure, row: Activation) -> None:
    handles: list[Line2D | Patch] = [Patch(facecolor=DENSITY)]
    labels = ["where pre-activations N(0, 1) lie"]
    if not row.elementwise:
        labels = [f"where the logits of {SOFTMAX_WIDTH} units lie, each N(0, 1)"]
    if row.saturates != "no":
        handles.append(Patch(facecolor="white", edgecolor=SATURATED, hatch="///", linewidth=0))
        labels.append("saturated: slope below 1 % of its largest")
    figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.08, 0.0), ncols=2, labelcolor=SOFT)
