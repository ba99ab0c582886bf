"""The gains of all activations in one picture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gradscope.report._style import BLUE, FAINT, INK, SOFT, VERMILION, styled
from gradscope.report.figures._axes import log_ticks
from gradscope.report.figures._headed import MARGIN, Headed
from gradscope.theory import GainTable

_ROW = 0.25
_NAMES = 1.25
"""Width of the names, inches beyond the margin."""
_SENTENCES = (
    "With weights of variance gain²/fan_in and pre-activations N(0, 1) the forward gain keeps the signal's mean square,"
    " with gain²/fan_out the backward gain keeps the gradient's. Where the two lie apart, no weights alone keep both.",
)


@styled
def gains(table: GainTable) -> Figure:
    """A row an activation, by the forward gain; x is log10 of the gain. Activations that were chosen are bold."""
    rows = table.rows
    body = _ROW * len(rows)
    page = Headed(8.4, body, 1.0, "Gains at q = 1", _SENTENCES)
    axes = page.axes(MARGIN + _NAMES, 0.0, 8.4 - MARGIN - _NAMES - 1.35, body)
    at = np.arange(len(rows))
    forward = np.log10([row.forward_gain for row in rows])
    backward = np.log10([row.backward_gain for row in rows])
    axes.hlines(at, np.minimum(forward, backward), np.maximum(forward, backward), color=SOFT, linewidth=1.2, zorder=1)
    theirs = [(i, math.log10(row.torch_gain)) for i, row in enumerate(rows) if row.torch_gain is not None]
    axes.plot(
        [x for _, x in theirs], [i for i, _ in theirs], "|", color=INK, markersize=13, markeredgewidth=1.8,
        linestyle="none", label="torch.nn.init.calculate_gain", zorder=2,
    )  # fmt: skip
    axes.plot(forward, at, "o", color=BLUE, markersize=7, label="forward, 1/√E[f²]", zorder=3)
    axes.plot(backward, at, "s", color=VERMILION, markersize=6, label="backward, 1/√E[f′²]", zorder=3)
    axes.set_yticks(at, [row.name for row in rows])
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if row.name in table.chosen else "normal")
    everything = np.concatenate([forward, backward, [x for _, x in theirs]])
    low, high = float(everything.min()) - 0.04, float(everything.max()) + 0.04
    axes.set_xlim(low, high)
    axes.set_xticks(*log_ticks(low, high))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(True, axis="x", color=FAINT, linewidth=0.6)
    axes.set_xlabel("gain")
    axes.tick_params(axis="y", length=0)
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8.5}
    for x, head, name in ((1.015, "forward", "forward_gain"), (1.125, "backward", "backward_gain")):
        axes.text(x, -0.95, head, color=SOFT, **beside)
        for i, row in enumerate(rows):
            weight = "bold" if row.name in table.chosen else "normal"
            axes.text(x, i, f"{getattr(row, name):.4f}", fontweight=weight, **beside)
    page.figure.legend(loc="lower left", bbox_to_anchor=((MARGIN - 0.12) / page.width, 0.0), ncols=3)
    return page.figure
