"""A weight as the rules of `audit` see it: what its entries are, and what they should be."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gradscope.activations import Activation
from gradscope.init._fans import Fans, tensor_fans
from gradscope.init._registry import recommend
from gradscope.theory import second_moment

SURE = 5.0
"""Standard errors within which a measured variance counts as one that was asked for."""
TELLING = 0.35
"""So far, as a part of itself, a variance may be uncertain and still be told from another."""
_FEWEST = 32
"""Entries of which a normal distribution of the same variance has one beyond a uniform one's limit."""


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight, or a block of a packed one, that acts as one matrix.

    Attributes:
        module_name: qualified name of the layer.
        path: of the weight.
        block: gate or projection, empty where the weight is one matrix.
        module: whose it is.
        value: the entries.
        parameter: the whole of a packed weight.
        fans: the true ones of the block.
        activation: that follows; None where none does, or it is not elementwise.
    """

    module_name: str
    path: str
    block: str
    module: nn.Module
    value: Tensor
    parameter: Tensor
    fans: Fans
    activation: Activation | None

    @property
    def name(self) -> str:
        """With the block."""
        return f"{self.path}[{self.block}]" if self.block else self.path

    @property
    def plain(self) -> bool:
        """Whether the layer is one product with the weight: a Linear or a convolution."""
        return isinstance(self.module, nn.Linear | _ConvNd)

    @property
    def torch_fans(self) -> Fans:
        """The fans that torch gives the whole parameter, by its shape."""
        return tensor_fans(self.parameter)

    @functools.cached_property
    def square(self) -> float:
        """Mean square of the entries."""
        return float(self.value.double().square().mean())

    @functools.cached_property
    def largest(self) -> float:
        """The largest absolute value."""
        return float(self.value.abs().max())

    @functools.cached_property
    def error(self) -> float:
        """Relative standard error of `square`, by the entries' own fourth moment."""
        squares = self.value.double().square().ravel()
        mean = float(squares.mean())
        return float(squares.std()) / mean / math.sqrt(squares.numel()) if mean > 0.0 and squares.numel() > 1 else 0.0

    @property
    def forward(self) -> float:
        """fan_in·E[w²]: factor of the mean square from what goes in to what comes out."""
        return self.fans.fan_in * self.square

    @functools.cached_property
    def needed(self) -> float:
        """What `forward` has to be for the activation behind to keep the mean square 1."""
        return 1.0 if self.activation is None else 1.0 / second_moment(self.activation)

    @functools.cached_property
    def asked_variance(self) -> float:
        """Of one entry, by the scheme that is recommended before the activation."""
        variance = recommend(self.activation).variance(self.fans)
        assert variance is not None  # a recommended scheme is a random one
        return variance

    @property
    def asked(self) -> float:
        """What `forward` is under the recommended scheme."""
        return self.fans.fan_in * self.asked_variance

    @functools.cached_property
    def usual(self) -> float:
        """fan·variance under the recommended scheme where both fans are the same: 2 before ReLU, 1 before tanh."""
        return recommend(self.activation).variance(Fans(1.0, 1.0)) or 0.0

    @property
    def bias(self) -> Tensor | None:
        """The layer's one bias; None where it has none, or several."""
        bias = getattr(self.module, "bias", None)
        return bias.detach() if isinstance(bias, Tensor) and bias.numel() else None

    @functools.cached_property
    def bias_square(self) -> float:
        """Mean square of the biases, 0 without any."""
        return 0.0 if self.bias is None else float(self.bias.double().square().mean())

    def has(self, variance: float) -> bool:
        """Whether the entries have this variance; False too where they are too few to tell it from half as much."""
        if variance <= 0.0:
            return self.square == 0.0
        return SURE * self.error <= TELLING and self._may_have(variance)

    def is_uniform(self, limit: float) -> bool:
        """Whether the entries can be U(±limit): none beyond, the largest near it, the variance limit²/3."""
        rounding = 2.0 * torch.finfo(self.value.dtype).eps
        reached = 1.0 - 10.0 / self.value.numel() - rounding  # of n draws all are below with a probability of e⁻¹⁰
        tells = self.value.numel() >= _FEWEST and reached * limit <= self.largest <= (1.0 + rounding) * limit
        return tells and self._may_have(limit**2 / 3.0)

    def _may_have(self, variance: float) -> bool:
        return abs(self.square / variance - 1.0) <= SURE * self.error + 1e-6
