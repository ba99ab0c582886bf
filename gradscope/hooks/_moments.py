"""Moments of a tensor, reduced where the tensor lives: one row of a buffer, no host read, no tensor kept.

A row holds, over the finite entries, `mean`, `scale`, `m2 = Σ((x − mean)/scale)²`, `min`, `max`, and over all
entries the number of zeros, NaNs and infs. All arithmetic is float64, so neither the squares of float32 values
(1e±37 squared leaves float32) nor |mean| ≫ std lose anything: the mean is found first, then the squares about it.
`scale` is 1 except for float64 tensors, whose own squares can leave float64.

Large tensors take several rows, which the host merges exactly; so do the micro-steps of a step.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.recording import Moments
from gradscope.recording._moments import HISTOGRAM_EDGES

COLUMNS = ("mean", "m2", "min", "max", "zeros", "scale", "nans", "infs")
WIDTH = len(COLUMNS)
_FRESH_ROW = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)

ROWS_PER_BLOCK = 512
ENTRIES_PER_ROW = 1 << 18
"""Larger tensors are read in pieces of this many entries: a float64 copy of 2 MiB stays in the cache."""

_LOWEST, _OCTAVES = int(HISTOGRAM_EDGES[0]), int(HISTOGRAM_EDGES[1] - HISTOGRAM_EDGES[0])


class Block:
    """One buffer of rows on one device; on the CPU also seen as numpy, so that a row is read without an op."""

    def __init__(self, device: torch.device) -> None:
        self.rows = torch.empty((ROWS_PER_BLOCK, WIDTH), dtype=torch.float64, device=device)
        self.host: NDArray[np.float64] | None = self.rows.numpy() if device.type == "cpu" else None
        self.used = 0
        self.clear()

    def clear(self) -> None:
        self.used = 0
        self.rows.copy_(_FRESH_ROW.expand_as(self.rows))


@dataclass
class Rows:
    """Which rows of an arena belong to one tensor: `(block, row, entries)` each."""

    parts: list[tuple[Block, int, int]] = field(default_factory=list)
    constant_zeros: int = 0
    """Entries of a sparse tensor that are not stored, hence 0."""
    histogram: list[Tensor] = field(default_factory=list)

    def __add__(self, other: Rows) -> Rows:
        return Rows(
            self.parts + other.parts,
            self.constant_zeros + other.constant_zeros,
            self.histogram + other.histogram,
        )


class Arena:
    """The rows of one step, on any number of devices; emptied blocks are used again for the next step."""

    def __init__(self, pool: dict[torch.device, list[Block]], histograms: bool = False) -> None:
        self._pool = pool
        self._blocks: dict[torch.device, list[Block]] = {}
        self._host: dict[int, NDArray[np.float64]] = {}
        self.histograms = histograms

    def _row(self, device: torch.device) -> tuple[Block, int]:
        blocks = self._blocks.setdefault(device, [])
        if not blocks or blocks[-1].used == ROWS_PER_BLOCK:
            free = self._pool.setdefault(device, [])
            blocks.append(free.pop() if free else Block(device))
        block = blocks[-1]
        block.used += 1
        return block, block.used - 1

    def observe(self, tensor: Tensor, minus: Tensor | None = None) -> Rows | None:
        """Reduce a floating tensor (minus another of the same shape) to rows; None where there is nothing to reduce."""
        tensor = tensor.detach()
        rows = Rows()
        if tensor.layout is torch.sparse_coo:
            stored = tensor.coalesce().values()
            rows.constant_zeros = tensor.numel() - stored.numel()
            tensor = stored
        elif tensor.layout is not torch.strided:
            return None
        if not tensor.is_floating_point() or (tensor.numel() == 0 and rows.constant_zeros == 0):
            return None
        other = None
        if minus is not None:
            if minus.stride() != tensor.stride():  # pieces are taken in memory order: it must be the same one
                minus, tensor = minus.contiguous(), tensor.contiguous()
            other = _pieces(minus.detach())
        wide_range = tensor.dtype is torch.float64
        for part in _pieces(tensor):
            block, index = self._row(part.device)
            before = None if other is None else next(other)
            if wide_range or block.host is None or not _reduce_on_cpu(part, before, block.host[index]):
                _reduce_finite(part if before is None else part.double() - before, block.rows[index])
            rows.parts.append((block, index, part.numel()))
            if self.histograms:
                rows.histogram.append(_log2_histogram(part if before is None else part.double() - before))
        return rows

    def absorb(self, other: Arena) -> None:
        """Take over the rows of another arena."""
        for device, blocks in other._blocks.items():
            self._blocks.setdefault(device, [])[:0] = blocks  # in front: the last block is the one being filled
        other._blocks = {}

    def to_host(self) -> None:
        """One transfer per device; after it `read` knows every row."""
        for device, blocks in self._blocks.items():
            used = [block.rows[: block.used] for block in blocks]
            host = torch.cat(used).cpu().numpy() if device.type != "cpu" else torch.cat(used).numpy()
            start = 0
            for block in blocks:
                self._host[id(block)] = host[start : start + block.used]
                start += block.used

    def read(self, rows: list[Rows]) -> Moments:
        """The moments of each tensor, its rows merged, in the given order (after `to_host`)."""
        merged: Moments | None = None
        longest = max((len(r.parts) + bool(r.constant_zeros) for r in rows), default=0)
        for k in range(longest):
            layer = _columns([self._part(r, k) for r in rows])
            merged = layer if merged is None else Moments.merge(merged, layer)
        return _columns([]) if merged is None else merged

    def _part(self, rows: Rows, k: int) -> tuple[int, NDArray[np.float64]] | None:
        if k < len(rows.parts):
            block, index, entries = rows.parts[k]
            return entries, self._host[id(block)][index]
        if k == len(rows.parts) and rows.constant_zeros:
            return rows.constant_zeros, np.array([0.0, 0.0, 0.0, 0.0, rows.constant_zeros, 1.0, 0.0, 0.0])
        return None

    def release(self) -> None:
        """Give the blocks back; rows of this arena are void from here on."""
        for device, blocks in self._blocks.items():
            for block in blocks:
                block.clear()
            self._pool.setdefault(device, []).extend(blocks)
        self._blocks, self._host = {}, {}


def _columns(parts: list[tuple[int, NDArray[np.float64]] | None]) -> Moments:
    """Rows as read from the device -> Moments; None gives an empty row."""
    table = np.zeros((len(parts), WIDTH))
    count = np.zeros(len(parts), dtype=np.int64)
    for i, part in enumerate(parts):
        if part is not None:
            count[i], table[i] = part
    mean, m2, low, high, zeros, scale, nans, infs = table.T
    finite = count - nans - infs
    with np.errstate(invalid="ignore", divide="ignore"):
        std = np.where(low == high, 0.0, scale * np.sqrt(m2 / finite))
    empty = finite <= 0
    mean, std, low, high = (np.where(empty, np.nan, column) for column in (mean, std, low, high))
    return Moments(
        count=count,
        mean=mean,
        std=std,
        min=low,
        max=high,
        zeros=zeros.astype(np.int64),
        nans=nans.astype(np.int64),
        infs=infs.astype(np.int64),
    )


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
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
        self.wide = torch.empty(ENTRIES_PER_ROW, dtype=torch.float64)
        self.flags = {dtype: torch.empty(ENTRIES_PER_ROW, dtype=dtype) for dtype in (torch.float32, torch.float64)}


_scratch: _Scratch | None = None


def _reduce_on_cpu(x: Tensor, minus: Tensor | None, row: NDArray[np.float64]) -> bool:
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


def _reduce_finite(x: Tensor, row: Tensor) -> None:
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


def _log2_histogram(x: Tensor) -> Tensor:
    """Counts of the finite, non-zero entries by log2|x|, `(64,)` int64 over `HISTOGRAM_EDGES`."""
    _, exponent = torch.frexp(x.double())  # |x| lies in [2^(exponent − 1), 2^exponent)
    bins = ((exponent - 1 - _LOWEST) // _OCTAVES).clamp_(0, len(HISTOGRAM_EDGES) - 2)
    counted = torch.isfinite(x) & (x != 0)
    counts = torch.zeros(len(HISTOGRAM_EDGES) - 1, dtype=torch.int64, device=x.device)
    return counts.scatter_add_(0, bins.long(), counted.long())
