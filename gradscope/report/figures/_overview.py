"""The sweep on one page: decades per layer of every pair, forward and backward."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle

from gradscope import activations
from gradscope.recording import SweepCell
from gradscope.report._curves import DIRECTIONS, Direction
from gradscope.report._passage import passage
from gradscope.report._style import INK, SOFT, diverging, new_figure, styled

CLIP = 0.5
"""The colours end at this many decades per layer: 25 decades over 50 layers are lost, however much faster it goes."""
CELL = (0.62, 0.42)
"""Width and height of a cell, inches."""


@styled
def overview(cells: tuple[SweepCell, ...]) -> Figure:
    """Two heat maps init × activation of decades per layer, forward (pre-activation) and backward (its gradient).

    The number is printed in each cell; a frame marks each activation's recommended scheme, a small number
    below says at which layer float32 dies. All cells have one depth and one width.
    """
    inits = list(dict.fromkeys(c.init for c in cells))
    names = list(dict.fromkeys(c.activation for c in cells))
    left, bottom, gap = 1.35, 0.5, 0.35
    map_width, map_height = CELL[0] * len(names), CELL[1] * len(inits)
    width = max(left + 2 * map_width + gap + 1.0, 9.9)
    height = bottom + map_height + 1.85
    figure = new_figure(width, height)
    first = cells[0]
    unit = "channels" if first.family == "conv" else "units"
    figure.text(0.2 / width, 1 - 0.36 / height, "Decades per layer", fontsize=14, fontweight="bold")
    explain = (
        f"how fast the signal grows (+) or shrinks (−) on its way through {first.depth} layers of {first.width} {unit};"
        " 0 keeps it, ±1 is a factor of ten at every layer"
    )
    figure.text(0.2 / width, 1 - 0.62 / height, explain, color=SOFT)
    for side, direction in enumerate(DIRECTIONS):
        x = left + side * (map_width + gap)
        axes = figure.add_axes((x / width, bottom / height, map_width / width, map_height / height))
        image = _heat_map(axes, cells, inits, names, direction)
        if side:
            axes.set_yticklabels([])
    bar = figure.add_axes(((x + map_width + 0.2) / width, bottom / height, 0.14 / width, map_height / height))
    figure.colorbar(image, cax=bar, extend="both", ticks=(-CLIP, -CLIP / 2, 0, CLIP / 2, CLIP))
    bar.set_yticklabels([f"≤ −{CLIP}", f"−{CLIP / 2}", "0", f"+{CLIP / 2}", f"≥ +{CLIP}"], fontsize=8)
    _key(figure, width, height)
    return figure


def _heat_map(
    axes: Axes, cells: tuple[SweepCell, ...], inits: list[str], names: list[str], direction: Direction
) -> AxesImage:
    values = np.full((len(inits), len(names)), np.nan)
    ways = [passage(cell, direction) for cell in cells]
    for cell, way in zip(cells, ways, strict=True):
        values[inits.index(cell.init), names.index(cell.activation)] = way.decades_per_layer
    image = axes.imshow(values, cmap=diverging(), norm=Normalize(-CLIP, CLIP), aspect="auto", interpolation="nearest")
    for cell, way in zip(cells, ways, strict=True):
        row, column = inits.index(cell.init), names.index(cell.activation)
        strong = abs(values[row, column]) > 0.62 * CLIP
        _number(axes, column, row, values[row, column], way.dies_at, "white" if strong else INK)
        if activations.get(cell.activation).scheme == cell.init:
            frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=2, clip_on=False)
            frame.set_gid("recommended")
            axes.add_patch(frame)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(inits)), inits)
    axes.tick_params(length=0, pad=4)
    for spine in axes.spines.values():
        spine.set_visible(False)
    head = "Forward: pre-activation" if direction == "forward" else "Backward: gradient of the pre-activation"
    head = head if len(names) > 2 else head.partition(":")[0]  # else the two would meet
    axes.text(0, 1 + 0.78 / (CELL[1] * len(inits)), head, transform=axes.transAxes, fontweight="bold", fontsize=10.5)
    axes.set_xticks(np.arange(1, len(names)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(inits)) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    return image


def _number(axes: Axes, x: int, y: int, value: float, dead: int | None, colour: str) -> None:
    text = "–" if not np.isfinite(value) else f"{value:+.2f}".replace("-", "−")
    text = text.replace("+0.00", "0.00").replace("−0.00", "0.00")
    axes.text(x, y - (0.14 if dead else 0), text, ha="center", va="center", color=colour, fontsize=9)
    if dead:
        axes.text(x, y + 0.27, f"✕ {dead}", ha="center", va="center", color=colour, fontsize=7)


def _key(figure: Figure, width: float, height: float) -> None:
    recommended = Patch(facecolor="white", edgecolor=INK, linewidth=2)
    nothing = Patch(facecolor="white", edgecolor="none")
    figure.legend(
        [recommended, nothing],
        ["recommended scheme of the activation", "✕ n: float32 dies at layer n; the slope is over the layers it holds"],
        loc="lower left",
        bbox_to_anchor=(1.25 / width, 0.0),
        ncols=2,
    )
