"""Reduction on an accelerator by a kernel of our own."""

from __future__ import annotations

from torch import Tensor


def reduce_on_device(
    tensor: Tensor, minus: Tensor | None, unit: Tensor | float | None, row: Tensor, counts: Tensor | None
) -> bool:
    """Write the row, and add to the counts; False where no kernel of ours runs there."""
    return False
