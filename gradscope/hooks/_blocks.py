"""The memory of rows: blocks of them on each device, which a scope uses again and again.

A row's number says its block and its place there: `number = block · ROWS_PER_BLOCK + index`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope.hooks._histogram import BINS
from gradscope.hooks._rows import WIDTH

ROWS_PER_BLOCK = 128
ROW_BYTES, COUNTS_BYTES = 8 * WIDTH, 8 * BINS


class Block:
    """Rows on one device, and their histograms; on the CPU also seen as numpy, so that reading one is no operation."""

    __slots__ = ("address", "counts", "counts_address", "device", "host", "host_counts", "number", "rows", "used")

    def __init__(self, number: int, device: torch.device, histograms: bool) -> None:
        self.number = number
        self.device = device
        self.used = 0
        with torch.inference_mode(False):  # else no later step could write into it
            self.rows = torch.zeros((ROWS_PER_BLOCK, WIDTH), dtype=torch.float64, device=device)
            self.counts = torch.zeros((ROWS_PER_BLOCK, BINS), dtype=torch.int64, device=device) if histograms else None
        here = device.type == "cpu"
        self.host: NDArray[np.float64] | None = self.rows.numpy() if here else None
        self.host_counts: NDArray[np.int64] | None = self.counts.numpy() if here and self.counts is not None else None
        plain = device.type in ("cpu", "cuda")  # where a kernel of ours may be given an address
        self.address = self.rows.data_ptr() if plain else 0
        self.counts_address = self.counts.data_ptr() if plain and self.counts is not None else 0

    def clear(self) -> None:
        """Its rows are void."""
        if self.host_counts is not None:  # kernels add to them
            self.host_counts[: self.used] = 0
        elif self.counts is not None:
            self.counts[: self.used].zero_()
        self.used = 0


class Pool:
    """The blocks of one scope, in use or free."""

    def __init__(self, histograms: bool = False) -> None:
        self.histograms = histograms
        self.blocks: list[Block] = []
        self._free: dict[torch.device, list[Block]] = {}

    def take(self, device: torch.device) -> Block:
        """An empty block."""
        free = self._free.get(device)
        if free:
            return free.pop()
        block = Block(len(self.blocks), device, self.histograms)
        self.blocks.append(block)
        return block

    def give(self, block: Block) -> None:
        """Take it back."""
        block.clear()
        self._free.setdefault(block.device, []).append(block)
