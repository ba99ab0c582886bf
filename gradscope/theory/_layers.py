"""The linear layers of a plain network, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.theory._expectation import Expectation

Array = NDArray[np.float64]
_LN10 = np.log(10.0)


@dataclass(frozen=True)
class Layers:
    """Arrays `(depth,)`, one entry per linear layer; `input_mean_square` is the mean of x² at the first."""

    weight_variance: Array
    fan_in: Array
    fan_out: Array
    bias_variance: Array
    input_mean_square: float

    @property
    def depth(self) -> int:
        """How many linear layers."""
        return int(self.fan_in.size)

    @property
    def log_forward(self) -> Array:
        """ln σ_w² = ln(fan_in·weight_variance): the factor on the mean square, forward, `(depth,)`."""
        return np.asarray(np.log(self.fan_in) + np.log(self.weight_variance))

    @property
    def log_backward(self) -> Array:
        """ln(fan_out·weight_variance): the factor on the gradient's mean square, backward, `(depth,)`."""
        return np.asarray(np.log(self.fan_out) + np.log(self.weight_variance))


def expectation(
    log_q: Array,
    log_f2: Array,
    log_p: Array,
    log_e: Array,
    forward_var: Array,
    backward_var: Array,
    label: str,
    *,
    stable: bool,
    valid: NDArray[np.bool_] | None = None,
) -> Expectation:
    """An `Expectation` from natural logarithms of mean squares; those of activations lack the last layer."""
    return Expectation(
        pre=log_q / (2.0 * _LN10),
        act=np.append(log_f2, np.nan) / (2.0 * _LN10),
        pre_grad=log_p / (2.0 * _LN10),
        act_grad=np.append(log_e, np.nan) / (2.0 * _LN10),
        forward_var=forward_var,
        backward_var=backward_var,
        label=label,
        stable=stable,
        valid=np.ones(log_q.shape, dtype=np.bool_) if valid is None else valid,
    )
