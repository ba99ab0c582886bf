"""Moments of a tensor, reduced where the tensor lives: one row of a buffer, no host read, no tensor kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.hooks._blocks import COUNTS_BYTES, ROW_BYTES, ROWS_PER_BLOCK, Block, Pool
from gradscope.hooks._device import reduce_many_on_device, reduce_on_device
from gradscope.hooks._distributed import local_part
from gradscope.hooks._histogram import log2_histogram
from gradscope.hooks._host import HostRows
from gradscope.hooks._kernel import CODES, SHARED_FROM, native
from gradscope.hooks._lattice import Lattice
from gradscope.hooks._reduction import estimate_on_cpu, flat, pieces, reduce_finite, reduce_on_cpu, sample_of
from gradscope.hooks._rows import INFS, NANS, Row, constant_zeros, merged
from gradscope.hooks._tensors import PLAIN_DTYPES, has_storage, is_distributed, is_plain

Ints = NDArray[np.int64]
_CPU = torch.device("cpu")

Unit = Tensor | float | None
"""What entries are divided by before they are counted in a histogram; moments are divided later, on the host."""


class Arena:
    """The rows of one pass, or of one step, on any number of devices.

    Args:
        pool: whose blocks it uses.
        moments: which entries of large tensors are read, None for all.
        histogram: which are counted in the histogram, None for all.
    """

    def __init__(self, pool: Pool, moments: Lattice | None = None, histogram: Lattice | None = None) -> None:
        self.histograms = pool.histograms
        self.others: set[int] = set()
        """Rows whose entries another rank has too, and reports."""
        self.sampled = False
        """Some row, or histogram, is an estimate."""
        self.plain = not pool.histograms and moments is None
        """Nothing but moments is taken, and of every entry."""
        self.bad = 0
        """How many entries were not finite of what was last observed as it lies."""
        self._pool = pool
        self._here: Block | None = None
        self._moments = moments
        self._histogram = histogram
        self._blocks: list[Block] = []
        self._filling: dict[torch.device, Block] = {}
        self._at_host: HostRows | None = None

    def next_row(self, device: torch.device) -> tuple[Block, int]:
        """An empty row on a device: its block, and its place there."""
        block = self._filling.get(device)
        if block is None or block.used == ROWS_PER_BLOCK:
            block = self._filling[device] = self._pool.take(device)
            self._blocks.append(block)
            if device == _CPU:
                self._here = block
        block.used += 1
        return block, block.used - 1

    def next_rows(self, count: int, device: torch.device = _CPU) -> tuple[Ints, Ints, Ints]:
        """Empty rows: their numbers, and the addresses there of rows and of counts (0 where there are none)."""
        numbers, rows, counts = (np.zeros(count, dtype=np.int64) for _ in range(3))
        done = 0
        while done < count:
            block, first = self.next_row(device)
            taken = min(count - done, ROWS_PER_BLOCK - first)
            block.used = first + taken
            index = np.arange(first, first + taken)
            here = slice(done, done + taken)
            numbers[here] = block.number * ROWS_PER_BLOCK + index
            rows[here] = block.address + index * ROW_BYTES
            if block.counts_address:
                counts[here] = block.counts_address + index * COUNTS_BYTES
            done += taken
        return numbers, rows, counts

    def observe(self, tensor: Tensor, minus: Tensor | None = None, unit: Unit = None) -> int | None:
        """Reduce a floating tensor (minus another of the same shape) to a row, whose number is returned.

        None where a sharded tensor has no value yet.
        """
        with torch.no_grad():
            return self._observe(tensor, minus, unit)

    def observe_many(
        self, tensors: Sequence[Tensor], minus: Sequence[Tensor] | None = None, unit: Unit = None
    ) -> list[int | None]:
        """The same of many tensors: those that lie plainly on one GPU are read by one launch."""
        found: list[int | None] = [None] * len(tensors)
        together: dict[torch.device, list[int]] = {}
        with torch.no_grad():
            for i, tensor in enumerate(tensors):
                if _goes_with_others(tensor) and (minus is None or _lies_alike(minus[i], tensor)):
                    together.setdefault(tensor.device, []).append(i)
                else:
                    found[i] = self._observe(tensor, None if minus is None else minus[i], unit)
            for device, places in together.items():
                numbers, rows, counts = self.next_rows(len(places), device)
                read, taken = [tensors[i] for i in places], None if minus is None else [minus[i] for i in places]
                if not reduce_many_on_device(read, taken, unit, rows, counts if self.histograms else None):
                    for k, number in enumerate(numbers.tolist()):
                        block, index = self._pool.blocks[number // ROWS_PER_BLOCK], number % ROWS_PER_BLOCK
                        self._reduce_elsewhere(block, index, read[k], None if taken is None else taken[k], unit)
                for i, number in zip(places, numbers.tolist(), strict=True):
                    found[i] = number
        return found

    def _observe(self, tensor: Tensor, minus: Tensor | None, unit: Unit) -> int | None:
        own, not_stored = True, 0
        if is_distributed(tensor):
            part, own = local_part(tensor)
            if part is None:
                return None
            tensor = part
            minus = None if minus is None else local_part(minus)[0]
        if tensor.layout is torch.sparse_coo:
            stored = tensor.detach().coalesce().values()
            not_stored = tensor.numel() - stored.numel()
            tensor = stored
        if tensor.is_neg():
            tensor = tensor.resolve_neg()
        if minus is not None:
            tensor, minus = _alike(tensor, minus)
        block, index = self.next_row(tensor.device)
        if block.host is None:
            self._reduce_elsewhere(block, index, tensor, minus, unit)
        elif native is not None and tensor.dtype in CODES:
            self._reduce_natively(block, index, tensor, minus, unit)
        else:
            self._reduce_here(block, index, block.host[index], tensor, minus, unit)
        if not_stored:
            row = block.rows[index]
            row.copy_(merged(torch.stack([row, constant_zeros(not_stored, block.device)])))
        number = block.number * ROWS_PER_BLOCK + index
        if not own:
            self.others.add(number)
        return number

    def observe_as_it_lies(self, tensor: Tensor) -> int | None:
        """The same for a plain tensor on the CPU; None where it is anything else.

        Our kernel needs no operation of torch for it; `bad` tells afterwards how many entries were not finite.
        """
        dtype = tensor.dtype
        if (
            dtype not in PLAIN_DTYPES
            or not tensor.is_cpu
            or tensor.layout is not torch.strided
            or tensor.is_nested
            or tensor.is_neg()
            or not has_storage(tensor)
        ):
            return None
        block = self._here
        if block is None or block.used == ROWS_PER_BLOCK:
            block, index = self.next_row(_CPU)
        else:
            index = block.used
            block.used = index + 1
        number = block.number * ROWS_PER_BLOCK + index
        if native is None:
            host = block.host
            assert host is not None  # it is on the CPU
            with torch.no_grad():
                self._reduce_here(block, index, host[index], tensor, None, None)
            self.bad = int(bool(self.nonfinite_here(number)))
        elif self.plain and tensor.is_contiguous():
            row, entries = block.address + index * ROW_BYTES, tensor.numel()
            if entries < SHARED_FROM:
                self.bad = native.reduce(tensor.data_ptr(), entries, CODES[dtype], row)
            else:
                self.bad = native.reduce(tensor.data_ptr(), entries, CODES[dtype], row, torch.get_num_threads())
        else:
            self.bad = self._reduce_natively(block, index, tensor, None, None)
        return number

    @property
    def estimates(self) -> Iterator[str]:
        """What is estimated from a sample of large tensors."""
        if self._moments is not None:
            yield from ("mean", "std", "zeros", "subnormals")
        if self.histograms and self._histogram is not None:
            yield "histogram"

    def lattices(self, entries: int) -> tuple[int, int, int, int]:
        """Stride and offset of the chunks that a tensor's moments, and its histogram, are taken of."""
        moments = (1, 0) if self._moments is None else self._moments.of(entries)
        counting = (1, 0) if self._histogram is None else self._histogram.of(entries)
        self.sampled = self.sampled or moments[0] > 1 or (self.histograms and counting[0] > 1)
        return *moments, *counting

    def _reduce_natively(self, block: Block, index: int, tensor: Tensor, minus: Tensor | None, unit: Unit) -> int:
        """Returns how many entries are not finite."""
        assert native is not None
        bad: int = native.reduce_strided(
            tensor.data_ptr(),
            tuple(tensor.shape),
            tensor.stride(),
            CODES[tensor.dtype],
            block.address + index * ROW_BYTES,
            block.counts_address and block.counts_address + index * COUNTS_BYTES,
            0 if minus is None else minus.data_ptr(),
            0,
            *self.lattices(tensor.numel()),
            1.0 if unit is None else float(unit),
            torch.get_num_threads(),
        )
        return bad

    def _reduce_here(
        self, block: Block, index: int, row: Row, tensor: Tensor, minus: Tensor | None, unit: Unit
    ) -> None:
        if not tensor.numel():
            row[:] = 0.0
            return
        if not tensor.is_contiguous():
            tensor, minus = flat(tensor), None if minus is None else flat(minus)
        stride, offset, counting, first = self.lattices(tensor.numel())
        if stride == 1:
            reduce_on_cpu(tensor, minus, row)
        else:
            estimate_on_cpu(tensor.view(-1), None if minus is None else minus.view(-1), row, stride, offset)
        if block.counts is not None:
            x, y = tensor.view(-1), None if minus is None else minus.view(-1)
            if counting > 1:
                x, y = sample_of(x, counting, first), None if y is None else sample_of(y, counting, first)
            _count(block, index, x, y, unit)

    def _reduce_elsewhere(self, block: Block, index: int, tensor: Tensor, minus: Tensor | None, unit: Unit) -> None:
        """On an accelerator every entry is read: a sample would save nothing, as the smallest is sought anyway."""
        counts = None if block.counts is None else block.counts[index]
        if not tensor.numel():
            block.rows[index].zero_()
        elif not reduce_on_device(tensor, minus, unit, block.rows[index], counts):
            x, y = flat(tensor), None if minus is None else flat(minus)
            rows = [reduce_finite(a if b is None else a.double() - b) for a, b in pieces(x, y)]
            block.rows[index].copy_(rows[0] if len(rows) == 1 else merged(torch.stack(rows)))
            if counts is not None:
                _count(block, index, x, y, unit)

    def nonfinite_here(self, row: int) -> bool | None:
        """Whether an entry of this row's tensor is NaN or infinite; None where telling it would wait for a device."""
        host = self._pool.blocks[row // ROWS_PER_BLOCK].host
        return None if host is None else bool(host[row % ROWS_PER_BLOCK, NANS : INFS + 1].any())

    def finite_so_far(self) -> bool:
        """Whether no row has a NaN or an infinity; waits for a device."""
        return not any(
            bool((block.rows if block.host is None else block.host)[: block.used, NANS : INFS + 1].any())
            for block in self._blocks
        )

    def absorb(self, other: Arena) -> None:
        """Take over the rows of another arena, which keep their numbers."""
        self._blocks += other._blocks
        self.others |= other.others
        self.sampled = self.sampled or other.sampled
        other._blocks, other._filling, other.others, other._here = [], {}, set(), None

    def send(self) -> None:
        """Start the one transfer of each device to the host; nothing waits for it here."""
        self._at_host = HostRows(self._blocks, self.histograms)

    @property
    def host(self) -> HostRows:
        """The rows on the host, after `send`."""
        assert self._at_host is not None
        return self._at_host

    def release(self) -> None:
        """Give the blocks back; rows of this arena are void from here on."""
        for block in self._blocks:
            self._pool.give(block)
        self._blocks, self._filling, self.others, self._at_host, self._here = [], {}, set(), None, None


_GPU = "cuda"


def _goes_with_others(tensor: Tensor) -> bool:
    """Whether it is one that the kernel for many tensors on a GPU reads."""
    return tensor.device.type == _GPU and is_plain(tensor)


def _lies_alike(minus: Tensor, tensor: Tensor) -> bool:
    return is_plain(minus) and minus.dtype is tensor.dtype and minus.device == tensor.device


def _alike(tensor: Tensor, minus: Tensor) -> tuple[Tensor, Tensor]:
    """Both with their entries in one order in memory, and of one dtype: a model may be converted between two steps."""
    if minus.dtype is not tensor.dtype or minus.device != tensor.device:
        tensor, minus = tensor.double(), minus.to(device=tensor.device, dtype=torch.float64)
    if minus.stride() != tensor.stride():
        return tensor.contiguous(), minus.contiguous()
    if tensor.is_contiguous():
        return tensor, minus
    return flat(tensor), flat(minus)


def _count(block: Block, index: int, x: Tensor, minus: Tensor | None, unit: Unit) -> None:
    assert block.counts is not None
    for part, other in pieces(x, minus):
        counted = part if other is None else part.double() - other
        block.counts[index] += log2_histogram(counted if unit is None else counted.double() / unit)
