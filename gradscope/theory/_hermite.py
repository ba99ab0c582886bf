"""The Hermite series of a function of a Gaussian: f(√q z) = Σ_k a_k h_k(z), h_k the normalized polynomials.

    E[f(u₁) g(u₂)] = Σ_k a_k b_k c^k        for u₁, u₂ of variances q₁, q₂ and correlation c (Mehler 1866)

What K terms leave is at most |c|^K·√(r_f r_g), r = E[f²] − Σ_{k<K} a_k²: where that is small the sum is exact, without
any two-dimensional quadrature. A kink makes a_k² fall as k^−5/2, so that close to |c| = 1 no number of terms is enough.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gradscope.theory._quadrature import density, panel_ends, positions, quadrature_weights

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

_TERMS = (64, 512, 4096)
_PHASE = 10.0
"""Radians that h_K may turn within a panel of 24 nodes."""


@functools.lru_cache(maxsize=512)
def coefficients(function: Function, q: float, kinks: tuple[float, ...], terms: int) -> tuple[Array, float]:
    """The first coefficients, and √(E[f²] − Σ a_k²): the norm of what they leave.

    Raises:
        ValueError: the function is not finite within 13 standard deviations.
    """
    ends = _narrowed(panel_ends(q, kinks), _PHASE / math.sqrt(terms))
    z = positions(ends).ravel()
    values = np.asarray(function(math.sqrt(q) * z), dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the function is not finite everywhere within 13 standard deviations")
    weighted = values * density(z) * quadrature_weights(ends).ravel()
    found = np.empty(terms)
    before, now = np.zeros_like(z), np.ones_like(z)
    for k in range(terms):
        found[k] = weighted @ now
        before, now = now, (z * now - math.sqrt(k) * before) / math.sqrt(k + 1)
    left = float(weighted @ values) - float(found @ found)
    return found, math.sqrt(max(left, 0.0))


def _narrowed(ends: Array, width: float) -> Array:
    parts = np.maximum(1, np.ceil(np.diff(ends) / width)).astype(int)
    pieces = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(ends[:-1], ends[1:], parts, strict=True)]
    return np.append(np.concatenate(pieces), ends[-1])


def series(
    f: Function, g: Function, q1: float, q2: float, c: float, kinks: tuple[float, ...], kinks_g: tuple[float, ...]
) -> float | None:
    """E[f(u₁) g(u₂)] to twelve digits of √(E[f²] E[g²]); None where 4,096 terms do not give it."""
    for terms in _TERMS:
        a, left_a = coefficients(f, q1, kinks, terms)
        b, left_b = (a, left_a) if (g, q2, kinks_g) == (f, q1, kinks) else coefficients(g, q2, kinks_g, terms)
        size = math.sqrt((a @ a + left_a**2) * (b @ b + left_b**2))
        if abs(c) ** terms * left_a * left_b <= 1e-14 * size:
            return float(np.sum(a * b * c ** np.arange(terms)))
    return None
