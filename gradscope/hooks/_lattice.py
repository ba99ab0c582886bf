"""Which entries of a large tensor are read where a sample of them is enough.

One chunk of 16 neighbours from every window of so many chunks. Chunks a fixed distance apart would all lie in the same
columns of a matrix whose row divides that distance, so the place in the window turns, by k²/1.618… of it in the k-th.
With k/1.618… 92 % would still lie in an eighth of the columns of 2,048 rows of 288, where neighbours are about 5 or 13
rows apart; squares stay evenly spread whatever line is added to them (Weyl, 1916). Each step begins at another place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHUNK = 16
SAMPLE_ENTRIES = 4096
"""Of tensors with more entries about that many are read. In the first steps of W1 to W4 of `benchmarks.overhead` the
root mean squares of sampled tensors are off by 0.6 to 1.2 % at the median and by less than 4.3 % in nine of ten, before
those are left to an exact reading in which few entries hold most of it."""

FARTHEST = 10.0
"""How many times the sample's root mean square the largest entry may be: beyond that a few entries, which a sample may
have missed, make most of the mean square, and all are read. As in our kernel."""

_TURN = 0.6180339887498949
"""A fraction of the stride that visits all offsets evenly, whatever the stride."""
_TURN_BITS = np.uint64(0x9E3779B97F4A7C15)
"""The same over 2^-64: products of unsigned numbers keep the fraction of a turn."""


@dataclass(frozen=True)
class Lattice:
    """One chunk from each window of `stride` chunks of a tensor.

    Attributes:
        step: whose turn it is.
    """

    step: int

    def of(self, entries: int) -> tuple[int, int]:
        """Stride and offset, in chunks, for a tensor of so many entries; (1, 0) reads all.

        >>> Lattice(step=0).of(4096), Lattice(step=1).of(65536)
        ((1, 0), (17, 10))
        """
        stride = (entries // SAMPLE_ENTRIES) | 1
        if entries <= SAMPLE_ENTRIES or stride == 1:
            return 1, 0
        return stride, int((self.step * _TURN) % 1.0 * stride)


def chunks_of(entries: int, stride: int, offset: int) -> NDArray[np.int64]:
    """The numbers of the chunks read, in order, of a tensor of one entry or more: those that our kernel chooses.

    >>> chunks_of(400, stride=5, offset=1).tolist()
    [1, 9, 13, 18, 20]
    """
    chunks = -(-entries // CHUNK)
    stride = min(stride, chunks)
    window = np.arange(-(-chunks // stride), dtype=np.uint64)
    turn = window * window * _TURN_BITS >> np.uint64(32)
    within = (turn * np.uint64(stride) >> np.uint64(32)).astype(np.int64) + offset % stride
    numbers = window.astype(np.int64) * stride + within % stride
    return numbers[numbers < chunks]
