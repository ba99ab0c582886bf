"""E[g(√q z)], z ~ N(0, 1), by Gauss–Legendre panels that are split until each one is resolved.

Gauss–Hermite is wrong by 1e-2 where a slope jumps; panels that end at the kinks are not. A panel is resolved
when the last coefficients of its Legendre series are negligible, and the series meets the function at the
panel's two ends too: between an end and the nodes next to it a kink would go unseen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NODES = 24
REACH = 13.0  # the density at 13 is 8e-38 of that at 0
TOLERANCE = 1e-13
_TAIL = 4  # Legendre coefficients looked at: a kink can hide from one, not from four
_EDGE = 1.0 - 1e-9  # just inside the panel: what stands at its end may be a kink
_MOST_VALUES = 2**22  # at a time: 32 MiB; noise would be split for ever


@functools.cache
def _rule() -> tuple[Array, Array]:
    """Positions on [-1, 1], the nodes and the two ends, and what to make of the values there.

    The matrix is (NODES + 2, 1 + _TAIL + 2): the integral, the last Legendre coefficients, and how far the
    values at the ends are from the polynomial through the nodes.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    degrees = np.arange(NODES)
    to_series = weights[:, None] * np.polynomial.legendre.legvander(nodes, NODES - 1) * (degrees + 0.5)
    edges = np.array([-_EDGE, _EDGE])
    at_edges = to_series @ np.polynomial.legendre.legvander(edges, NODES - 1).T
    inner = np.column_stack([weights, to_series[:, -_TAIL:], -at_edges])
    outer = np.column_stack([np.zeros((2, 1 + _TAIL)), np.eye(2)])
    return np.append(nodes, edges), np.vstack([inner, outer])


def panel_ends(q: float, kinks: Sequence[float] = ()) -> Array:
    """Where the panels end, in units of z, for a function of h = √q z that varies on the scale 1 + |h|.

    The Gaussian wants panels of about 1.5; the function wants ends at its kinks and at |h| = 0, 1, 2, 4, …,
    which at large q lie close together in z.
    """
    scale = math.sqrt(q)
    ends = [0.0, 1.5, 3.0, 4.5, 6.5, 9.0, REACH]
    octave = 1.0
    while octave < 1.5 * scale:
        ends.append(octave / scale)
        octave *= 2.0
    inner = [k / scale for k in kinks if abs(k) < REACH * scale]
    return np.unique([*ends, *(-e for e in ends), *inner])


def positions(ends: Array) -> Array:
    """Where a function is looked at: the nodes and the ends of the panels, `(panels, NODES + 2)`."""
    half = 0.5 * np.diff(ends)[:, None]
    return np.asarray(ends[:-1, None] + half + half * _rule()[0])


def quadrature_weights(ends: Array) -> Array:
    """The weights that go with `positions`; the ends have none."""
    return np.asarray(0.5 * np.diff(ends)[:, None] * _rule()[1][:, 0])


def integrate(
    integrand: Callable[[Array], Array], ends: Array, tolerance: float = TOLERANCE, finest: float = 0.0
) -> Array:
    """∫ integrand over the panels: `(panels, positions)` -> `(rows, panels, positions)` -> `(rows,)`.

    Each row is resolved to `tolerance` of the integral of its absolute value, of which every pass has a better
    idea: most of it may stand in a peak that the first one did not see. A panel narrower than `finest` times
    its position is taken as it is.

    Raises:
        ValueError: a value is not finite.
        ArithmeticError: the panels had to be split too often: the function is noise at this scale.
    """
    nodes, rule = _rule()
    low, high = ends[:-1], ends[1:]
    total, settled, size = 0.0, 0.0, 0.0
    while True:
        half = 0.5 * (high - low)
        values = integrand((low + half)[:, None] + half[:, None] * nodes)
        if not np.isfinite(values).all():
            raise ValueError("the function is not finite everywhere within 13 standard deviations")
        parts = (values @ rule) * half[:, None]
        sizes = (np.abs(values) @ rule[:, 0]) * half
        size = np.maximum(size, settled + sizes.sum(-1))
        rough = np.any(np.abs(parts[..., 1:]).max(-1) > tolerance * size[:, None], axis=0)
        rough &= half > finest * np.abs(low + half)
        total = total + parts[:, ~rough, 0].sum(-1)
        if not rough.any():
            return np.asarray(total)
        settled = settled + sizes[:, ~rough].sum(-1)
        middle = (low + half)[rough]
        if 2 * middle.size * values[:, 0].size > _MOST_VALUES or np.any(half[rough] < 1e-15 * np.abs(middle)):
            raise ArithmeticError("the function could not be resolved: it varies too fast for quadrature")
        low, high = np.concatenate([low[rough], middle]), np.concatenate([middle, high[rough]])


def density(z: Array) -> Array:
    """The standard normal density."""
    return np.asarray(np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi))


def expect(function: Callable[[Array], Array], q: float = 1.0, kinks: Sequence[float] = ()) -> float:
    """E[function(√q z)] for z ~ N(0, 1), in float64 to twelve digits of E[|function|].

    Args:
        function: maps a float64 array of any shape to one of the same shape.
        q: variance of the argument, 0 or more.
        kinks: arguments where the function or its slope jumps. Others are found by splitting, at more cost.

    Raises:
        ValueError: q is negative or not finite, or the function is not finite within 13 standard deviations.
        ArithmeticError: the function varies too fast to be resolved.

    >>> round(expect(np.square, q=3.0), 12)
    3.0
    """
    if not (math.isfinite(q) and q >= 0.0):
        raise ValueError(f"q={q!r} must be a variance: finite and at least 0")
    if q == 0.0:
        return float(np.asarray(function(np.zeros(1)))[0])
    scale = math.sqrt(q)

    def integrand(z: Array) -> Array:
        return np.asarray(function(scale * z), dtype=np.float64)[None] * density(z)

    return float(integrate(integrand, panel_ends(q, kinks))[0])
