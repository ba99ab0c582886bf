"""Identity weights: each unit iterates the activation by itself, from its own input z ~ N(0, input_mean_square).

h_1 = g x, h_{l+1} = g f(h_l), g = √(fan_in·weight_variance), so that h_l = F_l(z) and the gradient of h_l is
D_l(z)·v with v ~ N(0, 1) and D_l the product of g f'(F_k) over the layers k ≥ l passed. The means are over z, the
spread that of n independent units:

    Var ln mean h_l²  = ln(1 + (E F⁴/E[F²]² - 1 - 2a²)/n),      a = E[F² (z² - 1)]/(2 E F²)
    Var ln mean δ_l²  = ln(1 + (3 E D⁴/E[D²]² - 1 - 2c²)/n),    c = E[D² (z² - 1)]/(2 E D²)

-2a², -2c²: the input lies on its sphere, |x|² is given (identity: F² ∝ z², no spread at all). ln(1 + ·/n) is
the log-normal's variance for that relative variance; iterates have heavy tails.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradscope.activations import Activation
from gradscope.theory._expectation import Expectation
from gradscope.theory._layers import Layers, expectation
from gradscope.theory._quadrature import density, integrate, panel_ends, positions

Array = NDArray[np.float64]

LABEL = "identity weights"
_TOLERANCE = 1e-11  # of fifty rows at once, each with its own narrow places
_FINEST = 1e-10  # beside a repelling fixed point (hardswish's 3) iterates amplify the rounding of z itself
_LARGEST_LOG = 300.0  # of a value squared once more; e^600 is a float


def identity_weights(activation: Activation, layers: Layers) -> Expectation:
    """The expectation for W = g·I, for an elementwise activation.

    Raises:
        ArithmeticError: the iterates are chaotic, so that no quadrature resolves them.
    """
    depth, log_gain = layers.depth, layers.log_forward
    spread = np.sqrt(layers.input_mean_square)
    ends = panel_ends(float(np.exp(log_gain[0])) * layers.input_mean_square, activation.kinks)

    def log_squares(z: Array) -> Array:
        return _iterate(activation, np.exp(0.5 * log_gain), spread * z)

    # Rows are divided by their largest value on the first panels before they are squared.
    top = np.max(log_squares(positions(ends)), axis=(1, 2), keepdims=True)

    def integrand(z: Array) -> Array:
        logs = log_squares(z) - top
        if logs.max() > _LARGEST_LOG:
            raise ArithmeticError("the function could not be resolved: it varies too fast for quadrature")
        squares = np.exp(logs)
        return np.concatenate([squares, squares**2, squares * (z * z)]) * density(z)

    second, fourth, tilted = integrate(integrand, ends, _TOLERANCE, _FINEST).reshape(3, 2, depth)
    log_q, log_p = np.log(second) + top.reshape(2, depth)
    log_p[-1] = 0.0  # put in, not found
    slopes = 0.5 * (tilted / second - 1.0)
    kurtosis = np.array([[1.0], [3.0]]) * fourth / second**2
    forward_var, backward_var = np.log1p(np.maximum(kurtosis - 1.0 - 2.0 * slopes**2, 0.0) / layers.fan_in)
    return expectation(
        log_q,
        log_q[1:] - log_gain[1:],
        log_p,
        log_p[1:] + log_gain[1:],
        forward_var,
        backward_var,
        LABEL,
        stable=representative(forward_var, backward_var),
    )


def representative(*variances: Array) -> bool:
    """Whether n units see the mean: its relative variance is at most 1, so that ln(1 + ·) is at most ln 2.

    Above, the mean is carried by inputs too rare to occur in one network, such as those at SELU's repelling 0.
    """
    return bool(max(np.nanmax(one) for one in variances) <= np.log(2.0))


def _iterate(activation: Activation, gains: Array, x: Array) -> Array:
    """ln F_l² for each layer, then ln D_l²: `(2·depth, *x.shape)`."""
    log_f = np.empty((gains.size, *x.shape))
    log_d = np.zeros_like(log_f)
    h = gains[0] * x
    with np.errstate(divide="ignore"):
        for layer in range(gains.size):
            log_f[layer] = 2.0 * np.log(np.abs(h))
            if layer < gains.size - 1:
                log_d[layer] = 2.0 * np.log(np.abs(gains[layer + 1] * activation.derivative(h)))
                h = gains[layer + 1] * activation.function(h)
    return np.concatenate([log_f, np.cumsum(log_d[::-1], axis=0)[::-1]])
