"""Variance scaling: independent weights of mean 0 and variance scale/fan, in three distributions.

    Var w = scale / n,   n = fan_in, fan_out or fan_avg = (fan_in + fan_out)/2

Glorot, He and LeCun are three of its settings (LeCun et al. 1998; Glorot & Bengio 2010; He et al. 2015).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gradscope.init._fans import Fans, tensor_fans
from gradscope.recording._errors import unknown_name

Mode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["normal", "truncated_normal", "uniform"]

_CUT = 2.0  # the truncated normal ends at two of its own (untruncated) standard deviations, as Keras' does
_DENSITY_AT_CUT = math.exp(-0.5 * _CUT**2) / math.sqrt(2.0 * math.pi)
TRUNCATED_STD = math.sqrt(1.0 - 2.0 * _CUT * _DENSITY_AT_CUT / math.erf(_CUT / math.sqrt(2.0)))
"""Standard deviation of N(0, 1) cut at ±2: √(1 - 2c·pdf(c)/erf(c/√2)), c = 2; 0.8796."""


@dataclass(frozen=True)
class VarianceScaling:
    """Fills a weight in place with independent numbers of mean 0 and variance scale/fan.

    Attributes:
        scale: the variance times the fan; a positive number.
        mode: which fan: `fan_in` keeps the forward signal, `fan_out` the backward one, `fan_avg` is between.
        distribution: `normal`; `truncated_normal`, cut at two standard deviations and widened by 1/0.8796 so
            that the variance is the one asked; `uniform`, within ±√3·std.

    The defaults are Keras'. Under `torch.nn.init`'s names, `VarianceScaling(2.0, "fan_in", "normal")` is
    `kaiming_normal_` and `VarianceScaling(1.0, "fan_avg", "uniform")` is `xavier_uniform_`, bit for bit.

    Raises:
        ValueError: a scale that is not positive and finite, an unknown mode or distribution.

    >>> glorot_relu = VarianceScaling(2.0, "fan_avg", "uniform")
    >>> glorot_relu.variance(Fans(fan_in=300, fan_out=100))
    0.01
    >>> weight = glorot_relu(torch.empty(100, 300), generator=torch.Generator().manual_seed(0))
    >>> bool(weight.abs().max() <= (3 * 0.01) ** 0.5)
    True
    """

    scale: float = 1.0
    mode: Mode = "fan_in"
    distribution: Distribution = "truncated_normal"

    def __post_init__(self) -> None:
        number = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        if not (number and 0.0 < self.scale < math.inf):
            raise ValueError(f"scale={self.scale!r} must be a positive, finite number")
        if self.mode not in get_args(Mode):
            raise unknown_name("mode", self.mode, get_args(Mode))
        if self.distribution not in get_args(Distribution):
            raise unknown_name("distribution", self.distribution, get_args(Distribution))

    def std(self, fans: Fans) -> float:
        """The standard deviation asked of a weight with these fans."""
        # In torch's order of operations, so that kaiming_* and xavier_* are met to the last bit.
        if self.mode == "fan_avg":
            return math.sqrt(self.scale) * math.sqrt(2.0 / float(fans.fan_in + fans.fan_out))
        return math.sqrt(self.scale) / math.sqrt(fans.fan_in if self.mode == "fan_in" else fans.fan_out)

    def variance(self, fans: Fans, shape: tuple[int, ...] | None = None) -> float:
        """scale/fan: the variance asked of a weight with these fans; the shape does not matter."""
        return self.scale / (fans.fan_avg if self.mode == "fan_avg" else getattr(fans, self.mode))

    def __call__(self, tensor: Tensor, *, fans: Fans | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Fill `tensor` in place and return it; without `fans` it has torch's (`init.fans(tensor)`)."""
        if not ready(tensor, generator):
            return tensor
        std = self.std(Fans(*fans) if fans is not None else tensor_fans(tensor))
        with torch.no_grad():
            if self.distribution == "normal":
                return tensor.normal_(0.0, std, generator=generator)
            if self.distribution == "uniform":
                limit = math.sqrt(3.0) * std
                return tensor.uniform_(-limit, limit, generator=generator)
            return _truncated_normal_(tensor, std, generator)


def ready(tensor: Tensor, generator: torch.Generator | None) -> bool:
    """Whether there is anything to fill: not on the meta device, nor where there are no elements.

    Raises:
        TypeError: a tensor that is not of real floating point.
        ValueError: a generator of another device.
    """
    if not tensor.is_floating_point():
        raise TypeError(f"tensor has dtype {tensor.dtype}; an initial weight is of real floating point")
    if tensor.is_meta:
        return False
    if tensor.numel() == 0:
        message = f"tensor of shape {tuple(tensor.shape)} has no elements: nothing to initialize"
        warnings.warn(message, stacklevel=4)
        return False
    if generator is not None and generator.device.type != tensor.device.type:
        raise ValueError(
            f"generator is on {generator.device}, the tensor on {tensor.device}; "
            f"make it with torch.Generator({tensor.device.type!r})"
        )
    return True


def _truncated_normal_(tensor: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    untruncated = std / TRUNCATED_STD
    end = _CUT * untruncated
    exact = tensor.dtype in (torch.float32, torch.float64)
    # Half precision is drawn in float32 and rounded: its own coarse tail would be cut at a rounded place.
    wide = tensor if exact else tensor.new_empty(tensor.shape, dtype=torch.float32)
    torch.nn.init.trunc_normal_(wide, 0.0, untruncated, -end, end, generator=generator)
    return tensor if exact else tensor.copy_(wide)
