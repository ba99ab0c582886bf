"""The plane of weights' and biases' variances: where gradients vanish, where they explode, and the line between."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke, withStroke
from numpy.typing import NDArray

from gradscope.report._style import INK, VERMILION, styled
from gradscope.report._theory_words import in_view, phase_words
from gradscope.report.figures._headed import MARGIN, Headed
from gradscope.theory import PhaseDiagram

SHORTEST, LONGEST = -0.5, 2.5
"""log10 of the depth scales at which the colours end: a third of a layer, three hundred layers."""
_TICKS = (1, 3, 10, 30, 100, 300)
_MARKERS = ("o", "s", "D", "^", "v")
_COLUMNS = 2
_AXES = (6.45, 3.7)
"""Width and height of the plane, inches."""


@styled
def phase_diagram(diagram: PhaseDiagram) -> Figure:
    """sigma_w to the right, sigma_b upward; the colour is log10 of the depth scale xi, in layers.

    The line chi = 1 is solid where lengths are kept on it and dotted where they are not. Hatched: lengths grow without
    end. The usual gains are points on the axis, since they go without biases; the layers given are dots.
    """
    entries = len(diagram.marks) + 2 + bool(diagram.grows.any()) + bool(diagram.layers.size)
    foot = 0.62 + 0.19 * math.ceil(entries / _COLUMNS)
    title = f"{diagram.activation.name}: where a gradient is kept"
    page = Headed(8.4, _AXES[1], foot, title, phase_words(diagram))
    axes = page.axes(MARGIN, 0.0, *_AXES)
    image = _plane(axes, diagram)
    handles: list[Line2D | Patch] = []
    _regions(axes, diagram)
    if diagram.grows.any():
        handles.append(_growing(axes, diagram))
    handles += _line(axes, diagram)
    handles += _points(axes, diagram)
    axes.set_xlim(diagram.sigma_w[0], diagram.sigma_w[-1])
    axes.set_ylim(0.0, diagram.sigma_b[-1])
    axes.set_xlabel("σ_w = √(fan_in · variance of a weight)")
    axes.set_ylabel("σ_b = √(variance of a bias)")
    bar = page.axes(MARGIN + _AXES[0] + 0.15, 0.0, 0.14, _AXES[1])
    page.figure.colorbar(image, cax=bar, extend="both", ticks=np.log10(_TICKS))
    bar.set_yticklabels([str(tick) for tick in _TICKS])
    bar.set_ylabel("depth scale 1/|ln χ|, in layers", fontsize=9)
    page.figure.legend(
        handles, [str(one.get_label()) for one in handles], loc="lower left",
        bbox_to_anchor=((MARGIN - 0.12) / page.width, 0.0), ncols=_COLUMNS, columnspacing=1.8,
    )  # fmt: skip
    return page.figure


def _plane(axes: Axes, diagram: PhaseDiagram) -> AxesImage:
    across, up = diagram.sigma_w, diagram.sigma_b
    dx, dy = across[1] - across[0], up[1] - up[0]
    with np.errstate(divide="ignore"):
        xi = np.log10(diagram.depth_scale)
    return axes.imshow(
        np.clip(xi, SHORTEST - 1.0, LONGEST + 1.0), cmap="cividis", norm=Normalize(SHORTEST, LONGEST),
        origin="lower", aspect="auto", interpolation="nearest", label="depth scale",
        extent=(across[0] - dx / 2, across[-1] + dx / 2, up[0] - dy / 2, up[-1] + dy / 2),
    )  # fmt: skip


def _regions(axes: Axes, diagram: PhaseDiagram) -> None:
    """The names of the two phases, in the middle of each."""
    sigma_w, sigma_b = np.meshgrid(diagram.sigma_w, diagram.sigma_b)
    for word, inside in (
        ("ordered:\ngradients vanish", diagram.chi < 1.0),
        ("chaotic:\ngradients explode", diagram.chi > 1.0),
    ):
        if inside.mean() > 0.05:
            x, y = float(sigma_w[inside].mean()), float(sigma_b[inside].mean())
            text = axes.text(x, y, word, color="white", fontsize=10.5, fontweight="bold", ha="center", va="center")
            text.set_path_effects([withStroke(linewidth=2.5, foreground=INK)])


def _growing(axes: Axes, diagram: PhaseDiagram) -> Patch:
    """Hatch where lengths grow without end: all that lies right of the first such point of a row."""
    grows = diagram.grows
    rows = grows.any(axis=1)
    first = diagram.sigma_w[grows.argmax(axis=1)]
    axes.fill_betweenx(
        diagram.sigma_b[rows], first[rows], diagram.sigma_w[-1], facecolor="none", edgecolor="white",
        hatch="///", linewidth=0, label="lengths grow without end",
    )  # fmt: skip
    return Patch(facecolor="#7d7c78", edgecolor="white", hatch="///", linewidth=0, label="lengths grow without end")


def _line(axes: Axes, diagram: PhaseDiagram) -> list[Line2D]:
    line, handles = diagram.line_in_view, list[Line2D]()
    kinds: list[tuple[NDArray[np.bool_], Any, str]] = [
        (line.attracts, "solid", "χ = 1, and lengths are kept"),
        (~line.attracts, (0, (1, 1.4)), "χ = 1, but lengths leave it"),
    ]
    for part, style, label in kinds:
        kept = in_view(diagram, part)
        if not kept.any():
            continue
        x, y = np.where(kept, line.sigma_w, np.nan), np.where(kept, line.sigma_b, np.nan)
        (drawn,) = axes.plot(x, y, color=INK, linewidth=2.2, linestyle=style, label=label, zorder=3)
        drawn.set_path_effects([Stroke(linewidth=4.2, foreground="white"), Normal()])
        handles.append(Line2D([], [], color=INK, linewidth=2.2, linestyle=style, label=label))
    return handles


def _points(axes: Axes, diagram: PhaseDiagram) -> list[Line2D]:
    handles = []
    for marker, mark in zip(_MARKERS, diagram.marks, strict=False):
        (point,) = axes.plot(
            [mark.sigma_w], [mark.sigma_b], marker, color="white", markersize=8, markeredgecolor=INK,
            markeredgewidth=1.3, clip_on=False, zorder=5, label=f"{mark.title}: {mark.sigma_w:.4g}",
        )  # fmt: skip
        handles.append(point)
    if diagram.layers.size:
        (dots,) = axes.plot(
            diagram.layers[:, 0], diagram.layers[:, 1], "o", color=VERMILION, markersize=5, markeredgecolor="white",
            markeredgewidth=0.8, clip_on=False, zorder=6, label=f"your {len(diagram.layers)} layers",
        )  # fmt: skip
        handles.append(dots)
    return handles
