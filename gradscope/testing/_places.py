"""What is measured of each place of a chain: its weights, and what stands between two layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.activations import Activation

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """A layer's weights, and the mean squares of the signals on both sides.

    A convolution's outputs read `fan_in` entries each, fewer at a border: taps beyond it read zeros. `read` counts what
    is read, so that no factor for the padding is needed.

    Attributes:
        layer: its name.
        kind: its class.
        shape: of the weight.
        w2, mean: mean square of the weight's entries, and their mean.
        b2: mean square of the biases, 0 without.
        given, returned: mean squares of the input and of the output.
        read: Σ x² of the entries that an output reads, mean over outputs: w2·read + b2 is what theory expects of them.
        grad_given, grad_returned: mean squares of the gradients of output and input.
        grad_read: Σ δ² of the outputs that an input feeds, mean over inputs.
        units, units_in: over which each sample's mean is taken: entries of the output, of the input; of a convolution
            channels.
        alike: how alike the rows of the input are, tr G²/(tr G)² of their Gram matrix G: 1 of one row, or equal ones.
        grad_alike: of the gradients of the output.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    w2: float
    mean: float
    b2: float
    given: float
    returned: float
    read: float
    grad_given: float
    grad_returned: float
    grad_read: float
    units: int
    units_in: int
    alike: float
    grad_alike: float


@dataclass(frozen=True)
class Between:
    """What stands between two layers. A row is one sample, or one sample at one position.

    Attributes:
        before, after: names of the layers.
        found: the activation that was seen there.
        notes: what else was seen there, in words.
        units: entries of a row.
        lengths: mean square of each row of the pre-activations, `(rows,)`.
        arriving: of the gradient that arrives at what the activation returned, `(rows,)`.
        returned: mean square of what the next layer is given.
        grad_returned: of the gradient of the pre-activations.
        sampled: numbers of the rows that the next two are of, `(sampled,)`.
        alike: |correlation| of each two of them, `(sampled, sampled)`.
        grad_alike: squared correlations of the arriving gradients.
    """

    before: str
    after: str
    found: Activation
    notes: tuple[str, ...]
    units: int
    lengths: Array
    arriving: Array
    returned: float
    grad_returned: float
    sampled: NDArray[np.int64]
    alike: Array
    grad_alike: Array
