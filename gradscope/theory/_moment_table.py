"""E[f²] and E[f'²] as functions of ln q, computed once on a grid, for whole planes of variances at a time.

Between two points of the grid each logarithm is the cubic through both values and both exact slopes (`LayerMoments`):
at the spacing 1/8 its error is below 1e-5, and far from where f bends it is rounding. Beyond the grid the moments are
power laws.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.activations import Activation
from gradscope.theory._mean_field import highest
from gradscope.theory._moments import layer_moments

Array = NDArray[np.float64]

_LOWEST, _HIGHEST, _PER_UNIT = -20, 20.0, 8
"""Of ln q: the ends of the grid, and how many points there are per unit; ln q = 0 is one of them."""


@dataclass(frozen=True, eq=False)
class MomentTable:
    """Moments of an activation on a grid of ln q.

    Attributes:
        log_q: the grid, `(points,)`, evenly spaced.
        log_f2, f_slope: ln E[f²], and its slope in ln q, `(points,)`.
        log_d2, d_slope: ln E[f'²], likewise.
    """

    log_q: Array
    log_f2: Array
    f_slope: Array
    log_d2: Array
    d_slope: Array

    def second(self, log_q: ArrayLike) -> Array:
        """ln E[f²] at any ln q, of any shape."""
        return _cubic(np.asarray(log_q, dtype=np.float64), self.log_q, self.log_f2, self.f_slope)

    def slope(self, log_q: ArrayLike) -> Array:
        """ln E[f'²], likewise."""
        return _cubic(np.asarray(log_q, dtype=np.float64), self.log_q, self.log_d2, self.d_slope)

    def growth(self, log_q: Array, log_w2: Array, log_b2: Array) -> Array:
        """ln(V(q)/q) = ln(sigma_w2·E[f²] + sigma_b2) − ln q; the shapes are broadcast."""
        return np.asarray(np.logaddexp(log_w2 + self.second(log_q), log_b2) - log_q)


@functools.lru_cache(maxsize=64)
def moment_table(activation: Activation) -> MomentTable:
    """The table of an elementwise activation, for 2e-9 ≤ q ≤ 5e8, or as far up as its moments can be computed.

    Raises:
        ArithmeticError: the activation varies too fast for quadrature.
    """
    top = math.floor(min(_HIGHEST, highest(activation)))
    log_q = np.arange(_LOWEST * _PER_UNIT, top * _PER_UNIT + 1) / _PER_UNIT
    found = [layer_moments(activation, x) for x in log_q.tolist()]
    columns = {name: np.array([getattr(one, name) for one in found]) for name in _COLUMNS}
    return MomentTable(log_q=log_q, **columns)


_COLUMNS = ("log_f2", "f_slope", "log_d2", "d_slope")


def _cubic(x: Array, nodes: Array, values: Array, slopes: Array) -> Array:
    """Hermite's cubic between the nodes, straight lines beyond."""
    left = np.clip(np.searchsorted(nodes, x) - 1, 0, nodes.size - 2)
    width = nodes[left + 1] - nodes[left]
    t = np.clip((x - nodes[left]) / width, 0.0, 1.0)
    rise = values[left + 1] - values[left]
    at_left, at_right = slopes[left] * width, slopes[left + 1] * width
    bent = 3.0 * rise - 2.0 * at_left - at_right + t * (at_left + at_right - 2.0 * rise)
    below, above = np.minimum(x - nodes[0], 0.0), np.maximum(x - nodes[-1], 0.0)
    return np.asarray(values[left] + t * (at_left + t * bent) + below * slopes[0] + above * slopes[-1])
