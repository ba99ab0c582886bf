"""How a signal gets through a sweep's cell, as a picture tells it: measured, expected, and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.recording import SweepCell
from gradscope.report._curves import Direction, curve, slope_of


@dataclass(frozen=True)
class Passage:
    """One direction of a cell, read off its pre-activations (backward: their gradients).

    Attributes:
        direction: `forward` or `backward`.
        decades_per_layer: median over seeds, over the layers that float32 holds; NaN where it holds fewer than two.
        expected: the theory's slope over the layers before float32 dies; NaN where it is silent.
        dies_at: the first layer, in the direction the signal flows, that float32 cannot hold; None where it holds all.
        frontier: the layer at which the drawn curve leaves the healthy band; None where it stays.
        sentence: what becomes of the signal, in words.
    """

    direction: Direction
    decades_per_layer: float
    expected: float
    dies_at: int | None
    frontier: int | None
    sentence: str

    @property
    def words(self) -> str:
        """The sentence, and where the signal leaves the healthy band.

        >>> Passage("backward", -0.627, -0.628, None, 48, "gradient shrinks 4.7×10³⁰ over 50 layers").words
        'The gradient shrinks 4.7×10³⁰ over 50 layers, out of the healthy band from layer 48.'
        """
        leaves = "" if self.frontier is None else f", out of the healthy band from layer {self.frontier}"
        begins = f"N{self.sentence[1:]}" if self.sentence.startswith("no ") else f"The {self.sentence}"
        return f"{begins}{leaves}."

    def data(self) -> dict[str, Any]:
        """The passage as plain values for `index.json`."""
        return {
            "decades_per_layer": self.decades_per_layer,
            "decades_per_layer_expected": self.expected,
            "float32_dies_at_layer": self.dies_at,
            "leaves_healthy_band_at_layer": self.frontier,
            "words": self.words,
        }


def passage(cell: SweepCell, direction: Direction) -> Passage:
    """Reads one direction of a cell."""
    alive = cell.layers_alive(direction)
    return Passage(
        direction=direction,
        decades_per_layer=cell.forward_decades if direction == "forward" else cell.backward_decades,
        expected=_expected_slope(cell, direction, alive.dies_at),
        dies_at=alive.dies_at,
        frontier=curve(cell, direction).frontier,
        sentence=cell.sentence(direction),
    )


def _expected_slope(cell: SweepCell, direction: Direction, dies_at: int | None) -> float:
    if cell.expected is None:
        return float("nan")
    forward = direction == "forward"
    log10 = np.where(cell.expected.valid, cell.expected.pre if forward else cell.expected.pre_grad, np.nan)
    if dies_at is not None:
        log10 = log10[: dies_at - 1] if forward else log10[dies_at:]
    return slope_of(log10 if forward else log10[::-1])
