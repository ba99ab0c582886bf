"""The fans of a layer: how many inputs one output sums, and how many outputs one input feeds.

The definition, by which the tests measure them (w with mean 0, x and the output's gradient independent of w):

    fan_in  = E[y²] / (Var w · E[x²])            y = layer(x)
    fan_out = E[(∂L/∂x)²] / (Var w · E[(∂L/∂y)²])

taken over inputs and outputs away from the borders (zero padding lowers both there).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn.parameter import is_lazy


class Fans(NamedTuple):
    """The two fans of a weight; a fraction where a stride does not divide the kernel.

    >>> Fans(fan_in=256, fan_out=64).fan_avg
    160.0
    """

    fan_in: float
    fan_out: float

    @property
    def fan_avg(self) -> float:
        """(fan_in + fan_out)/2, Glorot's compromise between the two directions."""
        return (self.fan_in + self.fan_out) / 2


@dataclass(frozen=True)
class Block:
    """Some rows of a weight that act as one matrix: a gate of an LSTM, the queries of an attention.

    Attributes:
        name: the gate's or projection's name; empty where the weight is one matrix.
        rows: the rows of the weight, None for all.
        fans: the block's own fans.
        activation: the activation that the module itself applies after this block, None where that is not
            fixed by the module.
    """

    name: str
    rows: slice | None
    fans: Fans
    activation: str | None = None

    def of(self, weight: Tensor) -> Tensor:
        """The block's part of the weight: a view."""
        return weight if self.rows is None else weight[self.rows]


Blocks = dict[str, tuple[Block, ...]]


def tensor_fans(tensor: Tensor) -> Fans:
    """The fans of a bare weight (out, in, *kernel) by its shape alone, as `torch.nn.init` takes them."""
    if is_lazy(tensor):
        raise ValueError("tensor is a lazy parameter that has no shape yet; run one forward first")
    if tensor.dim() < 2:
        raise ValueError(
            f"tensor of shape {tuple(tensor.shape)} has no fans: they need 2 or more dimensions "
            f"(out, in, *kernel); give fans=Fans(fan_in, fan_out)"
        )
    out, into, *kernel = tensor.shape
    return Fans(into * math.prod(kernel), out * math.prod(kernel))
