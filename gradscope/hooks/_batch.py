"""Many tensors on the CPU read by one call of our kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope.hooks._kernel import CODES, native
from gradscope.hooks._moments import Arena, Ints

_PLAIN = (Tensor, nn.Parameter)
_FIELDS = 12
_ADDRESS, _ENTRIES, _CODE, _ROW, _COUNTS, _MINUS, _COPY = range(7)
_LATTICES = slice(7, 11)
_UNIT = 11


def readable(tensor: Tensor) -> bool:
    """Whether our kernel reads it as it lies: a plain tensor on the CPU, its entries one after another."""
    return (
        type(tensor) in _PLAIN
        and tensor.dtype in CODES
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


class Batch:
    """Tensors of known sizes, read together again and again, from wherever they lie then.

    Args:
        like: tensors of the same sizes and dtypes, each `readable`.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.entries = [tensor.numel() for tensor in like]
        self.codes = [CODES[tensor.dtype] for tensor in like]
        self._jobs = np.zeros((len(like), _FIELDS), dtype=np.int64)
        self._jobs[:, _ENTRIES] = self.entries
        self._jobs[:, _CODE] = self.codes
        self._jobs[:, _LATTICES] = 1, 0, 1, 0

    def fits(self, index: int, tensor: Tensor) -> bool:
        """Whether this tensor can stand at this place."""
        return readable(tensor) and tensor.numel() == self.entries[index] and CODES[tensor.dtype] == self.codes[index]

    def reduce(
        self,
        arena: Arena,
        addresses: Sequence[int],
        *,
        only: Sequence[int] | None = None,
        minus: Ints | None = None,
        copies: Ints | None = None,
        unit: float = 1.0,
    ) -> Ints:
        """Read all tensors, or `only` those at the given places; returns the numbers of their rows.

        Args:
            arena: has the rows.
            addresses: of those that are read, in order.
            minus: address of what is taken from each; of all tensors of the batch.
            copies: where to copy each to, 0 for nowhere; of all tensors of the batch.
            unit: what entries are divided by before they are counted in a histogram.
        """
        assert native is not None
        picked = slice(None) if only is None else np.asarray(only, dtype=np.int64)
        jobs = self._jobs[picked].copy()
        numbers, rows, counts = arena.next_rows(len(jobs))
        jobs[:, _ADDRESS], jobs[:, _ROW], jobs[:, _COUNTS] = addresses, rows, counts
        if minus is not None:
            jobs[:, _MINUS] = minus[picked]
        if copies is not None:
            jobs[:, _COPY] = copies[picked]
        if not arena.plain:
            jobs[:, _LATTICES] = [arena.lattices(entries) for entries in jobs[:, _ENTRIES].tolist()]
        jobs[:, _UNIT] = np.float64(unit).view(np.int64)
        native.run(jobs.__array_interface__["data"][0], len(jobs), torch.get_num_threads())
        return numbers


def some_entries(addresses: Sequence[int], entries: Sequence[int], codes: Sequence[int]) -> NDArray[np.float64]:
    """Up to eight entries of each tensor, from its beginning to its end, `(tensors, 8)`; 0 where it has fewer."""
    assert native is not None
    jobs = np.array([addresses, entries, codes], dtype=np.int64).T.copy()
    found = np.zeros((len(jobs), 8))
    native.some_entries(jobs.__array_interface__["data"][0], len(jobs), found.__array_interface__["data"][0])
    return found
