"""What mean-field theory expects of a sweep's cell."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Literal

import numpy as np

from gradscope import theory
from gradscope.experiments._adjustment import edge
from gradscope.experiments._networks import layer_fans
from gradscope.init import get_scheme
from gradscope.recording import Expected

Weights = Literal["independent", "orthogonal", "identity"]


def expected(family: str, init: str, activation: str, depth: int, width: int) -> Expected:
    """The theory's curves for one cell; schemes of one variance share them.

    A convolution with circular padding obeys the dense map with the same σ_w² = fan_in·variance. Its spread
    is given as that of a dense layer of `width` units: an upper bound, since the positions of a sample
    average part of it away. Sparse weights stray a tenth farther than their band says, since they are no normal
    ones.
    """
    if init == "edge_of_chaos":
        sigma_w, sigma_b = edge(activation)
        return _adjusted(activation, depth, sigma_w**2, sigma_b**2, width)
    if init == "lsuv":  # each pre-activation has variance 1, however the weights have come out
        found = _adjusted(activation, depth, theory.gain(activation) ** 2, 0.0, width)
        return replace(found, forward_var=np.zeros(depth))
    return _propagated(activation, depth, *_weights(family, init, width), width)


def _weights(family: str, init: str, width: int) -> tuple[Weights, float]:
    """(kind of randomness, σ_w²) of a scheme."""
    if init in ("identity", "hadamard"):  # of equal fans the same
        return "identity", 1.0
    if init == "delta_orthogonal":  # one orthogonal matrix, at the kernel's centre: each position is a dense layer
        return "orthogonal", 1.0
    fans = layer_fans(family, width)
    variance = get_scheme(init).variance(fans)
    assert variance is not None, f"{init} has no variance"
    # A convolution's orthogonal rows, width × 9·width, are to each output as good as independent.
    orthogonal = init in ("orthogonal", "scaled_orthogonal") and family == "mlp"
    return ("orthogonal" if orthogonal else "independent"), fans.fan_in * variance


@functools.lru_cache(maxsize=256)
def _propagated(activation: str, depth: int, weights: Weights, sigma_w_squared: float, width: int) -> Expected:
    found = theory.propagate(activation, depth, weight_variance=sigma_w_squared / width, fan_in=width, weights=weights)
    return _as_expected(found)


@functools.lru_cache(maxsize=256)
def _adjusted(activation: str, depth: int, sigma_w2: float, sigma_b2: float, width: int) -> Expected:
    """The first layer, which no activation is before, with σ_w² = 1 and no biases."""
    variances = np.full(depth, sigma_w2 / width)
    biases = np.full(depth, sigma_b2)
    variances[0], biases[0] = 1.0 / width, 0.0
    return _as_expected(
        theory.propagate(activation, depth, weight_variance=variances, fan_in=width, bias_variance=biases)
    )


def _as_expected(found: theory.Expectation) -> Expected:
    return Expected(
        pre=found.pre,
        act=found.act,
        pre_grad=found.pre_grad,
        act_grad=found.act_grad,
        forward_var=found.forward_var,
        backward_var=found.backward_var,
        label=found.label,
        stable=found.stable,
        valid=found.valid,
    )
