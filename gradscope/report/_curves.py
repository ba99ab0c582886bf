"""What a depth picture shows of a sweep's cell: median and spread over seeds, the theory, the healthy band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradscope.recording import SweepCell
from gradscope.recording._profile import BAND_DECADES
from gradscope.theory import spread_band

Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, Direction] = ("forward", "backward")
Array = NDArray[np.float64]

QUANTILES = (0.1, 0.9)
"""Over seeds; the shaded band runs between them."""


@dataclass(frozen=True)
class Curve:
    """One direction of a cell against depth, as log10 of rms; NaN where some seed has left float32.

    Attributes:
        direction: `forward` (activation) or `backward` (activation_grad).
        depth: layer numbers from 1, `(layers,)`.
        median, low, high: at the pre-activations, over seeds, `(layers,)`.
        after: the median after the activation function; NaN in the last layer, which has none, `(layers,)`.
        theory: what is expected at the pre-activations, NaN where the theory is silent, `(layers,)`.
        theory_low, theory_high: between them lie 95 % of single networks, by theory; NaN where it is silent or no
            forecast, `(layers,)`.
        healthy: lower and upper edge of the healthy band; NaN where the signal enters as nothing.
    """

    direction: Direction
    depth: NDArray[np.int64]
    median: Array
    low: Array
    high: Array
    after: Array
    theory: Array
    theory_low: Array
    theory_high: Array
    healthy: tuple[float, float]

    @property
    def frontier(self) -> int | None:
        """The first layer, as the signal flows, at which the median is outside the healthy band."""
        low, high = self.healthy
        outside = np.flatnonzero((self.median < low) | (self.median > high))
        return int(self.depth[outside[0 if self.direction == "forward" else -1]]) if outside.size else None

    def data(self) -> dict[str, Any]:
        """The curve as plain values for `index.json`."""
        return {
            "depth": self.depth.tolist(),
            "log10_rms_median": self.median.tolist(),
            "log10_rms_low": self.low.tolist(),
            "log10_rms_high": self.high.tolist(),
            "log10_rms_after_activation": self.after.tolist(),
            "log10_rms_expected": self.theory.tolist(),
            "log10_healthy_band": list(self.healthy),
        }


def curve(cell: SweepCell, direction: Direction) -> Curve:
    """One direction of a cell: signal `activation` forward, `activation_grad` backward.

    Its line are the linear layers' outputs, all of one role, to which slope, sentence and theory refer; the
    values after the activation function come beside them.
    """
    forward = direction == "forward"
    low, median, high = _quantiles(cell.rms(direction))
    after = _quantiles(cell.rms_after(direction))[1]
    theory, theory_low, theory_high = np.full((3, cell.depth), np.nan)
    if cell.expected is not None:
        theory = np.where(cell.expected.valid, cell.expected.pre if forward else cell.expected.pre_grad, np.nan)
        if cell.expected.stable:
            variance = cell.expected.forward_var if forward else cell.expected.backward_var
            theory_low, theory_high = spread_band(theory, variance)
    enters = float(median[0 if forward else -1])
    return Curve(
        direction,
        np.arange(1, cell.depth + 1),
        median,
        low,
        high,
        after,
        theory,
        theory_low,
        theory_high,
        (enters - BAND_DECADES, enters + BAND_DECADES),
    )


def _quantiles(measured: Array) -> Array:
    """log10 of lower quantile, median and upper quantile over seeds, `(3, layers)`."""
    # Only where every seed is there: a median over the survivors would flatter the pair.
    whole = (np.isfinite(measured) & (measured > 0)).all(axis=0)
    found = np.full((3, measured.shape[1]), np.nan)
    if whole.any():
        found[:, whole] = np.quantile(np.log10(measured[:, whole]), (QUANTILES[0], 0.5, QUANTILES[1]), axis=0)
    return found


def slope_of(log10: Array) -> float:
    """Least-squares slope of values given as log10, in the order in which the layers are passed; NaN if under two.

    `decades_per_layer` for a forecast, which may lie beyond float32 and beyond float64.
    """
    passed = np.flatnonzero(np.isfinite(log10))
    if passed.size < 2:
        return float("nan")
    away = passed - passed.mean()
    return float(away @ log10[passed] / (away @ away))
