"""The theory's answer: a profile in decades, its spread, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Expectation:
    """What a plain network of random weights does to the signal; layer l is row l - 1 of each array.

    Attributes:
        pre: log10 rms of each layer's pre-activation h_l, `(depth,)`, in decades.
        act: log10 rms of its activation f(h_l), `(depth,)`; NaN in the last row, whose h is the output.
        pre_grad: log10 rms of the gradient of h_l, `(depth,)`, with rms 1 put in at the last.
        act_grad: log10 rms of the gradient of f(h_l), `(depth,)`; NaN in the last row.
        forward_var: variance, over random networks, of ln(mean of h_l² over the units) for one input, `(depth,)`.
            The mean of that logarithm is about 2·ln(10)·pre - forward_var/2: most networks lie below `pre`.
        backward_var: likewise for the gradient of h_l.
        label: what the curves are, in words.
        stable: False where a deviation in one layer grows too much on its way to the output for the curve to
            be a forecast of a single network (`propagate` says how much is too much).
        valid: False from the layer on where the theory's assumption fails, `(depth,)`.
    """

    pre: Array
    act: Array
    pre_grad: Array
    act_grad: Array
    forward_var: Array
    backward_var: Array
    label: str
    stable: bool
    valid: NDArray[np.bool_]
