"""E[f(u₁) g(u₂)] of two correlated Gaussians: by their Hermite series, or one quadrature inside another.

The series (`_hermite`) is exact but where a kink meets a correlation close to ±1. There, with

    u₁ = √q₁ z,   u₂ = √q₂ (c z + s y),   s = √(1 − c²),   z and y independent, N(0, 1)

for each z the panels in y end where u₂ meets a kink of g or a power of two, so that the inner integral has its full
accuracy whatever c is. What is left is a function of z that varies over a width of s about those places: the outer
panels are split until they resolve it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gradscope.theory._hermite import series
from gradscope.theory._quadrature import REACH, density, expect, integrate, panel_ends, positions, quadrature_weights

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

_AT_ONCE = 1 << 20
"""Values of g at a time: 8 MiB."""


def expect_pair(
    f: Function, g: Function, q1: float, q2: float, c: float, kinks: Sequence[float] = (), kinks_g: Sequence[float] = ()
) -> float:
    """E[f(u₁) g(u₂)] for u₁, u₂ of variances q1, q2 and correlation c, to twelve digits of
    √(E[f²] E[g²]).

    Args:
        f, g: map a float64 array of any shape to one of the same shape.
        q1, q2: variances, 0 or more.
        c: correlation in [-1, 1].
        kinks: arguments where f or its slope jumps.
        kinks_g: likewise of g.

    Raises:
        ValueError: a variance is negative or not finite, c is outside [-1, 1], or a function is not finite within 13
            standard deviations.
        ArithmeticError: a function varies too fast to be resolved.

    >>> def same(u): return u
    >>> round(expect_pair(same, same, 4.0, 9.0, 0.5), 12)  # c √(q₁ q₂)
    3.0
    """
    for name, q in (("q1", q1), ("q2", q2)):
        if not (math.isfinite(q) and q >= 0.0):
            raise ValueError(f"{name}={q!r} must be a variance: finite and at least 0")
    if not -1.0 <= c <= 1.0:
        raise ValueError(f"c={c!r} must be a correlation in [-1, 1]")
    if q1 == 0.0 or q2 == 0.0 or c == 0.0:
        return expect(f, q1, kinks) * expect(g, q2, kinks_g)
    if q1 > q2:  # the outer function is resolved by its own panels: the narrower one is the inner
        f, g, q1, q2, kinks, kinks_g = g, f, q2, q1, kinks_g, kinks
    first, second = math.sqrt(q1), math.sqrt(q2)
    own, other = panel_ends(q1, kinks), panel_ends(q2, kinks_g)
    if abs(c) == 1.0:
        ends = np.union1d(own, np.sort(c * other))
        return float(integrate(lambda z: (f(first * z) * g(second * c * z) * density(z))[None], ends)[0])
    first_kinks, second_kinks = tuple(kinks), tuple(kinks_g)
    if (found := series(f, g, q1, q2, c, first_kinks, second_kinks)) is not None:
        return found
    s = math.sqrt((1.0 - c) * (1.0 + c))
    met = np.array([kink / second / c for kink in kinks_g])  # here the inner integral turns, over a width of s
    turns = (met[:, None] + s / abs(c) * np.array([-9.0, -6.0, -3.0, 0.0, 3.0, 6.0, 9.0])).ravel()
    places = np.concatenate([other / c, turns])
    ends = np.union1d(own, places[np.abs(places) < REACH])

    def integrand(z: Array) -> Array:
        inner = _inner(lambda w: np.asarray(g(second * w), dtype=np.float64), z.ravel(), c, s, other)
        return (np.asarray(f(first * z), dtype=np.float64) * inner.reshape(z.shape) * density(z))[None]

    return float(integrate(integrand, ends)[0])


def _inner(g: Function, z: Array, c: float, s: float, places: Array) -> Array:
    """E[g(c z + s y)] for each z; panels end at y = 0, ±1.5, … and where c z + s y is one of the places."""
    own = panel_ends(1.0)
    found = np.empty(z.shape)
    rows = max(1, _AT_ONCE // ((own.size + places.size) * 26))
    for start in range(0, z.size, rows):
        part = z[start : start + rows, None]
        met = (places - c * part) / s
        ends = np.sort(np.concatenate([np.broadcast_to(own, (part.size, own.size)), met], axis=1), axis=1)
        np.clip(ends, -REACH, REACH, out=ends)
        y, weights = _nodes(ends)
        found[start : start + rows] = np.einsum("rn,rn->r", g(c * part + s * y), weights * density(y))
    return found


def _nodes(ends: Array) -> tuple[Array, Array]:
    """Nodes and weights of the panels of each row, `(rows, nodes)`."""
    whole = np.array([-1.0, 1.0])
    places, weights = positions(whole)[0], quadrature_weights(whole)[0]
    inside = weights != 0.0  # the rule's two ends have no weight
    half = 0.5 * np.diff(ends, axis=1)[:, :, None]
    y = ends[:, :-1, None] + half + half * places[inside]
    return y.reshape(ends.shape[0], -1), (half * weights[inside]).reshape(ends.shape[0], -1)
