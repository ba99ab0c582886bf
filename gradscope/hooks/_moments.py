"""Moments of a tensor, reduced where the tensor lives: one row of a buffer, no host read, no tensor kept.

A row holds, over the finite entries, `mean`, `scale`, `m2 = Σ((x − mean)/scale)²`, `min`, `max`, and over all
entries the number of zeros, NaNs and infs. Large tensors take several rows, which the host merges exactly; so do the
micro-steps of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.hooks._distributed import local_part
from gradscope.hooks._histogram import log2_histogram
from gradscope.hooks._reduction import pieces, reduce_finite, reduce_on_cpu
from gradscope.hooks._tensors import is_distributed
from gradscope.recording import Moments

COLUMNS = ("mean", "m2", "min", "max", "zeros", "scale", "nans", "infs")
WIDTH = len(COLUMNS)
_FRESH_ROW = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64, device="cpu")

ROWS_PER_BLOCK = 512


class Block:
    """One buffer of rows on one device; on the CPU also seen as numpy, so that a row is read without an op."""

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(False):  # else no later step could write into it
            self.rows = torch.empty((ROWS_PER_BLOCK, WIDTH), dtype=torch.float64, device=device)
        self.host: NDArray[np.float64] | None = self.rows.numpy() if device.type == "cpu" else None
        self.used = 0
        self.clear()

    def clear(self) -> None:
        self.used = 0
        self.rows.copy_(_FRESH_ROW.expand_as(self.rows))


@dataclass
class Rows:
    """Which rows of an arena belong to one tensor: `(block, row, entries)` each; none for one without entries."""

    parts: list[tuple[Block, int, int]] = field(default_factory=list)
    constant_zeros: int = 0
    """Entries of a sparse tensor that are not stored, hence 0."""
    histogram: list[Tensor] = field(default_factory=list)
    own: bool = True
    """These entries are this rank's to report: no other rank has them too."""

    def __add__(self, other: Rows) -> Rows:
        return Rows(
            self.parts + other.parts,
            self.constant_zeros + other.constant_zeros,
            self.histogram + other.histogram,
            self.own and other.own,
        )

    def some_not_finite(self) -> bool | None:
        """Whether an entry is NaN or infinite; None where telling it would mean to wait for a device."""
        if any(block.host is None for block, _, _ in self.parts):
            return None
        return any(bool(b.host[i, 6] or b.host[i, 7]) for b, i, _ in self.parts if b.host is not None)


class Arena:
    """The rows of one step, on any number of devices; emptied blocks are used again for the next step."""

    def __init__(self, pool: dict[torch.device, list[Block]], histograms: bool = False) -> None:
        self._pool = pool
        self._blocks: dict[torch.device, list[Block]] = {}
        self._host: dict[int, NDArray[np.float64]] = {}
        self._sent: list[torch.cuda.Event] = []
        self.histograms = histograms

    def _row(self, device: torch.device) -> tuple[Block, int]:
        blocks = self._blocks.setdefault(device, [])
        if not blocks or blocks[-1].used == ROWS_PER_BLOCK:
            free = self._pool.setdefault(device, [])
            blocks.append(free.pop() if free else Block(device))
        block = blocks[-1]
        block.used += 1
        return block, block.used - 1

    def observe(self, tensor: Tensor, minus: Tensor | None = None, unit: Tensor | float | None = None) -> Rows | None:
        """Reduce a floating tensor (minus another of the same shape) to rows.

        Histograms are of the entries over `unit`; moments are divided later, on the host. None where a sharded
        tensor has no value yet.
        """
        tensor = tensor.detach()
        rows = Rows()
        if is_distributed(tensor):
            part, rows.own = local_part(tensor)
            if part is None:
                return None
            tensor = part
            minus = None if minus is None else local_part(minus)[0]
        if tensor.layout is torch.sparse_coo:
            stored = tensor.coalesce().values()
            rows.constant_zeros = tensor.numel() - stored.numel()
            tensor = stored
        if tensor.numel() == 0:
            return rows
        other = None
        if minus is not None:
            if minus.stride() != tensor.stride():  # pieces are taken in memory order: it must be the same one
                minus, tensor = minus.contiguous(), tensor.contiguous()
            other = pieces(minus.detach())
        wide_range = tensor.dtype is torch.float64
        for part in pieces(tensor):
            block, index = self._row(part.device)
            before = None if other is None else next(other)
            if wide_range or block.host is None or not reduce_on_cpu(part, before, block.host[index]):
                reduce_finite(part if before is None else part.double() - before, block.rows[index])
            rows.parts.append((block, index, part.numel()))
            if self.histograms:
                counted = part if before is None else part.double() - before
                rows.histogram.append(log2_histogram(counted if unit is None else counted.double() / unit))
        return rows

    def absorb(self, other: Arena) -> None:
        """Take over the rows of another arena."""
        for device, blocks in other._blocks.items():
            self._blocks.setdefault(device, [])[:0] = blocks  # in front: the last block is the one being filled
        other._blocks = {}

    def send(self) -> None:
        """Start the one transfer of each device to the host; nothing waits for it here."""
        self._host, self._sent = {}, []
        for device, blocks in self._blocks.items():
            if device.type == "cpu":
                self._host |= {id(block): block.rows.numpy() for block in blocks}
                continue
            used = torch.cat([block.rows[: block.used] for block in blocks])
            host = torch.empty(used.shape, dtype=used.dtype, pin_memory=device.type == "cuda")
            host.copy_(used, non_blocking=True)
            if device.type == "cuda":
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(device))
                self._sent.append(event)
            start = 0
            for block in blocks:
                self._host[id(block)] = host[start : start + block.used].numpy()
                start += block.used

    def arrived(self) -> bool:
        """Whether `read` has to wait for nothing."""
        return all(event.query() for event in self._sent)

    def read(self, rows: list[Rows]) -> Moments:
        """The moments of each tensor, its rows merged, in the given order (after `send`)."""
        self._wait()
        merged = _columns([self._part(r, 0) for r in rows])
        for k in range(1, max((len(r.parts) + bool(r.constant_zeros) for r in rows), default=0)):
            merged = Moments.merge(merged, _columns([self._part(r, k) for r in rows]))
        return merged

    def finite_here(self) -> bool:
        """Whether no row has a NaN or an infinity so far; waits for a device."""
        return not any(bool(b.rows[: b.used, 6:].any()) for blocks in self._blocks.values() for b in blocks)

    def all_finite(self) -> bool:
        """Whether no row has a NaN or an infinity (after `send`; waits for what is under way)."""
        self._wait()
        return not any(table[: block.used, 6:].any() for block, table in self._on_host())

    def _on_host(self) -> Iterator[tuple[Block, NDArray[np.float64]]]:
        for blocks in self._blocks.values():
            for block in blocks:
                yield block, self._host[id(block)]

    def _wait(self) -> None:
        for event in self._sent:
            event.synchronize()
        self._sent = []

    def nonfinite(self, rows: Rows) -> tuple[int, int, int]:
        """Of one tensor: its NaNs, its infinities and all its entries (after `send`, and once it has arrived)."""
        table = [self._host[id(block)][index] for block, index, _ in rows.parts]
        entries = rows.constant_zeros + sum(n for _, _, n in rows.parts)
        return int(sum(row[6] for row in table)), int(sum(row[7] for row in table)), entries

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
        self._blocks, self._host, self._sent = {}, {}, []


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
