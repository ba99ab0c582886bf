"""Slopes of pointwise activations where their values lie: f'(z) of the input, or of the output where that tells it.

The table of `gradscope.activations` has them in numpy, which a tensor on a device would have to leave it for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gradscope._activation_functions import SELU_ALPHA, SELU_SCALE
from gradscope.activations import Activation

Parameters = Mapping[str, float | Tensor]
SlopeFunction = Callable[[Tensor, Parameters], Tensor]

_GELU_TANH = (2.0 * math.sqrt(2.0 / math.pi), 0.044715)


def _sigmoid(z: Tensor, _: Parameters) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _tanh(z: Tensor, _: Parameters) -> Tensor:
    return torch.cosh(z.clamp(-350.0, 350.0)).square().reciprocal()


def _step(z: Tensor, below: float | Tensor, times: Tensor | float = 1.0) -> Tensor:
    """1 above 0, and elsewhere `below`, times what is 1 above 0 (`torch.where` with a number takes far longer)."""
    return z.sign().clamp_(min=0.0) * (1.0 - below) + below * times


def _leaky(z: Tensor, given: Parameters) -> Tensor:
    return _step(z, given["slope"]) if "slope" in given else z.sign().clamp_(min=0.0)


def _between(z: Tensor, given: Parameters) -> Tensor:
    return ((z > given["low"]) & (z < given["high"])).double()


def _elu(z: Tensor, given: Parameters) -> Tensor:
    return _step(z, given["alpha"], torch.exp(z.clamp(max=0.0)))


def _celu(z: Tensor, given: Parameters) -> Tensor:
    return torch.exp(z.clamp(max=0.0) / given["alpha"])


def _selu(z: Tensor, _: Parameters) -> Tensor:
    return SELU_SCALE * _step(z, SELU_ALPHA, torch.exp(z.clamp(max=0.0)))


def _gelu(z: Tensor, _: Parameters) -> Tensor:
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
    below: Tensor = torch.special.ndtr(z)
    return below + z * density


def _gelu_tanh(z: Tensor, _: Parameters) -> Tensor:
    near = z.clamp(-40.0, 40.0)  # beyond, the slope is 0 or 1 to the last digit
    gate = _GELU_TANH[0] * (near + _GELU_TANH[1] * near**3)
    return torch.sigmoid(gate) + near * _sigmoid(gate, {}) * _GELU_TANH[0] * (1 + 3 * _GELU_TANH[1] * near.square())


def _silu(z: Tensor, _: Parameters) -> Tensor:
    return torch.sigmoid(z) + z * _sigmoid(z, {})


def _mish(z: Tensor, _: Parameters) -> Tensor:
    z = z.clamp(-750.0, 750.0)  # beyond, the slope is 0 or 1 to the last digit
    smooth: Tensor = torch.nn.functional.softplus(z, threshold=1e4)
    return torch.tanh(smooth) + z * _tanh(smooth, {}) * torch.sigmoid(z)


def _softplus(z: Tensor, given: Parameters) -> Tensor:
    return torch.sigmoid(given["beta"] * z)


def _softsign(z: Tensor, _: Parameters) -> Tensor:
    return (1 + z.abs()).square().reciprocal()


def _hardsigmoid(z: Tensor, _: Parameters) -> Tensor:
    return (z.abs() < 3.0).double() / 6.0


def _hardswish(z: Tensor, _: Parameters) -> Tensor:
    return (z.abs() < 3.0) * (z / 3.0 + 0.5) + (z >= 3.0)


def _sin(z: Tensor, _: Parameters) -> Tensor:
    return torch.cos(z)


OF_INPUT: dict[str, SlopeFunction] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "relu": _leaky,
    "leaky_relu": _leaky,
    "prelu": _leaky,
    "relu6": _between,
    "elu": _elu,
    "celu": _celu,
    "selu": _selu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "mish": _mish,
    "softplus": _softplus,
    "softsign": _softsign,
    "hardtanh": _between,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "sin": _sin,
}
"""By the activation's name in the table, its slope as a function of its input."""


OF_OUTPUT: dict[str, SlopeFunction] = {
    "tanh": lambda y, _: 1 - y.square(),
    "sigmoid": lambda y, _: y * (1 - y),
    "relu": _leaky,
    "leaky_relu": _leaky,
    "relu6": _between,
    "elu": lambda y, given: y.clamp(max=0.0) + _step(y, given["alpha"]),
    "celu": lambda y, given: y.clamp(max=0.0) / given["alpha"] + 1,
    "selu": lambda y, _: y.clamp(max=0.0) + SELU_SCALE * _step(y, SELU_ALPHA),
    "softplus": lambda y, given: -torch.expm1(-given["beta"] * y),
    "softsign": lambda y, _: (1 - y.abs()).square(),
    "hardtanh": _between,
    "hardsigmoid": lambda y, _: ((y > 0) & (y < 1)).double() / 6.0,
}
"""The same as a function of the output, for those that can be inverted as far as their slope goes."""

_LARGEST = {"tanh": 1.0, "sigmoid": 0.25, "softsign": 1.0, "hardsigmoid": 1.0 / 6.0, "hardtanh": 1.0}
"""Of the bounded activations, the largest slope. ReLU6 is none: half of its slope's range is a ReLU's silence."""


def base_name(activation: Activation) -> str:
    """The activation's name without its parameters."""
    return activation.name.partition("(")[0]


def largest_slope(activation: Activation) -> float | None:
    """The largest slope of a bounded activation, None of another; `hardtanh(0, b)` is a ReLU with a lid."""
    if activation.params.get("low", -1.0) >= 0:
        return None
    return _LARGEST.get(base_name(activation))


def parameters_of(activation: Activation, slopes: Tensor | None) -> Parameters:
    """What its slope depends on beside its input; `slopes` are PReLU's own, one or one a unit."""
    found: dict[str, float | Tensor] = dict(activation.params)
    if slopes is not None and base_name(activation) == "prelu":
        found["slope"] = slopes.detach().double()
    if base_name(activation) == "relu6":
        found |= {"low": 0.0, "high": 6.0}
    return found


def output_tells(activation: Activation) -> bool:
    """Whether the output alone tells the slope: one that turns back below 0 does not, nor PReLU, which may."""
    turns = activation.params.get("slope", 0.0) < 0 or activation.params.get("alpha", 1.0) < 0
    return base_name(activation) in OF_OUTPUT and not turns
