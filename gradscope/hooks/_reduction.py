"""From a flat tensor to its row with torch's own operations, on the CPU and elsewhere.

All arithmetic is float64, so neither the squares of float32 values (1e±37 squared leaves float32) nor |mean| ≫ std
lose anything. Subnormal entries are counted by our own kernels only: here it would take two more operations a tensor.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from gradscope.hooks._lattice import CHUNK
from gradscope.hooks._rows import NOT_COUNTED, WIDTH, Row, merged

ENTRIES_PER_PIECE = 1 << 18
"""Larger tensors are read in pieces of this many entries: a float64 copy of 2 MiB stays in the cache."""

_CANCELS = 1e-5
"""Σx² − n·mean² keeps ten digits where it is at least this part of Σx²; else squares are taken about the mean."""


def flat(tensor: Tensor) -> Tensor:
    """The entries in memory order: a view where the tensor is dense in some order of its axes."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    return tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True)).reshape(-1)


def pieces(x: Tensor, minus: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A flat tensor, and what is to be taken from it, in pieces."""
    if x.numel() <= ENTRIES_PER_PIECE:
        return iter(((x, minus),))
    parts = x.split(ENTRIES_PER_PIECE)
    others = [None] * len(parts) if minus is None else minus.split(ENTRIES_PER_PIECE)
    return zip(parts, others, strict=True)


def sample_of(x: Tensor, stride: int, offset: int) -> Tensor:
    """The chunks of a flat tensor that a lattice takes, one after another."""
    whole = x[: x.numel() // CHUNK * CHUNK].view(-1, CHUNK)
    return whole[offset::stride].reshape(-1)


class _Scratch(threading.local):
    """Working memory of a thread: an allocation a tensor would cost more than the arithmetic."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self.wide = torch.empty(ENTRIES_PER_PIECE, dtype=torch.float64, device="cpu")
            self.flags = {
                dtype: torch.empty(ENTRIES_PER_PIECE, dtype=dtype, device="cpu")
                for dtype in (torch.float32, torch.float64)
            }


_scratch: _Scratch | None = None


def reduce_on_cpu(x: Tensor, minus: Tensor | None, row: Row) -> None:
    """Write the row of a flat tensor on the CPU, minus another.

    The row is host memory, written and read through numpy: neither costs an operation.
    """
    if x.numel() <= ENTRIES_PER_PIECE:
        _reduce_piece(x, minus, row)
        return
    with torch.inference_mode(False):
        table = torch.empty((-(-x.numel() // ENTRIES_PER_PIECE), WIDTH), dtype=torch.float64, device="cpu")
    for place, (part, other) in zip(table.numpy(), pieces(x, minus), strict=True):
        _reduce_piece(part, other, place)
    row[:] = merged(table).numpy()


def estimate_on_cpu(x: Tensor, minus: Tensor | None, row: Row, stride: int, offset: int) -> None:
    """The same, `mean`, `m2` and `zeros` estimated from the chunks of a lattice; the rest is of all entries."""
    wide = x if minus is None else x.double() - minus
    low, high = float(wide.amin()), float(wide.amax())
    if not (math.isfinite(low) and math.isfinite(high)):
        reduce_on_cpu(x, minus, row)
        return
    reduce_on_cpu(sample_of(wide, stride, offset), None, row)
    count, mean, m2, _, _, zeros, _, _, subnormals, scale = row.tolist()
    larger = x.numel() / count
    row[:] = x.numel(), mean, m2 * larger, low, high, round(zeros * larger), 0.0, 0.0, subnormals, scale


def _reduce_piece(x: Tensor, minus: Tensor | None, row: Row) -> None:
    if x.dtype is torch.float64 or not _reduce_plainly(x, minus, row):
        row[:] = reduce_finite(x if minus is None else x.double() - minus).numpy()


def _reduce_plainly(x: Tensor, minus: Tensor | None, row: Row) -> bool:
    """For what has no float64, whose squares float64 may not hold; False where an entry is not finite."""
    global _scratch
    _scratch = _scratch or _Scratch()
    entries = x.numel()
    wide = _scratch.wide[:entries].copy_(x)
    if minus is not None:
        wide.sub_(minus)
    total, squares = float(wide.sum().numpy()), float(torch.dot(wide, wide).numpy())
    if not math.isfinite(squares):
        return False
    exact = x if minus is None and x.dtype is torch.float32 else wide  # the narrower, the faster to read
    low, high, zeros = float(exact.amin().numpy()), float(exact.amax().numpy()), 0.0
    if low <= 0 <= high:
        nonzero = torch.ne(exact, 0, out=_scratch.flags[exact.dtype][:entries]).sum()  # a float32 counts to 2^24
        zeros = entries - float(nonzero.numpy())
    mean = total / entries
    m2 = squares - total * mean
    if m2 < _CANCELS * squares:
        wide.sub_(mean)
        m2 = float(torch.dot(wide, wide).numpy())
    row[:] = entries, mean, m2, low, high, zeros, 0.0, 0.0, NOT_COUNTED, 1.0
    return True


def reduce_finite(x: Tensor) -> Tensor:
    """The row of a flat tensor, non-finite entries set aside and scaled against overflow: no branch on a value."""
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
    mean = wide.sum() / entries.clamp(min=1)
    wide = torch.where(finite, wide - mean, zero)
    low, high = torch.where(entries > 0, low, zero), torch.where(entries > 0, high, zero)
    count = zero + x.numel()
    infs = count - entries - nans
    return torch.stack([count, mean * scale, wide.dot(wide), low, high, zeros, nans, infs, zero + NOT_COUNTED, scale])
