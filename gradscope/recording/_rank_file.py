"""The recording that one rank of a distributed run wrote, read step by step in one snapshot."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.recording import _reading
from gradscope.recording._codec import Blob
from gradscope.recording._contents import Contents
from gradscope.recording._errors import RecordingError
from gradscope.recording._moments import Ints, Moments
from gradscope.recording._opening import explained
from gradscope.recording._source import LazyMoments


class RankFile:
    """One rank's file over an open connection; steps are asked for in growing order.

    Attributes:
        path: the file.
        contents: its facts, sites and steps.
        rank: which rank wrote it.
        ranks: how many there were.
        sharded: parameters lie in parts on the ranks, not whole on each.
        merged_ids: by site id, the site's id in the merged recording.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        with explained(path):
            self.contents: Contents = _reading.load(connection, path)
        self.rank, self.ranks = self._whole_number("rank"), self._whole_number("ranks")
        if not 0 <= self.rank < self.ranks:
            raise RecordingError(f"recording {path} is of rank {self.rank} of {self.ranks}: there is no such rank")
        self.sharded = bool(self.contents.facts.get("sharded", False))
        self.merged_ids: Ints = np.empty(0, np.int64)
        self._at = {step: at for at, step in enumerate(self.contents.steps)}
        self._rows: dict[tuple[str, int], _Rows] = {}

    def _whole_number(self, fact: str) -> int:
        value = self.contents.facts.get(fact)
        if not isinstance(value, int) or isinstance(value, bool):
            raise RecordingError(
                f"recording {self.path} has no whole number as the fact {fact!r}: "
                "only the recordings of the ranks of a distributed run can be merged"
            )
        return value

    def notes(self, step: int) -> dict[str, Any] | None:
        """The notes of a step; None where the file has no such step."""
        at = self._at.get(step)
        if at is None:
            return None
        with explained(self.path):
            return next(_reading.notes(self._connection, self.contents, at, at + 1))

    def skipped(self, step: int) -> bool:
        """Whether the optimizer skipped the step."""
        return bool(self.contents.skipped[self._at[step]])

    def moments(self, step: int, signal: int) -> tuple[Ints, Moments] | None:
        """Ids in the merged recording, and their moments; None where the step has none of that signal."""
        row = self._row("moments", step, signal)
        return row and (row[0], LazyMoments(row[1], self.contents.layout.columns).decoded())

    def histograms(self, step: int, signal: int) -> tuple[Ints, Ints] | None:
        """Likewise, and their counts `(sites, bins)`."""
        row = self._row("histograms", step, signal)
        return row and (row[0], row[1].ints(1).reshape(len(row[0]), len(self.contents.layout.edges) - 1))

    def _row(self, table: str, step: int, signal: int) -> tuple[Ints, Blob] | None:
        key = (table, signal)
        with explained(self.path):
            if key not in self._rows:
                stop = self.contents.tally.rows[table]
                self._rows[key] = _Rows(_reading.blobs(self._connection, self.contents, table, signal, 0, stop))
            row = self._rows[key].of(self._at[step])
        return row and (self.merged_ids[row[0]], row[1])


class _Rows:
    """The rows of one signal, taken in the order in which they are stored."""

    def __init__(self, rows: Iterator[tuple[int, Ints, Blob]]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def of(self, at: int) -> tuple[Ints, Blob] | None:
        while self._next is not None and self._next[0] < at:
            self._next = next(self._rows, None)
        return self._next[1:] if self._next is not None and self._next[0] == at else None
