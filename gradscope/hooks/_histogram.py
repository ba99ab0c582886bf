"""The histogram of |x| over powers of two: exact, from the exponent bits, without a read by the host.

A float64's bits 52 to 62 are its exponent plus 1023; 0 is a zero or subnormal, 2047 is what is not finite. All
edges of the histogram are powers of two, so the exponent alone says the bin, and every narrower floating type is
a float64 exactly: its subnormals are normal there.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from gradscope.recording import HISTOGRAM_EDGES

BINS = len(HISTOGRAM_EDGES) - 1

_EXPONENTS, _BIAS, _MANTISSA_BITS = 2048, 1023, 52


def log2_histogram(x: Tensor) -> Tensor:
    """Counts of the finite entries other than zero by log2|x|, `(64,)` int64 over `HISTOGRAM_EDGES`, on x's device.

    A bin holds its lower edge and not its upper one; what lies beyond an end counts in the bin at that end.

    Args:
        x: floating, of any shape, also empty.

    >>> from gradscope.recording import HISTOGRAM_EDGES
    >>> counts = log2_histogram(torch.tensor([0.0, 1.0, -1.5, 2.0, float("inf")]))
    >>> counts[list(HISTOGRAM_EDGES).index(0.0)], counts.sum()
    (tensor(2), tensor(3))
    """
    wide = x.detach().reshape(-1).double()
    exponents = wide.view(torch.int64).bitwise_right_shift(_MANTISSA_BITS).bitwise_and_(_EXPONENTS - 1)
    if x.device.type == "cpu":
        of_exponent = torch.bincount(exponents, minlength=_EXPONENTS)
    else:  # bincount reads the largest entry to know its size; adding integers comes to the same in any order
        of_exponent = torch.zeros(_EXPONENTS, dtype=torch.int64, device=x.device)
        of_exponent.scatter_add_(0, exponents, torch.ones_like(exponents))
    counts = torch.zeros(BINS + 1, dtype=torch.int64, device=x.device)
    counts.scatter_add_(0, _bins(x.device), of_exponent)
    counts[0] -= wide.numel() - torch.count_nonzero(wide)  # their exponent bits are those of a subnormal
    return counts[:BINS]


@lru_cache(maxsize=64)
def _bins(device: torch.device) -> Tensor:
    """The bin of each exponent, `(2048,)` int64; the one of what is not finite is `BINS`, which nobody reads.

    Made on the device, so that no copy to it has to wait.
    """
    with torch.inference_mode(False):  # it outlives the call that first asked for it
        log2 = torch.arange(_EXPONENTS, device=device) - _BIAS
        bins = torch.zeros(_EXPONENTS, dtype=torch.int64, device=device)
        for edge in HISTOGRAM_EDGES[1:-1].tolist():
            bins += log2 >= int(edge)
        bins[_EXPONENTS - 1] = BINS
        return bins
