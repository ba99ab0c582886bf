"""What one layer's activation does to the second moments and to their fluctuations, as a function of ln q.

Derivatives with respect to q need no f'': for z ~ N(0, 1), d/dq E[g(√q z)] = E[(z² - 1) g(√q z)]/(2q) (Stein).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.activations import Activation
from gradscope.theory._quadrature import density, integrate, panel_ends

Array = NDArray[np.float64]

# Beyond, moments are power laws of q to float64's last digit: corrections are of the relative order √q or 1/√q.
_FARTHEST = 110.0 * math.log(2.0)


@dataclass(frozen=True)
class LayerMoments:
    """Moments of f and f' at h = √q z, z ~ N(0, 1).

    Attributes:
        log_f2: ln E[f²].
        log_d2: ln E[f'²].
        f_slope: a = d ln E[f²] / d ln q.
        d_slope: c = d ln E[f'²] / d ln q.
        kappa_f: relative variance of f²: E[f⁴]/E[f²]² - 1.
        kappa_b: relative variance of (f' g)², g ~ N(0, 1) the gradient that arrives: 3 E[f'⁴]/E[f'²]² - 1.
        kappa_fb: their covariance: E[f² f'²]/(E[f²] E[f'²]) - 1.
    """

    log_f2: float
    log_d2: float
    f_slope: float
    d_slope: float
    kappa_f: float
    kappa_b: float
    kappa_fb: float


def layer_moments(activation: Activation, log_q: float) -> LayerMoments:
    """The moments at ln q, any finite number: also where q itself would leave float64."""
    farthest = 0.0 if is_homogeneous(activation) else _FARTHEST
    near = min(max(log_q, -farthest), farthest)
    found = _by_quadrature(activation, near)
    if near == log_q:
        return found
    far = log_q - near
    return LayerMoments(
        found.log_f2 + found.f_slope * far,
        found.log_d2 + found.d_slope * far,
        found.f_slope,
        found.d_slope,
        found.kappa_f,
        found.kappa_b,
        found.kappa_fb,
    )


@functools.lru_cache(maxsize=256)
def is_homogeneous(activation: Activation) -> bool:
    """f(s·h) = s·f(h) for s > 0: then ln q only shifts ln E[f²]. Powers of two scale floats exactly."""
    h = np.linspace(-8.0, 8.0, 65)
    return all(
        np.array_equal(activation.function(h * 2.0**power), activation.function(h) * 2.0**power)
        for power in (-200, -20, -3, -1, 1, 3, 20, 200)
    )


@functools.lru_cache(maxsize=65536)
def _by_quadrature(activation: Activation, log_q: float) -> LayerMoments:
    scale = math.exp(0.5 * log_q)

    def integrand(z: Array) -> Array:
        h, zz, weight = scale * z, z * z, density(z)
        ff, dd = np.square(activation.function(h)), np.square(activation.derivative(h))
        rows = np.empty((7, *z.shape))
        np.multiply(ff, weight, out=rows[0])
        np.multiply(dd, weight, out=rows[1])
        np.multiply(rows[0], ff, out=rows[2])
        np.multiply(rows[1], dd, out=rows[3])
        np.multiply(rows[0], dd, out=rows[4])
        np.multiply(rows[0], zz, out=rows[5])
        np.multiply(rows[1], zz, out=rows[6])
        return rows

    f2, d2, f4, d4, fd, zf, zd = integrate(integrand, panel_ends(scale * scale, activation.kinks)).tolist()
    if f2 == 0.0 or d2 == 0.0:
        raise ValueError(f"activation={activation.name!r} passes nothing at q={scale * scale:.3g}")
    return LayerMoments(
        log_f2=math.log(f2),
        log_d2=math.log(d2),
        f_slope=0.5 * (zf / f2 - 1.0),
        d_slope=0.5 * (zd / d2 - 1.0),
        kappa_f=f4 / f2**2 - 1.0,
        kappa_b=3.0 * d4 / d2**2 - 1.0,
        kappa_fb=fd / (f2 * d2) - 1.0,
    )
