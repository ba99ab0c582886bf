"""A row: the moments of one tensor as they lie in a buffer, ten numbers in float64.

How many entries there are; over the finite ones `mean`, `m2 = Σ((x − mean)/scale)²`, `min` and `max`; the numbers of
zeros, NaNs, infs and subnormals (finite, not zero, below the smallest normal number of the tensor's dtype); and
`scale`, which is 1 except for float64 tensors, whose own squares can leave float64.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.recording import Moments

COLUMNS = ("count", "mean", "m2", "min", "max", "zeros", "nans", "infs", "subnormals", "scale")
WIDTH = len(COLUMNS)
COUNT, ZEROS, NANS, INFS, SUBNORMALS = map(COLUMNS.index, ("count", "zeros", "nans", "infs", "subnormals"))
NOT_COUNTED = -1
"""In place of the number of subnormals, where nobody has counted them."""

Row = NDArray[np.float64]


def merged(rows: Tensor) -> Tensor:
    """The row of several parts together, `(parts, 10)` → `(10,)`, wherever they lie and without a branch on a value.

    Chan, Golub & LeVeque (1983), eq. 2.1, for any number of parts.
    """
    count, mean, m2, low, high, zeros, nans, infs, subnormals, scale = rows.unbind(1)
    finite = count - nans - infs
    entries, zero, some = finite.sum(), rows.new_zeros(()), finite > 0
    largest = torch.where(some, scale, zero).amax()
    largest = torch.where(largest > 0, largest, zero + 1)
    centre = (finite / entries.clamp(min=1) * (mean / largest)).sum()
    spread = (m2 * (scale / largest).square() + finite * (mean / largest - centre).square()).sum()
    low = torch.where(entries > 0, torch.where(some, low, torch.inf).amin(), zero)
    high = torch.where(entries > 0, torch.where(some, high, -torch.inf).amax(), zero)
    counted = torch.where((subnormals < 0).any(), zero + NOT_COUNTED, subnormals.sum())
    sums = (count.sum(), centre * largest, spread, low, high, zeros.sum(), nans.sum(), infs.sum(), counted, largest)
    return torch.stack(sums)


def constant_zeros(entries: int, device: torch.device) -> Tensor:
    """The row of so many zeros."""
    row = torch.zeros(WIDTH, dtype=torch.float64, device=device)
    row[COUNT] = row[ZEROS] = entries
    row[-1] = 1.0
    return row


def moments_of(rows: NDArray[np.float64]) -> Moments:
    """Rows on the host as moments, `(rows, 10)`."""
    count, mean, m2, low, high, _, nans, infs, _, scale = rows.T
    finite = count - nans - infs
    with np.errstate(invalid="ignore", divide="ignore"):
        std = np.where(low == high, 0.0, scale * np.sqrt(m2 / finite))
    empty = finite <= 0
    if empty.any():
        mean, std, low, high = (np.where(empty, np.nan, column) for column in (mean, std, low, high))
    whole = rows[:, [COUNT, ZEROS, NANS, INFS, SUBNORMALS]].astype(np.int64)
    return Moments(
        count=whole[:, 0],
        mean=mean,
        std=std,
        min=low,
        max=high,
        zeros=whole[:, 1],
        nans=whole[:, 2],
        infs=whole[:, 3],
        subnormals=whole[:, 4],
    )
