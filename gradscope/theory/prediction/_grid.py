"""Functions of a Gaussian on a fixed grid, and what two correlated Gaussians make of them.

z_i on ±8.5 with the weights of the trapezoidal rule, exact to rounding for smooth functions and to 1e-5 for those with
a kink. With the coefficients a_k = Σ_i w_i f_i h_k(z_i) of the normalized Hermite polynomials,

    E[f(u₁) f(u₂)] = Σ_k a_k² c^k        (Mehler 1866),
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gradscope.theory.prediction._places import Array

POINTS = 1025
_REACH = 8.5
_TERMS = 96

Z: Tensor = torch.linspace(-_REACH, _REACH, POINTS, dtype=torch.float64, device="cpu")
WEIGHTS: Tensor = torch.exp(-0.5 * Z * Z) * (2.0 * _REACH / (POINTS - 1) / math.sqrt(2.0 * math.pi))
WEIGHTS = WEIGHTS / WEIGHTS.sum()
CDF: Tensor = torch.special.ndtr(Z)


def _hermite() -> Tensor:
    rows = [torch.ones_like(Z), Z.clone()]
    for k in range(1, _TERMS - 1):
        rows.append((Z * rows[-1] - math.sqrt(k) * rows[-2]) / math.sqrt(k + 1))
    return torch.stack(rows) * WEIGHTS


_COEFFICIENTS: Tensor = _hermite()
_POWERS: Tensor = torch.arange(_TERMS, dtype=torch.float64, device="cpu")
_ANGLES: Array = -np.cos(np.linspace(0.0, np.pi, 513))
"""-c of correlations from 1 to -1, by equal angles."""
_POWERS_OF_ANGLES: Tensor = torch.from_numpy(-_ANGLES)[:, None] ** _POWERS
_LAST_OF_ANGLES: Tensor = torch.from_numpy(-_ANGLES) ** (2 * _TERMS)


def mean(f: Tensor) -> float:
    """E[f]."""
    return float(WEIGHTS @ f)


def square(f: Tensor) -> float:
    """E[f²]."""
    return float(WEIGHTS @ (f * f))


class Pair:
    """E[f(u₁) f(u₂)] as a function of the correlation."""

    def __init__(self, f: Tensor) -> None:
        coefficients = _COEFFICIENTS @ f
        self._squares = coefficients * coefficients
        self._left = max(square(f) - float(self._squares.sum()), 0.0)

    def at(self, c: float) -> float:
        """At a correlation in [-1, 1]."""
        return float(self._squares @ (c**_POWERS)) + self._left * c ** (2 * _TERMS)

    def table(self, c: Array) -> Array:
        """At many, between which it is interpolated: over the angle, where it is smooth for kinks and steps too."""
        return np.interp(-c, _ANGLES, self._curve)

    def correlations(self, products: Array) -> Array:
        """The correlations of many products, of an increasing function."""
        return np.interp(products, np.maximum.accumulate(self._curve[::-1]), -_ANGLES[::-1])

    @cached_property
    def _curve(self) -> Array:
        """From 1 to -1."""
        curve: Array = (_POWERS_OF_ANGLES @ self._squares + self._left * _LAST_OF_ANGLES).numpy()
        return curve

    def correlation(self, product: float) -> float:
        """The correlation that gives this mean product: 1 for what is beyond the square, -1 for what is below."""
        low, high = -1.0, 1.0
        if product >= self.at(1.0):
            return 1.0
        if product <= self.at(-1.0):
            return -1.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            if self.at(middle) < product:
                low = middle
            else:
                high = middle
        return 0.5 * (low + high)


def quantiles(values: Tensor, weights: Tensor) -> Tensor:
    """The increasing function of z with the distribution of these weighted values, on the grid."""
    order = torch.argsort(values)
    values, weights = values[order], weights[order]
    below = torch.cumsum(weights, 0) - 0.5 * weights
    below = below / weights.sum()
    at = torch.searchsorted(below, CDF).clamp(1, below.numel() - 1)
    left, right = below[at - 1], below[at]
    share = ((CDF - left) / (right - left).clamp(min=1e-300)).clamp(0.0, 1.0)
    return values[at - 1] + share * (values[at] - values[at - 1])


_COARSE = 4
"""Of two grids at once each fourth point is taken: 66,000 pairs."""


def outer(f: Tensor, g: Tensor, combine: str) -> Tensor:
    """The distribution of f(z₁) + g(z₂), or their product, of independent z₁ and z₂; as an increasing function."""
    f, g, weights = f[::_COARSE], g[::_COARSE], WEIGHTS[::_COARSE]
    both = f[:, None] + g[None, :] if combine == "add" else f[:, None] * g[None, :]
    return quantiles(both.ravel(), (weights[:, None] * weights[None, :]).ravel())


def conditional(profile: Tensor, h: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """E[profile at h = f(z₁) + g(z₂)] for each z₁; the profile belongs to an increasing h, all on the grid."""
    every = WEIGHTS[::_COARSE] / WEIGHTS[::_COARSE].sum()
    coarse = f[::_COARSE]
    sums = coarse[:, None] + g[None, ::_COARSE]
    found = at_values(profile, h, sums.ravel()).reshape(sums.shape) @ every
    return spread_out(found)


def at_values(profile: Tensor, h: Tensor, values: Tensor) -> Tensor:
    """A function of z, given at an increasing h(z), at values of h."""
    at = torch.searchsorted(h.contiguous(), values.contiguous()).clamp(1, h.numel() - 1)
    left, right = h[at - 1], h[at]
    share = ((values - left) / (right - left).clamp(min=1e-300)).clamp(0.0, 1.0)
    found: Tensor = profile[at - 1] + share * (profile[at] - profile[at - 1])
    return found


def spread_out(coarse: Tensor) -> Tensor:
    """A function given at each fourth point, on the whole grid."""
    found = torch.nn.functional.interpolate(coarse[None, None], size=POINTS, mode="linear", align_corners=True)
    return found[0, 0]


def chance_to_be_largest(count: float, c: float) -> Tensor:
    """P(none of count − 1 others is larger) of Gaussians of correlation c ≥ 0, for each z."""
    c = min(max(c, 0.0), 1.0 - 1e-9)
    z, noise = Z[::_COARSE], Z[::_COARSE]
    weight = WEIGHTS[::_COARSE] / WEIGHTS[::_COARSE].sum()
    common = math.sqrt(c) * z[:, None] + math.sqrt(1.0 - c) * noise  # a, given z, is N(√c z, 1 − c)
    below = torch.special.ndtr((z[:, None] - math.sqrt(c) * common) / math.sqrt(1.0 - c))
    return spread_out(below.pow(count - 1.0) @ weight)


def largest_of(count: float, c: float) -> Tensor:
    """The increasing function of z with the distribution of the largest of `count` Gaussians of correlation c ≥ 0."""
    c = min(max(c, 0.0), 1.0 - 1e-9)
    spread = math.sqrt(1.0 - c)
    # P(largest ≤ t) = E_a[Φ((t − √c a)/√(1 − c))^count]
    t = torch.linspace(-_REACH, _REACH + 2.0, 2001, dtype=torch.float64, device="cpu")
    common = Z[::_COARSE]
    weight = WEIGHTS[::_COARSE] / WEIGHTS[::_COARSE].sum()
    below = torch.special.ndtr((t[:, None] - math.sqrt(c) * common) / spread).pow(count) @ weight
    at = torch.searchsorted(below, CDF).clamp(1, below.numel() - 1)
    left, right = below[at - 1], below[at]
    share = ((CDF - left) / (right - left).clamp(min=1e-300)).clamp(0.0, 1.0)
    found: Tensor = t[at - 1] + share * (t[at] - t[at - 1])
    return found
