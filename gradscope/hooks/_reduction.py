"""One pass from a flat tensor to one row of moments, on the CPU and elsewhere.

All arithmetic is float64, so neither the squares of float32 values (1e±37 squared leaves float32) nor |mean| ≫ std
lose anything: the mean is found first, then the squares about it. `scale` is 1 except for float64 tensors, whose own
squares can leave float64.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ENTRIES_PER_ROW = 1 << 18
"""Larger tensors are read in pieces of this many entries: a float64 copy of 2 MiB stays in the cache."""


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The entries of a tensor in memory order, as flat pieces; order does not matter to a reduction."""
    if tensor.is_contiguous():
        flat = tensor.view(-1)
    else:
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        flat = tensor.permute(order).reshape(-1)  # a view where the tensor is dense in some order of its axes
    if flat.numel() <= ENTRIES_PER_ROW:
        return iter((flat,))
    return iter(flat.split(ENTRIES_PER_ROW))


class _Scratch(threading.local):
    """Working memory of a thread: an allocation a tensor would cost more than the arithmetic."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self.wide = torch.empty(ENTRIES_PER_ROW, dtype=torch.float64, device="cpu")
            self.flags = {
                dtype: torch.empty(ENTRIES_PER_ROW, dtype=dtype, device="cpu")
                for dtype in (torch.float32, torch.float64)
            }


_scratch: _Scratch | None = None


def reduce_on_cpu(x: Tensor, minus: Tensor | None, row: NDArray[np.float64]) -> bool:
    """Write the moments of a flat tensor whose squares float64 holds; False where an entry is not finite.

    The row is host memory, written and read through numpy: neither costs an op, or waits for one.
    """
    global _scratch
    _scratch = _scratch or _Scratch()
    entries = x.numel()
    wide = _scratch.wide[:entries].copy_(x)
    if minus is not None:
        wide.sub_(minus)
    exact = x if minus is None and x.dtype is torch.float32 else wide  # the narrower, the faster to read
    low, high = torch.aminmax(exact)
    nonzero = torch.ne(exact, 0, out=_scratch.flags[exact.dtype][:entries]).sum()  # a float32 counts to 2^24
    mean = wide.mean()
    m2 = torch.dot(wide.sub_(mean), wide)
    row[0], row[1], row[2], row[3] = mean.numpy(), m2.numpy(), low.numpy(), high.numpy()
    row[4] = entries - nonzero.numpy()
    return math.isfinite(row[0]) and math.isfinite(row[1])


def reduce_finite(x: Tensor, row: Tensor) -> None:
    """Write the moments with non-finite entries set aside and a scale against overflow: no branch on a value."""
    wide = x.double()
    finite = torch.isfinite(wide)
    nans = torch.isnan(wide).sum()
    entries = finite.sum()
    zeros = (wide == 0).sum()
    zero = wide.new_zeros(())
    low = torch.where(finite, wide, torch.inf).amin()
    high = torch.where(finite, wide, -torch.inf).amax()
    wide = torch.where(finite, wide, zero)
    scale = torch.maximum(low.abs(), high.abs())
    scale = torch.where((scale > 0) & torch.isfinite(scale), scale, zero + 1)
    wide = wide / scale
    mean = wide.sum() / entries
    wide = torch.where(finite, wide - mean, zero)
    infs = x.numel() - entries - nans
    torch.stack([mean * scale, wide.dot(wide), low, high, zeros, scale, nans, infs], out=row)
