"""The plane of (sigma_w, sigma_b): ordered where gradients vanish, chaotic where they explode, critical between.

    chi = sigma_w2·E[f'(√q z)²] at the length q to which the length 1 comes,   xi = 1/|ln chi|

xi is the depth scale: the number of layers in which a gradient's mean square changes by a factor e (Schoenholz et al.
2017). Along the line chi = 1 it is infinite. Where lengths vanish or grow without end, chi is its limit there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.activations import Activation
from gradscope.theory._card import card
from gradscope.theory._gain import elementwise
from gradscope.theory._moment_table import MomentTable, moment_table
from gradscope.theory._moments import is_homogeneous

Array = NDArray[np.float64]

_ACROSS, _UP = 121, 81
"""Points of the plane, along sigma_w and along sigma_b."""
_LEAST = 0.2
"""The smallest sigma_w of the plane."""
_NOTHING = 1e-12
"""A bias variance this part of q is the rounding of 0."""
_HALVINGS = 48


@dataclass(frozen=True)
class Mark:
    """A gain in common use, as a point of the plane."""

    title: str
    sigma_w: float
    sigma_b: float


@dataclass(frozen=True, eq=False)
class CriticalLine:
    """Where a gradient's mean square is kept, by the length q that a layer keeps there; NaN where no variances do.

    Attributes:
        q: the length, increasing, `(points,)`.
        sigma_w, sigma_b: the variances' roots, `(points,)`.
        attracts: whether lengths beside q come nearer, `(points,)`.
    """

    q: Array
    sigma_w: Array
    sigma_b: Array
    attracts: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """What a deep plain network does at each point of the plane.

    Attributes:
        activation: whose.
        sigma_w: √(fan_in·(variance of one weight)), `(across,)`.
        sigma_b: √(variance of one bias), `(up,)`.
        log_q: ln of the length to which the length 1 comes, `(up, across)`; −inf where it vanishes, inf where it grows
            without end.
        chi: factor of the gradient's mean square per layer there, `(up, across)`.
        line: where chi is 1.
        marks: the gains in common use, without biases.
        layers: the layers of a network of yours, as `(sigma_w, sigma_b)`, `(layers, 2)`.
    """

    activation: Activation
    sigma_w: Array
    sigma_b: Array
    log_q: Array
    chi: Array
    line: CriticalLine
    marks: tuple[Mark, ...]
    layers: Array

    @property
    def depth_scale(self) -> Array:
        """xi: layers in which a gradient's mean square changes by a factor e, `(up, across)`; infinite at chi = 1."""
        with np.errstate(divide="ignore"):
            return np.asarray(1.0 / np.abs(np.log(self.chi)))

    @property
    def grows(self) -> NDArray[np.bool_]:
        """Where lengths grow without end, `(up, across)`."""
        return np.asarray(self.log_q == np.inf)

    @property
    def line_in_view(self) -> CriticalLine:
        """The part of the critical line that lies in the plane drawn."""
        line, right, top = self.line, self.sigma_w[-1], self.sigma_b[-1]
        inside = (line.sigma_w >= self.sigma_w[0]) & (line.sigma_w <= right) & (line.sigma_b <= top)
        return CriticalLine(line.q[inside], line.sigma_w[inside], line.sigma_b[inside], line.attracts[inside])


def phase_diagram(
    activation: str | Activation | None, layers: Sequence[tuple[float, float]] | ArrayLike = ()
) -> PhaseDiagram:
    """The plane of an activation, wide enough for the usual gains and for the layers given.

    Args:
        activation: a name as `activations.get` takes it; elementwise.
        layers: pairs (sigma_w, sigma_b), one a layer: √(fan_in·mean W²) and √(mean b²) of a network of yours.

    Raises:
        ValueError: an unknown activation, or one that is not elementwise; layers that are no such pairs.

    >>> found = phase_diagram("relu", layers=[(1.4, 0.0)])
    >>> left, right = (found.chi[0][found.sigma_w < 1.4], found.chi[0][found.sigma_w > 1.42])
    >>> bool(left.max() < 1.0 < right.min())
    True
    """
    found = elementwise(activation)
    own = _pairs(layers)
    marks = tuple(Mark(fate.title, fate.gain, 0.0) for fate in card(found).fates)
    right = max([2.2, *(1.12 * mark.sigma_w for mark in marks), *(1.12 * own[:, 0])])
    top = max([1.0, *(1.12 * own[:, 1])])
    sigma_w = np.linspace(min([_LEAST, *(0.9 * own[:, 0])]), right, _ACROSS)
    sigma_b = np.linspace(0.0, top, _UP)
    table = moment_table(found)
    with np.errstate(divide="ignore"):
        log_w2, log_b2 = np.broadcast_arrays(2.0 * np.log(sigma_w), 2.0 * np.log(sigma_b)[:, None])
    log_q = _settled(table, log_w2.ravel(), log_b2.ravel()).reshape(log_w2.shape)
    held = np.clip(log_q, table.log_q[0], table.log_q[-1])
    line = _upright(found, table, top) if is_homogeneous(found) else _line(table)
    return PhaseDiagram(found, sigma_w, sigma_b, log_q, np.exp(log_w2 + table.slope(held)), line, marks, own)


def _pairs(layers: Sequence[tuple[float, float]] | ArrayLike) -> Array:
    pairs = np.asarray(layers, dtype=np.float64)
    if pairs.size == 0:
        return np.empty((0, 2))
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.isfinite(pairs).all():
        raise ValueError(f"layers has shape {pairs.shape}; it must be finite pairs (sigma_w, sigma_b), one a layer")
    wrong = (pairs[:, 0] <= 0.0) | (pairs[:, 1] < 0.0)
    if wrong.any():
        sigma_w, sigma_b = pairs[wrong][0]
        raise ValueError(
            f"layers has the pair ({sigma_w:g}, {sigma_b:g}); each has sigma_w above 0 and sigma_b at least 0"
        )
    return pairs


def _settled(table: MomentTable, log_w2: Array, log_b2: Array) -> Array:
    """ln of the length to which 1 comes: the nearest zero of ln(V(q)/q) on the side to which V takes it, `(points,)`.

    As `MeanField.settles_at`, for many variances at once.
    """
    nodes, start = table.log_q, int(np.searchsorted(table.log_q, 0.0))
    growth = np.asarray(np.logaddexp(log_w2[:, None] + table.log_f2, log_b2[:, None]) - nodes)
    up, down = growth[:, start] > 0.0, growth[:, start] < 0.0
    above, below = growth[:, start:] <= 0.0, growth[:, start::-1] >= 0.0  # from 1 on, to either side
    ends = np.where(up, above.argmax(1), -below.argmax(1)) + start
    ahead = np.where(up, above.any(1), below.any(1))
    found = np.where(up, np.inf, np.where(down, -np.inf, 0.0))
    near = np.flatnonzero(ahead & (up | down))
    high = np.where(up[near], nodes[ends[near]], nodes[np.minimum(ends[near] + 1, nodes.size - 1)])
    low = np.where(up[near], nodes[np.maximum(ends[near] - 1, 0)], nodes[ends[near]])
    for _ in range(_HALVINGS):  # above a zero of that kind lengths shrink, below they grow
        middle = 0.5 * (low + high)
        grows = table.growth(middle, log_w2[near], log_b2[near]) > 0.0
        low, high = np.where(grows, middle, low), np.where(grows, high, middle)
    found[near] = 0.5 * (low + high)
    return found


def _line(table: MomentTable) -> CriticalLine:
    """sigma_w2 = 1/E[f'²], sigma_b2 = q − sigma_w2·E[f²], by ln q."""
    log_q = np.linspace(table.log_q[0], table.log_q[-1], 8 * table.log_q.size - 7)
    log_d2 = table.slope(log_q)
    log_share = table.second(log_q) - log_d2 - log_q  # of the weights in q
    left = -np.expm1(log_share)
    left[np.abs(left) <= _NOTHING] = 0.0
    there = left >= 0.0
    sigma_b = np.full(log_q.size, np.nan)
    sigma_b[there] = np.sqrt(np.exp(log_q[there]) * left[there])
    steepness = np.exp(log_share) * np.interp(log_q, table.log_q, table.f_slope)  # V'(q)
    sigma_w = np.where(there, np.exp(-0.5 * log_d2), np.nan)
    return CriticalLine(np.exp(log_q), sigma_w, sigma_b, there & (steepness < 1.0 - 1e-10))


def _upright(activation: Activation, table: MomentTable, top: float) -> CriticalLine:
    """ReLU and its like: chi is the same at every length, so that the line stands upright.

    Only at its foot is a length kept, and there any is: with biases lengths grow, by sigma_b2 in each layer.
    """
    at = math.exp(-0.5 * float(table.slope(0.0)))
    return CriticalLine(np.array([1.0, np.inf]), np.full(2, at), np.array([0.0, top]), np.zeros(2, dtype=np.bool_))
