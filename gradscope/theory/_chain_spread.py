"""How far single networks lie from the mean-field curve: layers of any widths, activations and norms in a chain.

Let y_l be the deviation of ln(mean of h_l²) of one network from its expected value, h_l the n_l pre-activations of
layer l. With independent Gaussian weights and one input, to first order in 1/n (`_random_weights` says where each
term comes from; Hanin & Nica 2020):

    y_{l+1} = a_l y_l + u_l + v_{l+1},      Var u_l = (κ_f − 2a²)/n_l,    Var v_l = 2/n_l,     a = d ln E[f²]/d ln q

    ln mean δ_l² = (c_l + a_l g_{l+1}) y_l + …,    Var w_l = (κ_b − 2c² − 2)/n_l,    Var ν_l = 2/n_l

δ_l the gradient of h_l, g_l the factor of y_l in ln mean δ_l². For ReLU κ_f = κ_b = 5, a = 1, c = 0: the variance is
the sum of 5/n over the layers passed, both ways. A norm between h_l and f takes y_l out of the signal, a = 0, and puts
it into the gradient, which it divides by the length: g_l = −1.

The gradient of a weight has the mean square of δ_l times that of what its layer is given, f(h_{l−1}).

A square of rms r has ln r² distributed about normally, with the mean ln E[r²] − v/2 for the variance v. Biases only
narrow this, and so does a batch of inputs that differ, or the positions of a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.activations import Activation
from gradscope.theory._moments import LayerMoments, layer_moments

Array = NDArray[np.float64]

WITHIN = 0.95
"""The share of single networks within the band."""
_SIGMAS = 1.959963984540054
"""Standard deviations of a normal distribution to either side of the mean, for that share."""
_LN10 = math.log(10.0)
_RELU = LayerMoments(log_f2=0.0, log_d2=0.0, f_slope=1.0, d_slope=0.0, kappa_f=5.0, kappa_b=5.0, kappa_fb=1.0)


@dataclass(frozen=True)
class ChainLayer:
    """A linear layer and what stands behind it.

    Attributes:
        width: units (channels) of its output.
        log_q: ln of the mean square of what the activation is given.
        activation: the elementwise activation behind it; None where it is not known, which counts as ReLU.
        normed: a norm stands between the layer and the activation.
    """

    width: float
    log_q: float = 0.0
    activation: Activation | None = None
    normed: bool = False


@dataclass(frozen=True, eq=False)
class ChainSpread:
    """Variances, over random networks, of the natural logarithm of mean squares, for one input; `(layers,)` each.

    Attributes:
        forward: of the pre-activations, the input's length being given.
        backward: of their gradients, the last layer's being given.
        weight_grad: of the weights' gradients, over that of the last layer's weight.
    """

    forward: Array
    backward: Array
    weight_grad: Array


def chain_spread(layers: Sequence[ChainLayer]) -> ChainSpread:
    """The variances of a chain of linear layers, in order of execution.

    Raises:
        ValueError: a width that is not finite and above 0, or no layer.

    >>> relu = chain_spread([ChainLayer(100)] * 11)
    >>> round(float(relu.forward[-1]), 12), round(float(relu.backward[0]), 12)  # 10·5/100, and 2/100 for the last
    (0.52, 0.5)
    """
    if not layers:
        raise ValueError("layers is empty; a chain has one layer at least")
    n = np.array([layer.width for layer in layers], dtype=np.float64)
    if not (np.isfinite(n) & (n > 0.0)).all():
        raise ValueError(f"layers has the widths {n.tolist()}; each must be finite and above 0")
    moments = [_moments(layer) for layer in layers]
    a, c = (np.array([getattr(one, name) for one in moments]) for name in ("f_slope", "d_slope"))
    kappa_f, kappa_b, kappa_fb = (
        np.array([getattr(one, name) for one in moments]) for name in ("kappa_f", "kappa_b", "kappa_fb")
    )
    var_u = np.maximum(kappa_f - 2.0 * a**2, 0.0) / n
    var_w = np.maximum(kappa_b - 2.0 * c**2 - 2.0, 0.0) / n
    cov = (kappa_fb - 2.0 * a * c) / n
    normed = np.array([layer.normed for layer in layers])
    a, c = np.where(normed, 0.0, a), np.where(normed, -1.0, c)

    depth = len(layers)
    given = np.zeros(depth)  # variance of the log of what the layer is given
    for layer in range(1, depth):
        before = layer - 1
        given[layer] = a[before] ** 2 * (given[before] + 2.0 / n[before]) + var_u[before]
    forward = given + 2.0 / n
    backward, weight_grad = np.zeros(depth), np.zeros(depth)
    own, factor = 0.0, 0.0  # variance of what enters from this layer on; g of the layer behind
    shared, passed = 0.0, 1.0  # its covariance with what the last layer is given; the factor of y_{l+1} in that
    for layer in reversed(range(depth - 1)):
        noise = var_u[layer] + 2.0 / n[layer + 1]
        own += factor**2 * noise + 2.0 * factor * cov[layer] + var_w[layer] + 2.0 / n[layer]
        shared += passed * (factor * noise + cov[layer])
        factor, passed = c[layer] + factor * a[layer], passed * a[layer]
        backward[layer] = factor**2 * forward[layer] + own
        both = passed * (factor * forward[layer] + given[layer]) + shared
        weight_grad[layer] = backward[layer] + (1.0 + 2.0 * factor) * given[layer] + given[-1] - 2.0 * both
    return ChainSpread(forward, backward, np.maximum(weight_grad, 0.0))


def _moments(layer: ChainLayer) -> LayerMoments:
    if layer.activation is not None and layer.activation.elementwise and math.isfinite(layer.log_q):
        with suppress(ArithmeticError, ValueError):  # a length at which it passes nothing, or varies too fast
            return layer_moments(layer.activation, layer.log_q)
    return _RELU


def spread_band(log10_rms: ArrayLike, variance: ArrayLike) -> tuple[Array, Array]:
    """Where 95 % of single networks lie, as log10 of rms, about an expected mean square and its log's variance.

    Args:
        log10_rms: log10 of the root of the expected mean square.
        variance: of the natural logarithm of the mean square.

    >>> low, high = spread_band(0.0, 0.01)  # ln r² ~ N(−0.005, 0.1²)
    >>> round(float(low), 4), round(float(high), 4)
    (-0.0436, 0.0415)
    """
    v = np.asarray(variance, dtype=np.float64)
    middle = np.asarray(log10_rms, dtype=np.float64) - v / (4.0 * _LN10)
    half = _SIGMAS * np.sqrt(v) / (2.0 * _LN10)
    return np.asarray(middle - half), np.asarray(middle + half)
