"""Reduction on a GPU by kernels of our own, where Triton can build them; torch's operations do it elsewhere.

Nothing here waits for the device, and nothing here may run while a CUDA graph is captured.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.recording import GradScopeWarning

Ints = NDArray[np.int64]

_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})

_launching: ModuleType | None = None
"""What launches the kernels, from the first tensor on a GPU on: to import Triton takes a while."""

_unusable = False
"""Triton is not here, or has failed."""


def reduce_on_device(
    tensor: Tensor, minus: Tensor | None, unit: Tensor | float | None, row: Tensor, counts: Tensor | None
) -> bool:
    """Write the row of a tensor on a GPU, and add to its counts; False where no kernel of ours runs there.

    Args:
        tensor: of any layout; not empty.
        minus: of the same shape and strides, on the same device: what is taken from it.
        unit: positive: what entries are divided by before they are counted.
        row: `(10,)` float64 on the same device, in the order of `_rows.COLUMNS`.
        counts: `(64,)` int64 there, over `HISTOGRAM_EDGES`, or None.
    """
    if not _suits(tensor, tensor) or (minus is not None and not _suits(minus, tensor)):
        return False
    return _launched(tensor.device, lambda launch: launch.reduce_tensor(tensor, minus, unit, row, counts))


def reduce_many_on_device(
    tensors: Sequence[Tensor],
    minus: Sequence[Tensor] | None,
    unit: Tensor | float | None,
    rows: Ints,
    counts: Ints | None,
) -> bool:
    """Write the rows of tensors on one GPU by a launch for each of their dtypes; False, and nothing, as above.

    A table of where they lie goes to the device before it, and stays there: as long as tensors, and rows, are where
    they were in some call before, nothing is sent.

    Args:
        tensors: of any layouts, also empty.
        minus: what is taken from each, of the same shape and dtype.
        unit: positive: what entries are divided by before they are counted.
        rows: `(tensors,)`: the address of each one's ten float64 on that GPU.
        counts: `(tensors,)`: the address of each one's 64 int64, or None.
    """
    every = [*tensors, *(minus or ())]
    if not tensors or not all(_suits(tensor, tensors[0]) for tensor in every):
        return False
    if minus is not None and any(x.dtype != y.dtype for x, y in zip(tensors, minus, strict=True)):
        return False
    return _launched(tensors[0].device, lambda launch: launch.reduce_tensors(tensors, minus, unit, rows, counts))


def _suits(tensor: Tensor, beside: Tensor) -> bool:
    return tensor.is_cuda and tensor.device == beside.device and tensor.dtype in _DTYPES


def _launched(device: torch.device, work: Callable[[ModuleType], None]) -> bool:
    global _launching, _unusable
    if _unusable:
        return False
    try:
        if _launching is None:
            from gradscope.hooks import _launching as found

            _launching, _unusable = found, not found.AVAILABLE
            if _unusable:
                return False
        with torch.cuda.device(device):
            work(_launching)
    except Exception as error:  # no C compiler, a GPU too old, …: what Triton raises then is of no one kind
        _unusable = True
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(
            f"tensors on {device} are read by torch's operations, at a higher cost: Triton gives no kernel ({reason})",
            GradScopeWarning,
            stacklevel=2,
        )
    return not _unusable
