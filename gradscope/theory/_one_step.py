"""Each layer predicted from the measured one before it: a faulty layer stands out at any depth.

Given the mean square Q_l of the pre-activations h_l, over the units and for one input,

    ln Q_{l+1} − ln V(Q_l)              has variance (κ_f − 2a² + 2)/n,     a = d ln E[f²]/d ln q
    ln P_l − ln(P_{l+1}·chi(Q_l))       has variance (κ_b − 2c²)/n,         c = d ln E[f'²]/d ln q

and a mean of −½ of that, P_l the mean square of the gradient of h_l (`_random_weights` says where the terms come from).
No error accumulates: where the whole profile of a GELU network strays by orders of magnitude, its steps do not. At
initialization, that is: the weights of a trained network are no longer independent of each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.activations import Activation
from gradscope.theory._gain import elementwise
from gradscope.theory._moments import LayerMoments, layer_moments

Array = NDArray[np.float64]


@dataclass(frozen=True)
class OneStep:
    """Residuals of a plain network against the theory of one layer, in natural logarithms.

    Attributes:
        forward: ln Q_{l+1} less its expected value, for the layers 2 … depth, `(depth − 1,)`.
        forward_sd: their standard deviations.
        backward: ln P_l less its expected value, for the layers 1 … depth − 1, `(depth − 1,)`.
        backward_sd: theirs.
    """

    forward: Array
    forward_sd: Array
    backward: Array
    backward_sd: Array

    @property
    def forward_z(self) -> Array:
        """Standard scores: within ±5 a healthy network of many layers lies all but surely."""
        return self.forward / self.forward_sd

    @property
    def backward_z(self) -> Array:
        """Likewise of the gradient."""
        return self.backward / self.backward_sd


def one_step(
    activation: str | Activation | None,
    lengths: ArrayLike,
    grads: ArrayLike,
    *,
    sigma_w2: ArrayLike,
    backward_gain: ArrayLike | None = None,
    sigma_b2: ArrayLike = 0.0,
    width: ArrayLike,
) -> OneStep:
    """How far each layer of a measured network is from what the one before it lets expect.

    Args:
        activation: a name as `activations.get` takes it; elementwise.
        lengths: mean square of each layer's pre-activations, `(depth,)`.
        grads: of their gradients, `(depth,)`.
        sigma_w2: fan_in·mean W² of each layer, best of the actual weights; a number, or `(depth,)`.
        backward_gain: fan_out·mean W² of each; sigma_w2 by default.
        sigma_b2: mean square of the biases; likewise.
        width: units of each layer; likewise.

    Raises:
        ValueError: not one number for each layer, or one out of its range.

    >>> found = one_step("relu", [2.0, 2.2, 1.9], [1.0, 1.1, 1.0], sigma_w2=2.0, width=1000)
    >>> [round(float(z), 2) for z in found.forward_z]
    [1.38, -2.04]
    """
    found = elementwise(activation)
    measured, back = _column("lengths", lengths, None, above=True), _column("grads", grads, None, above=True)
    depth = measured.size
    if back.size != depth or depth < 2:
        raise ValueError(
            f"lengths has {depth} layers and grads {back.size}; both have one number a layer, two at least"
        )
    weights = _column("sigma_w2", sigma_w2, depth, above=True)
    backward = weights if backward_gain is None else _column("backward_gain", backward_gain, depth, above=True)
    biases = _column("sigma_b2", sigma_b2, depth)
    units = _column("width", width, depth, above=True)
    forward, forward_var, gradient, gradient_var = (np.empty(depth - 1) for _ in range(4))
    for i in range(depth - 1):
        here = layer_moments(found, math.log(measured[i]))
        from_weights = weights[i + 1] * math.exp(here.log_f2)
        share = from_weights / (from_weights + biases[i + 1])
        forward_var[i] = share**2 * max(here.kappa_f - 2.0 * here.f_slope**2, 0.0) / units[i] + 2.0 / units[i + 1]
        forward[i] = math.log(measured[i + 1] / (from_weights + biases[i + 1])) + forward_var[i] / 2.0
        gradient_var[i] = _backward_var(here, units[i])
        expected = back[i + 1] * backward[i + 1] * math.exp(here.log_d2)
        gradient[i] = math.log(back[i] / expected) + gradient_var[i] / 2.0
    return OneStep(forward, np.sqrt(forward_var), gradient, np.sqrt(gradient_var))


def _backward_var(here: LayerMoments, units: float) -> float:
    return max(here.kappa_b - 2.0 * here.d_slope**2, 2.0) / units


def _column(name: str, given: ArrayLike, depth: int | None, *, above: bool = False) -> Array:
    values = np.asarray(given, dtype=np.float64)
    if depth is not None and values.ndim == 0:
        values = np.full(depth, values)
    if values.ndim != 1 or (depth is not None and values.size != depth):
        raise ValueError(f"{name} has shape {values.shape}; it has one number for each layer")
    if not np.all(np.isfinite(values) & ((values > 0.0) if above else (values >= 0.0))):
        raise ValueError(f"{name}={given!r} must be finite and {'above' if above else 'at least'} 0")
    return values
