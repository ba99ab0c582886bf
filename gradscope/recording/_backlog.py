"""Steps that could not be written yet: in memory, and beyond a bound in SQLite's private temporary database."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass

LIMIT = 256 * 2**20
"""Bytes of rows that are kept in memory."""

_OVERHEAD = 256
"""Bytes that a step costs beside its values, about."""


@dataclass(frozen=True, slots=True)
class EncodedStep:
    """A step as it will be written.

    Attributes:
        at: how many steps come before it in the recording.
        step: its number.
        flags: what it has.
        frame: how `moments` lies.
        notes: the value of its row of that table.
        moments: likewise.
        histograms: likewise; empty where it has no such row.
        units: likewise.
    """

    at: int
    step: int
    flags: int
    frame: int
    notes: bytes
    moments: bytes
    histograms: bytes
    units: bytes = b""

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        return len(self.notes) + len(self.moments) + len(self.histograms) + len(self.units) + _OVERHEAD


class Backlog:
    """A queue of steps, bounded in memory; iterating leaves it as it is."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.dropped = 0
        """Steps that neither memory nor the temporary database could take."""
        self._memory: deque[EncodedStep] = deque()
        self._bytes = 0
        self._spill: sqlite3.Connection | None = None  # what is in it comes after what is in memory

    def __len__(self) -> int:
        if self._spill is None:
            return len(self._memory)
        first, last = self._spill.execute(
            "SELECT (SELECT MIN(at) FROM waiting), (SELECT MAX(at) FROM waiting)"
        ).fetchone()
        return len(self._memory) + (0 if first is None else last - first + 1)  # without gaps, and without a count

    def __iter__(self) -> Iterator[EncodedStep]:
        yield from tuple(self._memory)
        if self._spill is not None:
            for row in self._spill.execute("SELECT * FROM waiting ORDER BY at"):
                yield EncodedStep(*row)

    def next_at(self, recorded: int) -> int:
        """The place of a further step, after the steps recorded and those that wait."""
        last = self._memory[-1].at if self._memory else -1
        if self._spill is not None:
            (spilled,) = self._spill.execute("SELECT MAX(at) FROM waiting").fetchone()
            last = last if spilled is None else int(spilled)
        return max(recorded, last + 1)

    def push(self, step: EncodedStep) -> bool:
        """Take a step in; False where there is no place for it any more."""
        if self._spill is None and self._bytes + step.size <= self.limit:
            self._memory.append(step)
            self._bytes += step.size
            return True
        try:
            if self._spill is None:
                self._spill = _temporary_table()
            self._spill.execute("INSERT INTO waiting VALUES(?, ?, ?, ?, ?, ?, ?, ?)", astuple(step))
        except sqlite3.Error:
            self.dropped += 1
            return False
        return True

    def first(self) -> EncodedStep | None:
        """The step that has waited longest; None where none waits."""
        if not self._memory:
            self._bytes = 0  # an interrupt may have come between a step and its size
        if not self._memory and self._spill is not None:
            row = self._spill.execute("SELECT * FROM waiting ORDER BY at LIMIT 1").fetchone()
            if row is None:
                self._forget_spill()
            else:
                return EncodedStep(*row)
        return self._memory[0] if self._memory else None

    def pop(self) -> None:
        """Let go of `first`."""
        if self._memory:
            self._bytes -= self._memory.popleft().size
        elif self._spill is not None:
            self._spill.execute("DELETE FROM waiting WHERE at = (SELECT MIN(at) FROM waiting)")

    def pop_last(self) -> None:
        """Let go of the step that came last."""
        if self._spill is not None:
            self._spill.execute("DELETE FROM waiting WHERE at = (SELECT MAX(at) FROM waiting)")
        elif self._memory:
            self._bytes -= self._memory.pop().size

    def clear(self) -> None:
        """Let go of all."""
        self._memory.clear()
        self._bytes = 0
        self._forget_spill()

    def _forget_spill(self) -> None:
        spill, self._spill = self._spill, None  # first, or an interrupt could leave a closed one
        if spill is not None:
            with suppress(sqlite3.Error):
                spill.close()


def _temporary_table() -> sqlite3.Connection:
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=MEMORY")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute(
        "CREATE TABLE waiting(at INTEGER PRIMARY KEY, step INTEGER, flags INTEGER, frame INTEGER, "
        "notes BLOB, moments BLOB, histograms BLOB, units BLOB)"
    )
    return connection
