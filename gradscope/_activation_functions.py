"""The activations and their slopes in float64 numpy, safe at any finite z: nothing overflows, nothing warns.

Each pair is `name(z, …)` and `name_slope(z, …)`. Where two one-sided slopes differ (a kink) the value is
torch's. Tails are computed from exp(-|z|) and erfc rather than as differences from 1, so that a slope of
1e-200 is 1e-200 and not 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Klambauer et al. (2017): with these two, (mean, variance) = (0, 1) is a fixed point.
SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772


def identity(z: Array) -> Array:
    return np.array(z, dtype=np.float64)


def identity_slope(z: Array) -> Array:
    return np.ones_like(z, dtype=np.float64)


def sigmoid(z: Array) -> Array:
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1.0 + small)


def sigmoid_slope(z: Array) -> Array:
    small = np.exp(-np.abs(z))
    return small / (1.0 + small) ** 2


def tanh(z: Array) -> Array:
    return np.tanh(z)


def tanh_slope(z: Array) -> Array:
    small = np.exp(-np.abs(z))
    return (2.0 * small / (1.0 + small * small)) ** 2


def softmax(z: Array) -> Array:
    grown = np.exp(z - np.max(z, axis=-1, keepdims=True))
    return np.asarray(grown / np.sum(grown, axis=-1, keepdims=True))


def softmax_slope(z: Array) -> Array:
    """The diagonal of the Jacobian, s_i (1 - s_i)."""
    grown = np.exp(z - np.max(z, axis=-1, keepdims=True))
    # 1 - s_i as the sum of the others, not as a difference: a winner's slope keeps its digits.
    before, after = np.zeros_like(grown), np.zeros_like(grown)
    np.cumsum(grown[..., :-1], axis=-1, out=before[..., 1:])
    np.cumsum(grown[..., :0:-1], axis=-1, out=after[..., -2::-1])
    return np.asarray(grown * (before + after) / np.sum(grown, axis=-1, keepdims=True) ** 2)


def leaky_relu(z: Array, slope: float = 0.0) -> Array:
    return np.where(z > 0, z, slope * np.minimum(z, 0.0))


def leaky_relu_slope(z: Array, slope: float = 0.0) -> Array:
    return np.where(z > 0, 1.0, slope)


def hardtanh(z: Array, low: float = -1.0, high: float = 1.0) -> Array:
    return np.clip(z, low, high)


def hardtanh_slope(z: Array, low: float = -1.0, high: float = 1.0) -> Array:
    return np.where((z > low) & (z < high), 1.0, 0.0)


def elu(z: Array, alpha: float = 1.0) -> Array:
    return np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0.0)))


def elu_slope(z: Array, alpha: float = 1.0) -> Array:
    return np.where(z > 0, 1.0, alpha * np.exp(np.minimum(z, 0.0)))


def celu(z: Array, alpha: float = 1.0) -> Array:
    return np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0.0) / alpha))


def celu_slope(z: Array, alpha: float = 1.0) -> Array:
    return np.where(z > 0, 1.0, np.exp(np.minimum(z, 0.0) / alpha))


def selu(z: Array) -> Array:
    return SELU_SCALE * elu(z, SELU_ALPHA)


def selu_slope(z: Array) -> Array:
    return SELU_SCALE * elu_slope(z, SELU_ALPHA)


def _normal_cdf(z: Array) -> Array:
    # numpy has no erf; the standard library's erfc keeps the lower tail to full relative precision.
    scaled = np.asarray(z, dtype=np.float64) * -math.sqrt(0.5)
    tail = np.fromiter(map(math.erfc, scaled.ravel().tolist()), np.float64, scaled.size)
    return 0.5 * tail.reshape(scaled.shape)


def gelu(z: Array) -> Array:
    return z * _normal_cdf(z)


def gelu_slope(z: Array) -> Array:
    near = np.clip(z, -40.0, 40.0)  # beyond, the density is 0 in float64 and z² may overflow
    return _normal_cdf(z) + near * np.exp(-0.5 * near * near) / math.sqrt(2.0 * math.pi)


_GELU_TANH = (2.0 * math.sqrt(2.0 / math.pi), 0.044715)


def gelu_tanh(z: Array) -> Array:
    near = np.clip(z, -40.0, 40.0)  # beyond, the gate is 0 or 1 in float64 and z³ may overflow
    return z * sigmoid(_GELU_TANH[0] * (near + _GELU_TANH[1] * near**3))


def gelu_tanh_slope(z: Array) -> Array:
    near = np.clip(z, -40.0, 40.0)
    gate = _GELU_TANH[0] * (near + _GELU_TANH[1] * near**3)
    return sigmoid(gate) + near * sigmoid_slope(gate) * _GELU_TANH[0] * (1.0 + 3.0 * _GELU_TANH[1] * near**2)


def silu(z: Array) -> Array:
    return z * sigmoid(z)


def silu_slope(z: Array) -> Array:
    near = np.clip(z, -800.0, 800.0)  # beyond, the sigmoid's slope is 0 in float64
    return sigmoid(z) + near * sigmoid_slope(near)


def softplus(z: Array, beta: float = 1.0) -> Array:
    return np.maximum(z, 0.0) + np.log1p(np.exp(-beta * np.abs(z))) / beta


def softplus_slope(z: Array, beta: float = 1.0) -> Array:
    return sigmoid(beta * np.asarray(z))


def mish(z: Array) -> Array:
    return z * np.tanh(softplus(z))


def mish_slope(z: Array) -> Array:
    near = np.clip(z, -800.0, 800.0)
    gate = softplus(near)
    return np.tanh(gate) + near * tanh_slope(gate) * sigmoid(near)


def softsign(z: Array) -> Array:
    return z / (1.0 + np.abs(z))


def softsign_slope(z: Array) -> Array:
    return (1.0 / (1.0 + np.abs(z))) ** 2


def hardsigmoid(z: Array) -> Array:
    return np.clip(z, -3.0, 3.0) / 6.0 + 0.5


def hardsigmoid_slope(z: Array) -> Array:
    return np.where((z > -3.0) & (z < 3.0), 1.0 / 6.0, 0.0)


def hardswish(z: Array) -> Array:
    return z * hardsigmoid(z)


def hardswish_slope(z: Array) -> Array:
    return np.where(z <= -3.0, 0.0, np.where(z < 3.0, np.clip(z, -3.0, 3.0) / 3.0 + 0.5, 1.0))


def sin(z: Array) -> Array:
    return np.sin(z)


def sin_slope(z: Array) -> Array:
    return np.cos(z)
