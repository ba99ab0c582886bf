"""From a flat tensor to its row with torch's own operations, on the CPU and elsewhere.

All arithmetic is float64, so neither the squares of float32 values (1e±37 squared leaves float32) nor |mean| ≫ std
lose anything. Subnormal entries are counted by our own kernels only: here it would take two more operations a tensor.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor

from gradscope.hooks._lattice import CHUNK, FARTHEST, chunks_of
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
    x = _readable(x)
    numbers, whole = chunks_of(x.numel(), stride, offset), x.numel() // CHUNK
    chunks, rest = x[: whole * CHUNK].view(-1, CHUNK), x[whole * CHUNK :]
    if numbers[-1] < whole:
        return chunks[torch.from_numpy(numbers)].view(-1)
    return torch.cat((chunks[torch.from_numpy(numbers[:-1])].view(-1), rest))


def _readable(x: Tensor) -> Tensor:
    """The same in float32 where it has one byte an entry, of which torch finds no extremes."""
    return x.float() if x.element_size() == 1 else x


class _Scratch(threading.local):
    """Working memory of a thread: an allocation a tensor would cost more than the arithmetic."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self._wide = torch.empty(ENTRIES_PER_PIECE, dtype=torch.float64, device="cpu")
            self._flags = {
                dtype: torch.empty(ENTRIES_PER_PIECE, dtype=dtype, device="cpu")
                for dtype in (torch.float32, torch.float64)
            }
            self.results = {
                dtype: [torch.zeros((), dtype=dtype, device="cpu") for _ in range(5)]
                for dtype in (torch.float32, torch.float64)
            }
        self.numbers = {dtype: [result.numpy() for result in results] for dtype, results in self.results.items()}
        """The results as numpy sees them: reading one is no operation."""
        self._shaped: OrderedDict[tuple[int, ...], tuple[Tensor, Tensor, dict[torch.dtype, Tensor]]] = OrderedDict()

    def shaped(self, shape: tuple[int, ...], entries: int) -> tuple[Tensor, Tensor, dict[torch.dtype, Tensor]]:
        """Room for float64 in this shape, the same flat, and room for flags; known shapes cost nothing."""
        known = self._shaped.get(shape)
        if known is None:
            with torch.inference_mode(False):
                wide = self._wide[:entries]
                flags = {dtype: flag[:entries].view(shape) for dtype, flag in self._flags.items()}
                known = self._shaped[shape] = wide.view(shape), wide, flags
            if len(self._shaped) > _MOST_SHAPES:
                self._shaped.popitem(last=False)
        return known


_MOST_SHAPES = 512
_FEW = 8192
"""Up to here one operation that finds both ends is faster than two."""

_scratch: _Scratch | None = None


def reduce_on_cpu(x: Tensor, minus: Tensor | None, row: Row) -> None:
    """Write the row of a contiguous tensor on the CPU, minus another.

    The row is host memory, written and read through numpy: neither costs an operation.
    """
    if x.numel() <= ENTRIES_PER_PIECE:
        _reduce_piece(x, minus, row)
        return
    x, minus = x.view(-1), None if minus is None else minus.view(-1)
    with torch.inference_mode(False):
        table = torch.empty((-(-x.numel() // ENTRIES_PER_PIECE), WIDTH), dtype=torch.float64, device="cpu")
    for place, (part, other) in zip(table.numpy(), pieces(x, minus), strict=True):
        _reduce_piece(part, other, place)
    row[:] = merged(table).numpy()


def estimate_on_cpu(x: Tensor, minus: Tensor | None, row: Row, stride: int, offset: int) -> None:
    """The same, `mean`, `m2` and `zeros` estimated from the chunks of a lattice; the rest is of all entries."""
    wide = _readable(x) if minus is None else x.double() - minus.double()
    low, high = _ends(wide)
    if not (math.isfinite(low) and math.isfinite(high)):
        reduce_on_cpu(x, minus, row)
        return
    reduce_on_cpu(sample_of(wide, stride, offset), None, row)
    count, mean, m2, _, _, zeros, _, _, subnormals, scale = row.tolist()
    if max(-low, high) > FARTHEST * math.hypot(mean, scale * math.sqrt(m2 / count)):
        reduce_on_cpu(x, minus, row)
        return
    larger = x.numel() / count
    row[:] = x.numel(), mean, m2 * larger, low, high, round(zeros * larger), 0.0, 0.0, subnormals, scale


def _ends(x: Tensor) -> tuple[float, float]:
    """Smallest and largest entry, read through numpy's view of the results: no value is waited for."""
    global _scratch
    _scratch = _scratch or _Scratch()
    if x.dtype not in _scratch.results:
        x = x.double()
    results, numbers = _scratch.results[x.dtype], _scratch.numbers[x.dtype]
    torch.amin(x, dim=(), out=results[2])
    torch.amax(x, dim=(), out=results[3])
    return numbers[2].item(), numbers[3].item()


def _reduce_piece(x: Tensor, minus: Tensor | None, row: Row) -> None:
    if x.dtype is torch.float64 or not _reduce_plainly(x, minus, row):
        row[:] = reduce_finite((x if minus is None else x.double() - minus).view(-1)).numpy()


def _reduce_plainly(x: Tensor, minus: Tensor | None, row: Row) -> bool:
    """For what has no float64, whose squares float64 may not hold; False where an entry is not finite.

    Seven operations, six for a small one; reading their results through numpy's view of them is none.
    """
    global _scratch
    _scratch = _scratch or _Scratch()
    entries = x.numel()
    shaped, wide, flags = _scratch.shaped(tuple(x.shape), entries)
    sums, sum_numbers = _scratch.results[torch.float64], _scratch.numbers[torch.float64]
    shaped.copy_(x)
    if minus is not None:
        shaped.sub_(minus)
    torch.sum(wide, 0, out=sums[0])
    torch.dot(wide, wide, out=sums[1])
    total, squares = sum_numbers[0].item(), sum_numbers[1].item()
    if not math.isfinite(squares):
        return False
    exact = x if minus is None and x.dtype is torch.float32 else shaped  # the narrower, the faster to read
    ends, end_numbers = _scratch.results[exact.dtype], _scratch.numbers[exact.dtype]
    if entries <= _FEW:
        torch.aminmax(exact, out=(ends[2], ends[3]))
    else:
        torch.amin(exact, dim=(), out=ends[2])
        torch.amax(exact, dim=(), out=ends[3])
    low, high, zeros = end_numbers[2].item(), end_numbers[3].item(), 0.0
    if low <= 0 <= high:
        nonzero = torch.ne(exact, 0, out=flags[exact.dtype])  # a float32 counts to 2^24
        torch.sum(nonzero, dim=(), out=ends[4])
        zeros = entries - end_numbers[4].item()
    mean = total / entries
    m2 = squares - total * mean
    if m2 < _CANCELS * squares:
        wide.sub_(mean)
        torch.dot(wide, wide, out=sums[1])
        m2 = sum_numbers[1].item()
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
