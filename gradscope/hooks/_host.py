"""Rows that have left their devices: one copy of each device's, read once they have all arrived."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.hooks._blocks import ROWS_PER_BLOCK, Block
from gradscope.hooks._histogram import BINS
from gradscope.hooks._rows import COUNT, INFS, NANS, WIDTH, moments_of
from gradscope.recording import Moments


class HostRows:
    """The rows of some blocks as they are now, found by their numbers; making it starts the transfers.

    Args:
        blocks: in use.
        histograms: they have counts too.
    """

    def __init__(self, blocks: Sequence[Block], histograms: bool) -> None:
        lines = len(blocks) * ROWS_PER_BLOCK
        self._rows = np.zeros((lines, WIDTH))
        self._counts = np.zeros((lines if histograms else 0, BINS), dtype=np.int64)
        self._line_of_block = np.zeros(max((block.number for block in blocks), default=0) + 1, dtype=np.int64)
        self._arriving: list[tuple[NDArray[np.generic], int, Tensor]] = []
        self._events: list[torch.cuda.Event] = []
        elsewhere: dict[torch.device, list[tuple[int, Block]]] = {}
        for place, block in enumerate(blocks):
            line = place * ROWS_PER_BLOCK
            self._line_of_block[block.number] = line
            if block.host is None:
                elsewhere.setdefault(block.device, []).append((line, block))
                continue
            self._rows[line : line + block.used] = block.host[: block.used]
            if block.host_counts is not None:
                self._counts[line : line + block.used] = block.host_counts[: block.used]
        for device, found in elsewhere.items():
            self._fetch(self._rows, [(line, block.rows[: block.used]) for line, block in found])
            self._fetch(self._counts, [(line, b.counts[: b.used]) for line, b in found if b.counts is not None])
            if device.type == "cuda":
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(device))
                self._events.append(event)

    def _fetch(self, to: NDArray[np.generic], parts: Sequence[tuple[int, Tensor]]) -> None:
        if not parts:
            return
        used = torch.cat([part for _, part in parts])
        host = torch.empty(used.shape, dtype=used.dtype, device="cpu", pin_memory=used.device.type == "cuda")
        host.copy_(used, non_blocking=True)
        lengths = [len(part) for _, part in parts]
        self._arriving += [(to, line, p) for (line, _), p in zip(parts, host.split(lengths), strict=True)]

    def arrived(self) -> bool:
        """Whether reading has to wait for nothing."""
        return all(event.query() for event in self._events)

    def wait(self) -> None:
        """Until all have arrived."""
        for event in self._events:
            event.synchronize()
        for to, line, part in self._arriving:
            to[line : line + len(part)] = part.numpy()
        self._events, self._arriving = [], []

    def _lines(self, rows: Iterable[int]) -> NDArray[np.int64]:
        self.wait()
        numbers = np.fromiter(rows, dtype=np.int64)
        lines: NDArray[np.int64] = self._line_of_block[numbers // ROWS_PER_BLOCK] + numbers % ROWS_PER_BLOCK
        return lines

    def moments(self, rows: Iterable[int]) -> Moments:
        """Of each row, in the given order."""
        return moments_of(self._rows[self._lines(rows)])

    def histograms(self, rows: Iterable[int]) -> NDArray[np.int64]:
        """The counts of each row, `(rows, 64)`."""
        counts: NDArray[np.int64] = self._counts[self._lines(rows)]
        return counts

    def all_finite(self) -> bool:
        """Whether no row has a NaN or an infinity."""
        self.wait()
        return not self._rows[:, NANS : INFS + 1].any()

    def nonfinite(self, rows: Iterable[int]) -> tuple[int, int, int]:
        """Of these rows together: NaNs, infinities, and all entries."""
        total = self._rows[self._lines(rows)].sum(axis=0)
        return int(total[NANS]), int(total[INFS]), int(total[COUNT])
