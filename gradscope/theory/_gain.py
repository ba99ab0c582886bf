"""How much an activation passes on of a Gaussian signal's second moment, forward and backward."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from gradscope import activations
from gradscope.activations import Activation
from gradscope.theory._quadrature import expect

Direction = Literal["forward", "backward"]


def second_moment(activation: str | Activation | None, q: float = 1.0) -> float:
    """E[f(√q z)²] for z ~ N(0, 1): the mean square of the activations behind pre-activations of variance q.

    Raises:
        ValueError: an unknown activation; softmax, whose units depend on each other; q below 0.

    >>> round(second_moment("relu", q=3.0), 12)
    1.5
    """
    found = elementwise(activation)
    return expect(lambda h: np.square(found.function(h)), q, found.kinks)


def slope_moment(activation: str | Activation | None, q: float = 1.0) -> float:
    """E[f'(√q z)²] for z ~ N(0, 1): the factor of the gradient's mean square on the way back through f.

    Raises:
        ValueError: as `second_moment`.

    >>> round(slope_moment("gelu"), 10)  # 1/3 + 2/(3·√3·π)
    0.4558508656
    """
    found = elementwise(activation)
    return expect(lambda h: np.square(found.derivative(h)), q, found.kinks)


def gain(activation: str | Activation | None, direction: Direction = "forward", q: float = 1.0) -> float:
    """1/√E[f(z)²], backward 1/√E[f'(z)²], for z ~ N(0, q): the factor on the weights that undoes f.

    At q = 1 weights of variance gain²/fan_in keep the forward (gain²/fan_out the backward) mean square at 1
    (He et al. 2015, eqs. 10 and 14, for any activation). `torch.nn.init.calculate_gain` has no GELU, SiLU,
    Mish or ELU, and for tanh and SELU returns constants that keep neither.

    Args:
        activation: a name as `activations.get` takes it.
        direction: `forward` or `backward`.
        q: variance of the pre-activations.

    Raises:
        ValueError: unknown activation or direction; softmax, which has no elementwise gain.

    >>> round(gain("gelu"), 4), round(gain("gelu", "backward"), 4)
    (1.5335, 1.4811)
    """
    if direction not in get_args(Direction):
        raise ValueError(f"direction={direction!r} must be 'forward' or 'backward'")
    moment = second_moment(activation, q) if direction == "forward" else slope_moment(activation, q)
    if moment == 0.0:
        raise ValueError(f"activation={activation!r} passes nothing {direction} at q={q!r}: it has no gain there")
    return 1.0 / math.sqrt(moment)


def elementwise(activation: str | Activation | None) -> Activation:
    """The activation, unless its units depend on each other."""
    found = activations.get(activation)
    if not found.elementwise:
        raise ValueError(
            f"activation={found.name!r} has no elementwise moments or gain: its units depend on each other"
        )
    return found
