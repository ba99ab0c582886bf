"""Many tensors on the CPU read together: by one call of our kernel where it was built, else one after another."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.hooks._kernel import CODES, native
from gradscope.hooks._moments import Arena, Ints
from gradscope.hooks._tensors import is_plain

_FIELDS = 12
_ADDRESS, _ENTRIES, _CODE, _ROW, _COUNTS, _MINUS, _COPY = range(7)
_LATTICES = slice(7, 11)
_UNIT = 11
_ALIGNED = 64
"""Bytes."""
FEW = 8


def readable(tensor: Tensor) -> bool:
    """Whether it can be read as it lies: a plain tensor on the CPU, its entries one after another."""
    return tensor.is_cpu and is_plain(tensor) and tensor.is_contiguous()


class Room:
    """Memory for copies of some tensors; a step that is recorded uses that of an earlier one.

    Attributes:
        tensors: the copies.
        addresses: of each.
        taken: they are in use.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        sizes = [tensor.numel() * tensor.element_size() for tensor in like]
        starts = np.cumsum([0, *(-(-size // _ALIGNED) * _ALIGNED for size in sizes)], dtype=np.int64)
        with torch.inference_mode(False):
            memory = torch.empty(int(starts[-1]), dtype=torch.uint8, device="cpu")
            self.tensors = [
                memory[start : start + size].view(tensor.dtype).view(tensor.shape)
                for tensor, start, size in zip(like, starts[:-1].tolist(), sizes, strict=True)
            ]
        self.addresses: Ints = starts[:-1] + memory.data_ptr()
        self.taken = False


class Batch:
    """Tensors of known sizes, read together again and again, from wherever they lie then.

    Args:
        like: tensors of the same sizes and dtypes, each `readable`.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.entries = [tensor.numel() for tensor in like]
        self._dtypes = [tensor.dtype for tensor in like]
        if native is not None:
            self._jobs = np.zeros((len(like), _FIELDS), dtype=np.int64)
            self._jobs[:, _ENTRIES] = self.entries
            self._jobs[:, _CODE] = [CODES[dtype] for dtype in self._dtypes]
            self._jobs[:, _LATTICES] = 1, 0, 1, 0

    def fits(self, index: int, tensor: Tensor) -> bool:
        """Whether this tensor can stand at this place."""
        return readable(tensor) and tensor.numel() == self.entries[index] and tensor.dtype is self._dtypes[index]

    def reduce(
        self,
        arena: Arena,
        tensors: Sequence[Tensor],
        places: Sequence[int],
        *,
        minus: Room | None = None,
        to: tuple[Room, Sequence[int]] | None = None,
        unit: float = 1.0,
    ) -> list[int]:
        """Read tensors, and return the numbers of their rows.

        Args:
            arena: has the rows.
            tensors: each `fits` its place.
            places: of each.
            minus: holds what is taken from each.
            to: where copies are made, and of which places, all of them among `places`.
            unit: what entries are divided by before they are counted in a histogram.
        """
        if native is None:
            return self._reduce_one_by_one(arena, tensors, places, minus, to, unit)
        picked = np.asarray(places, dtype=np.int64)
        jobs = self._jobs[picked]
        numbers, rows, counts = arena.next_rows(len(jobs))
        jobs[:, _ADDRESS] = [tensor.data_ptr() for tensor in tensors]
        jobs[:, _ROW], jobs[:, _COUNTS] = rows, counts
        if minus is not None:
            jobs[:, _MINUS] = minus.addresses[picked]
        if to is not None:
            copies = np.zeros_like(to[0].addresses)
            copies[to[1]] = to[0].addresses[to[1]]
            jobs[:, _COPY] = copies[picked]
        if not arena.plain:
            jobs[:, _LATTICES] = [arena.lattices(entries) for entries in jobs[:, _ENTRIES].tolist()]
        jobs[:, _UNIT] = np.float64(unit).view(np.int64)
        native.run(jobs.__array_interface__["data"][0], len(jobs), torch.get_num_threads())
        found: list[int] = numbers.tolist()
        return found

    def some_entries(self, tensors: Sequence[Tensor], places: Sequence[int]) -> NDArray[np.float64]:
        """Up to eight entries of each tensor, from its beginning to its end, `(tensors, 8)`; 0 where it has fewer."""
        found = np.zeros((len(tensors), FEW))
        if native is not None:
            table = self._jobs[np.asarray(places, dtype=np.int64), _ADDRESS : _CODE + 1]
            table[:, _ADDRESS] = [tensor.data_ptr() for tensor in tensors]
            native.some_entries(table.__array_interface__["data"][0], len(table), found.__array_interface__["data"][0])
            return found
        for line, tensor in zip(found, tensors, strict=True):
            few = _in_numpy(tensor)[:: max(1, tensor.numel() // FEW)][:FEW]
            line[: len(few)] = few
        return found

    def _reduce_one_by_one(
        self,
        arena: Arena,
        tensors: Sequence[Tensor],
        places: Sequence[int],
        minus: Room | None,
        to: tuple[Room, Sequence[int]] | None,
        unit: float,
    ) -> list[int]:
        if to is not None:
            at = dict(zip(places, tensors, strict=True))
            with torch.no_grad():
                torch._foreach_copy_([to[0].tensors[i] for i in to[1]], [at[i] for i in to[1]])
        rows = []
        for tensor, place in zip(tensors, places, strict=True):
            before = None if minus is None else minus.tensors[place]
            row = arena.observe(tensor, before, None if unit == 1.0 else unit)
            assert row is not None  # only what lies on several ranks may have none
            rows.append(row)
        return rows


def _in_numpy(tensor: Tensor) -> NDArray[np.generic]:
    """A contiguous tensor's entries as they lie: `Tensor.numpy` would be four operations."""
    size = tensor.numel() * tensor.element_size()
    kept = memoryview((ctypes.c_char * size).from_address(tensor.data_ptr()))
    if tensor.dtype is torch.bfloat16:  # the upper half of a float32
        return (np.frombuffer(kept, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(kept, _IN_NUMPY[tensor.dtype])


_IN_NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}
