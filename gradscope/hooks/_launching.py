"""How the Triton kernels are launched: how a tensor is cut, the memory they work with, the tables they read.

Memory belongs to one stream of one device, on which calls follow each other; it is made at the first call there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.hooks import _triton as kernels
from gradscope.hooks._reduction import flat
from gradscope.hooks._rows import WIDTH
from gradscope.recording import HISTOGRAM_EDGES

Ints = NDArray[np.int64]
Key = TypeVar("Key")
Value = TypeVar("Value")

AVAILABLE = kernels.AVAILABLE

LINES, THREADS, WARPS = 4, 128, 4
"""A thread reads four times 16 bytes at once: with four programs on a multiprocessor, 32 KiB are on their way to it."""

MOST_PARTS = 512
"""Of a tensor: so many rows one program merges by reading them once."""

TILES_OF_A_CHUNK = 16
"""Of one of many tensors, unless it has more than `MOST_PARTS` such chunks."""

_PROGRAMS_ON_A_MULTIPROCESSOR = 4
_MOST_PLANS, _MOST_PLACES = 8, 4


@dataclass(frozen=True)
class Shape:
    """What is fixed when a kernel is compiled for a dtype.

    Attributes:
        tile: entries that a program reads at once.
        constants: arguments of the kernel.
    """

    tile: int
    constants: dict[str, Any]


@cache
def shape_for(dtype: torch.dtype, minus: bool) -> Shape:
    """The same for all tensors of a dtype from which something is taken, or nothing."""
    each = 16 // dtype.itemsize
    tiny = torch.finfo(dtype).tiny
    if dtype is torch.float64:
        bits = int(np.float64(tiny).view(np.int64))
    elif minus:  # a difference is float64: its upper half
        bits = int(np.float64(tiny).view(np.int64)) >> 32
    else:
        bits = int(np.float32(tiny).view(np.int32))
    constants = {"TINY": bits, "LINES": LINES, "THREADS": THREADS, "EACH": each, "PARTS": MOST_PARTS}
    return Shape(LINES * THREADS * each, {**constants, "num_warps": WARPS})


class Plan:
    """Where many tensors lie, and how they are cut, on their device.

    Args:
        tensors: contiguous, on one device.
        minus: what is taken from each.
    """

    def __init__(self, tensors: Sequence[Tensor], minus: Sequence[Tensor] | None) -> None:
        device = tensors[0].device
        self.launches: list[tuple[torch.dtype, bool, int, int]] = []
        """Dtype, whether all addresses are multiples of 16, first program, and how many."""
        lines: list[Ints] = []
        done = 0
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            first, aligned = done, True
            for number, x in enumerate(tensors):
                if x.dtype is dtype:
                    address, other = x.data_ptr(), 0 if minus is None else minus[number].data_ptr()
                    aligned = aligned and not (address % 16 or other % 16)
                    lines.append(_chunks(x, address, other, number, done, shape_for(dtype, minus is not None).tile))
                    done += len(lines[-1])
            self.launches.append((dtype, aligned, first, done - first))
        self.chunks = _sent(np.concatenate(lines), device)
        self.parts = torch.empty((done, WIDTH), dtype=torch.float64, device=device)
        self.tickets = torch.zeros(len(tensors), dtype=torch.int32, device=device)
        self._places: OrderedDict[bytes, Tensor] = OrderedDict()

    def places(self, rows: Ints, counts: Ints | None) -> Tensor:
        """The addresses of rows and counts, `(tensors, 2)`, on the device."""
        table = np.stack([rows, np.zeros_like(rows) if counts is None else counts], axis=1)
        return _kept(self._places, table.tobytes(), _MOST_PLACES, lambda: _sent(table, self.chunks.device))


def _chunks(x: Tensor, address: int, minus: int, number: int, first: int, tile: int) -> Ints:
    """Lines of the table that `reduce_many` reads, one a chunk."""
    entries = x.numel()
    tiles = max(TILES_OF_A_CHUNK, _ceil(_ceil(entries, tile), MOST_PARTS))
    starts = np.arange(max(1, _ceil(entries, tiles * tile)), dtype=np.int64) * (tiles * tile)
    lines = np.zeros((len(starts), 6), dtype=np.int64)
    lines[:, 0] = address + starts * x.element_size()
    lines[:, 1] = minus and minus + starts * x.element_size()
    lines[:, 2] = np.minimum(entries - starts, tiles * tile)
    lines[:, 3:] = number, first, len(starts)
    return lines


class Workspace:
    """The memory of one stream of one device."""

    def __init__(self, device: torch.device) -> None:
        of_exponent = np.searchsorted(HISTOGRAM_EDGES[1:-1], np.arange(2048) - 1023, side="right")
        self.bins = _sent(of_exponent.astype(np.int32), device)
        """The bin of each exponent of a float64, `(2048,)`."""
        self.one = torch.ones((), dtype=torch.float32, device=device)
        self.parts = torch.empty((MOST_PARTS, WIDTH), dtype=torch.float64, device=device)
        self.ticket = torch.zeros(1, dtype=torch.int32, device=device)
        self.plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
        self.most_programs = min(MOST_PARTS, _PROGRAMS_ON_A_MULTIPROCESSOR * processors)

    def unit(self, unit: Tensor | float | None) -> Tensor:
        """The unit where a kernel can read it."""
        if unit is None:
            return self.one
        if isinstance(unit, Tensor) and unit.device == self.one.device:
            return unit.detach()
        return torch.full((), float(unit), dtype=torch.float64, device=self.one.device)


_workspaces: dict[tuple[torch.device, int], Workspace] = {}


def workspace(device: torch.device) -> Workspace:
    """That of the current stream of a device."""
    key = device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    found = _workspaces.get(key)
    if found is None:
        with torch.inference_mode(False):
            found = _workspaces[key] = Workspace(device)
    return found


def reduce_tensor(
    x: Tensor, minus: Tensor | None, unit: Tensor | float | None, row: Tensor, counts: Tensor | None
) -> None:
    """Launch `reduce_one`; arguments are those of `reduce_on_device`, the device is the current one."""
    if not x.is_contiguous():
        x, minus = flat(x), None if minus is None else flat(minus)
    work, shape = workspace(x.device), shape_for(x.dtype, minus is not None)
    tiles = _ceil(x.numel(), shape.tile)
    tiles_each = max(1, _ceil(tiles, work.most_programs))
    of = work.one if counts is None else work.unit(unit)
    grid = (max(1, _ceil(tiles, tiles_each)),)
    kernels.reduce_one[grid](
        x, minus, x.numel(), tiles_each, row, counts, work.bins, of, work.parts, work.ticket, **shape.constants
    )


def reduce_tensors(
    tensors: Sequence[Tensor],
    minus: Sequence[Tensor] | None,
    unit: Tensor | float | None,
    rows: Ints,
    counts: Ints | None,
) -> None:
    """Launch `reduce_many` for each dtype; arguments are those of `reduce_many_on_device`."""
    read, taken = _contiguous(tensors, minus)
    work = workspace(read[0].device)
    key = tuple((x.data_ptr(), x.numel(), x.dtype) for x in read), tuple(y.data_ptr() for y in taken or ())
    plan = _kept(work.plans, key, _MOST_PLANS, lambda: Plan(read, taken))
    places = plan.places(rows, counts)
    of = work.one if counts is None else work.unit(unit)
    for dtype, aligned, first, programs in plan.launches:
        kernels.reduce_many[(programs,)](
            plan.chunks,
            places,
            work.bins,
            of,
            plan.parts,
            plan.tickets,
            first,
            DTYPE=kernels.type_named(str(dtype).removeprefix("torch.")),
            ALIGNED=aligned,
            MINUS=taken is not None,
            COUNTING=counts is not None,
            **shape_for(dtype, taken is not None).constants,
        )


def _contiguous(tensors: Sequence[Tensor], minus: Sequence[Tensor] | None) -> tuple[list[Tensor], list[Tensor] | None]:
    """The tensors, entries one after another, and what is taken from them in the same order."""
    if minus is None:
        return [x if x.is_contiguous() else flat(x) for x in tensors], None
    alike = [
        (x, y)
        if x.is_contiguous() and y.is_contiguous()
        else (flat(x), flat(y))
        if x.stride() == y.stride()
        else (x.contiguous(), y.contiguous())
        for x, y in zip(tensors, minus, strict=True)
    ]
    return [x for x, _ in alike], [y for _, y in alike]


def _kept(store: OrderedDict[Key, Value], key: Key, most: int, make: Callable[[], Value]) -> Value:
    """What is kept by a key, made where it is not; of more than `most` the one not used for longest is forgotten."""
    found = store.get(key)
    if found is None:
        with torch.inference_mode(False):
            found = store[key] = make()
        if len(store) > most:
            store.popitem(last=False)
    else:
        store.move_to_end(key)
    return found


def _sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """On the device, without waiting for it: pinned memory is not used again before the copy is made."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.clone()


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
