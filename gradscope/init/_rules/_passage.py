"""What a row of layers does to the mean square, both ways, by mean field and from the measured weights.

    q = fan_in·E[w²]·m + E[b²],   m' = E[f(√q z)²]                 forward, from m = 1
    p = p'·fan_out·E[w²]·E[f'(√q z)²]                              backward

(Poole et al. 2016; Schoenholz et al. 2017), carried as logarithms, with the activation of each layer its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from gradscope.init._audit_weight import Weight
from gradscope.theory._mean_field import highest
from gradscope.theory._moments import layer_moments

_DECADES = 0.5 / math.log(10.0)  # of rms, per ln of a mean square
_LARGEST = 700.0


@dataclass(frozen=True)
class Passage:
    """What becomes of the rms 1.

    Attributes:
        after: decades of the activations' rms behind each layer.
        backward: decades that the gradient's rms gains from the last layer to the first.
        bias_share: E[b²] over what the weights pass on, for each layer; 0 where biases are not looked at.
    """

    after: tuple[float, ...]
    backward: float
    bias_share: tuple[float, ...]

    @property
    def forward(self) -> float:
        """Decades of the activations' rms behind the last layer."""
        return self.after[-1] if self.after else 0.0


def measured(weight: Weight) -> float:
    """The variance that the entries have."""
    return weight.square


def asked(weight: Weight) -> float:
    """The variance that the recommended scheme has."""
    return weight.asked_variance


def passage(row: Sequence[Weight], variance: Callable[[Weight], float] = measured, *, biases: bool = False) -> Passage:
    """Forward and backward through the row, each weight with its variance; with `biases` theirs are added."""
    log_m = log_p = 0.0
    after, shares = [], []
    for weight in row:
        activation = weight.activation
        if activation is None:
            continue
        log_variance = math.log(variance(weight))
        arriving = math.log(weight.fans.fan_in) + log_variance + log_m
        log_bias = math.log(weight.bias_square) if biases and weight.bias_square > 0.0 else -math.inf
        shares.append(math.exp(min(log_bias - arriving, _LARGEST)))
        log_q = min(float(np.logaddexp(arriving, log_bias)), highest(activation))
        moments = layer_moments(activation, log_q)
        log_m = moments.log_f2
        log_p += math.log(weight.fans.fan_out) + log_variance + moments.log_d2
        after.append(log_m * _DECADES)
    return Passage(tuple(after), log_p * _DECADES, tuple(shares))


def with_measured(blamed: Collection[Weight]) -> Callable[[Weight], float]:
    """The measured variance of these, of all others that which is asked: what these alone cost."""
    return lambda weight: weight.square if weight in blamed else weight.asked_variance
