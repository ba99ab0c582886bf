"""The gains of every activation, side by side, with those that torch has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradscope import activations
from gradscope.activations import Activation
from gradscope.theory._gain import elementwise
from gradscope.theory._moments import layer_moments
from gradscope.theory._quadrature import expect

_TORCH = {"identity": 1.0, "sigmoid": 1.0, "tanh": 5.0 / 3.0, "relu": math.sqrt(2.0), "selu": 0.75}
"""`torch.nn.init.calculate_gain`, but for leaky ReLU, whose gain is a function of its slope."""


@dataclass(frozen=True)
class GainRow:
    """One activation behind pre-activations N(0, 1).

    Attributes:
        name: as `activations.get` takes it.
        mean: E[f].
        second_moment: E[f²].
        slope_moment: E[f'²].
        forward_gain: 1/√E[f²].
        backward_gain: 1/√E[f'²].
        chi: (forward_gain/backward_gain)²: factor of a gradient's mean square per layer under the forward gain, and
            per layer of Linear, LayerNorm and f under any.
        length_slope: V'(1) under the forward gain; above 1 lengths leave 1.
        batch_norm_rate: E[f'²]/Var f: factor of a gradient's mean square per layer behind BatchNorm.
        torch_gain: what `torch.nn.init.calculate_gain` returns; None where it knows no such activation.
    """

    name: str
    mean: float
    second_moment: float
    slope_moment: float
    forward_gain: float
    backward_gain: float
    chi: float
    length_slope: float
    batch_norm_rate: float
    torch_gain: float | None


@dataclass(frozen=True)
class GainTable:
    """The gains of activations.

    Attributes:
        rows: one an activation, by increasing forward gain.
        chosen: names of those to be pointed out.
    """

    rows: tuple[GainRow, ...]
    chosen: tuple[str, ...] = ()


def gain_table(chosen: Sequence[str | Activation] = ()) -> GainTable:
    """The gains of every elementwise activation that GradScope knows, and of those chosen.

    Args:
        chosen: names as `activations.get` takes them, to be pointed out; with parameters of their own they are rows
            of their own. Those that are not elementwise have no gain and are left out.

    Raises:
        ValueError: an unknown activation.

    >>> [row.name for row in gain_table().rows[:3]]
    ['identity', 'selu', 'softplus']
    """
    given = [activations.get(one) for one in chosen]
    known = [activations.get(name) for name in activations.names()]
    rows = {one.name: gain_row(one) for one in (*known, *given) if one.elementwise}
    pointed = tuple(dict.fromkeys(one.name for one in given if one.elementwise))
    return GainTable(tuple(sorted(rows.values(), key=lambda row: (round(row.forward_gain, 9), row.name))), pointed)


def gain_row(activation: str | Activation | None) -> GainRow:
    """The row of one activation.

    Raises:
        ValueError: an unknown activation, or one that is not elementwise.
    """
    found = elementwise(activation)
    moments = layer_moments(found, 0.0)
    mean, second, slope = expect(found.function, 1.0, found.kinks), math.exp(moments.log_f2), math.exp(moments.log_d2)
    return GainRow(
        name=found.name,
        mean=mean,
        second_moment=second,
        slope_moment=slope,
        forward_gain=1.0 / math.sqrt(second),
        backward_gain=1.0 / math.sqrt(slope),
        chi=slope / second,
        length_slope=moments.f_slope,
        batch_norm_rate=slope / (second - mean**2),
        torch_gain=_torch_gain(found),
    )


def _torch_gain(activation: Activation) -> float | None:
    if activation.name.partition("(")[0] == "leaky_relu":
        return math.sqrt(2.0 / (1.0 + activation.params["slope"] ** 2))
    return _TORCH.get(activation.name)
