"""The singular values of a plain network's Jacobian, from its input to its output's pre-activations.

With D_l the slopes and J = Π D_l W_l, the matrices are asymptotically free, and S-transforms multiply (Pennington,
Schoenholz & Ganguli 2017, eqs. 9–20):

    M_D(w) = E[f'²/(w − f'²)],   y = M_D(w),   z = (1 + y)/y·(sigma_w2·w·y/(1 + y)·t)^L

t = 1 for orthogonal weights and 1 + y for Gaussian ones; solved for y at z = s² + i0 it gives the density of s²,
−Im (1 + y)/(π z). The first two moments of s² need no solving:

    mean = chi^L,   variance/mean² = L·(μ₂/μ₁² − 1 − s₁),   μ_k = E[f'^{2k}],   s₁ = 0 orthogonal, −1 Gaussian
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.activations import Activation
from gradscope.theory._gain import elementwise
from gradscope.theory._moments import layer_moments
from gradscope.theory._quadrature import density, panel_ends, positions, quadrature_weights

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]
Weights = Literal["independent", "orthogonal"]

_FAR = 40.0 + 0.5j * math.pi
"""Added to ln z: so far out that the first terms are all there is."""
_STEPS, _TURNS = 160, 40


@dataclass(frozen=True)
class JacobianMoments:
    """Of the squared singular values s² of a Jacobian.

    Attributes:
        mean: of s², chi^depth: how a gradient's mean square changes over all layers.
        relative_variance: of s², over the mean's square; 0 is dynamical isometry.
    """

    mean: float
    relative_variance: float


def jacobian_moments(
    activation: str | Activation | None, depth: int, *, sigma_w2: float, q: float, weights: Weights = "independent"
) -> JacobianMoments:
    """Mean and variance of the squared singular values over `depth` layers of one length.

    Args:
        activation: a name as `activations.get` takes it; elementwise.
        depth: how many layers, at least 1.
        sigma_w2: fan_in·(variance of one weight).
        q: mean square of the pre-activations, the same in all layers: a fixed point.
        weights: `independent` or `orthogonal`.

    Raises:
        ValueError: an argument out of its range.

    >>> found = jacobian_moments("relu", 40, sigma_w2=2.0, q=1.0, weights="orthogonal")
    >>> round(found.mean, 9), round(found.relative_variance, 9)
    (1.0, 40.0)
    """
    found = _checked(activation, depth, sigma_w2, q, weights)
    moments = layer_moments(found, math.log(q))
    spread = (moments.kappa_b + 1.0) / 3.0 - 1.0 + (1.0 if weights == "independent" else 0.0)
    return JacobianMoments(math.exp(depth * (math.log(sigma_w2) + moments.log_d2)), depth * spread)


def jacobian_density(
    activation: str | Activation | None,
    depth: int,
    singular_values: ArrayLike,
    *,
    sigma_w2: float,
    q: float,
    weights: Weights = "independent",
) -> Array:
    """The density of the singular values at the given ones, each above 0.

    Where slopes can be 0, as ReLU's, a part of the singular values is 0: it is not in the density, whose integral is
    then below 1.

    Args:
        activation, depth, sigma_w2, q, weights: as `jacobian_moments` takes them.
        singular_values: where, any shape.

    Raises:
        ValueError: an argument out of its range.
    """
    found = _checked(activation, depth, sigma_w2, q, weights)
    s = np.asarray(singular_values, dtype=np.float64)
    if not np.all(np.isfinite(s) & (s > 0.0)):
        raise ValueError("singular_values must be finite and above 0")
    return _Spectrum(found, depth, sigma_w2, q, gaussian=weights == "independent").density(s.ravel()).reshape(s.shape)


def _checked(activation: str | Activation | None, depth: int, sigma_w2: float, q: float, weights: str) -> Activation:
    if depth < 1:
        raise ValueError(f"depth={depth!r} must be at least 1")
    for name, value in (("sigma_w2", sigma_w2), ("q", q)):
        if not (math.isfinite(value) and value > 0.0):
            raise ValueError(f"{name}={value!r} must be finite and above 0")
    if weights not in get_args(Weights):
        raise ValueError(f"weights={weights!r} must be 'independent' or 'orthogonal'")
    return elementwise(activation)


class _Spectrum:
    """Solves z(w) = s² + i·0 for w, followed from far away through the upper half-plane, where nothing branches."""

    def __init__(self, activation: Activation, depth: int, sigma_w2: float, q: float, *, gaussian: bool) -> None:
        ends = panel_ends(q, activation.kinks)
        z = positions(ends)
        self._slopes = np.square(activation.derivative(math.sqrt(q) * z)).ravel()
        self._weights = (quadrature_weights(ends) * density(z)).ravel()
        self._depth, self._log_sigma_w2, self._gaussian = depth, math.log(sigma_w2), gaussian

    def density(self, s: Array) -> Array:
        """Of the singular values, `(points,)` → `(points,)`."""
        at = np.log(s) * 2.0 + 0.0j
        mean = math.log(float(self._weights @ self._slopes))
        # Far away y ≈ mean/w and z ≈ chi^L·w/mean.
        log_w: Complex = np.asarray(at + _FAR + mean - self._depth * (self._log_sigma_w2 + mean))
        for left in np.linspace(1.0, 0.0, _STEPS) ** 3:
            log_w = self._newton(log_w, np.asarray(at + left * _FAR))
        y = self._y(np.exp(log_w))
        rho = -(1.0 + y).imag / (math.pi * s**2)
        return np.asarray(np.maximum(2.0 * s * rho, 0.0))

    def _y(self, w: Complex) -> Complex:
        return np.asarray((self._weights * self._slopes / (w[:, None] - self._slopes)).sum(1))

    def _log_z(self, log_w: Complex) -> tuple[Complex, Complex]:
        """ln z, and its derivative in ln w."""
        w = np.exp(log_w)
        y = self._y(w)
        slope = -w * (self._weights * self._slopes / np.square(w[:, None] - self._slopes)).sum(1)  # dy/d ln w
        through = np.log(y) - (0.0 if self._gaussian else np.log1p(y))
        turn = slope / y - (0.0 if self._gaussian else slope / (1.0 + y))
        log_z = np.log1p(y) - np.log(y) + self._depth * (self._log_sigma_w2 + log_w + through)
        return log_z, slope / (1.0 + y) - slope / y + self._depth * (1.0 + turn)

    def _newton(self, log_w: Complex, log_z: Complex) -> Complex:
        for _ in range(_TURNS):
            value, slope = self._log_z(log_w)
            change = (value - log_z) / slope
            change *= np.minimum(1.0, 0.3 / np.maximum(np.abs(change), 1e-300))
            log_w = np.asarray(log_w - change)
            if np.abs(change).max() < 1e-12:
                break
        return log_w
