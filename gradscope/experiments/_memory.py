"""Memory that a sweep asks for once and uses again for every init: fresh pages cost as much as what is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Memory:
    """One block for each purpose, as large as the largest tensor it has held; let go with this object."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: dict[tuple[str, torch.dtype], Tensor] = {}

    def tensor(self, purpose: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A contiguous tensor, `shape`, that holds anything; what had the same purpose before is overwritten."""
        size = math.prod(shape)
        key = purpose, dtype
        if key not in self._blocks or self._blocks[key].numel() < size:
            self._blocks.pop(key, None)  # before the larger one is asked for
            self._blocks[key] = torch.empty(size, dtype=dtype, device=self._device)
        return self._blocks[key][:size].view(*shape)
