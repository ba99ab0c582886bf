"""Where a recording's rows come from, file or temporary database, found by signal and step."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gradscope.recording import _reading
from gradscope.recording._codec import Blob
from gradscope.recording._contents import Contents
from gradscope.recording._errors import RecordingError, unknown_name
from gradscope.recording._moments import COLUMNS, Ints, Moments
from gradscope.recording._opening import Damage, explained, opened
from gradscope.recording._schema import Tally
from gradscope.recording._site import SIGNALS
from gradscope.recording._writing import Writer

Table = Literal["moments", "histograms"]


class LazyMoments:
    """The moments in a blob, each column decoded when it is read: a statistic costs only what it needs."""

    def __init__(self, blob: Blob, layout: tuple[str, ...]) -> None:
        self._blob = blob
        self._layout = layout

    def __getattr__(self, name: str) -> Any:
        if name not in COLUMNS:
            raise AttributeError(f"moments have no column {name!r}; they have {', '.join(COLUMNS)}")
        place = 1 + self._layout.index(name)
        return self._blob.ints(place) if COLUMNS[name] is np.int64 else self._blob.floats(place)

    def decoded(self) -> Moments:
        """All columns."""
        return Moments(*(getattr(self, name) for name in COLUMNS))


class Source:
    """The contents of a recording, and access to its rows.

    A file is opened read-only for each answer and closed again, so that a recording holds no file open and a
    writer is never in a reader's way; a temporary database has one connection, which answers one at a time.
    """

    def __init__(self, contents: Contents, path: Path | None, writer: Writer | None = None) -> None:
        self._contents = contents
        self._path = path
        self.writer = writer

    @property
    def contents(self) -> Contents:
        """What of the recording is in memory."""
        return self._contents if self.writer is None else self.writer.contents

    @property
    def path(self) -> Path | None:
        """The file in which the rows are; None where they are in a temporary database."""
        return self._path if self.writer is None else self.writer.path

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection to read with."""
        if self.path is not None:
            with opened(self.path) as connection:
                (header,) = connection.execute("SELECT value FROM header WHERE n = 0").fetchone() or (None,)
                if header != self.contents.layout.dumps():
                    raise RecordingError(f"{self.path} is no longer the recording that was loaded: load it again")
                yield connection
        elif self.writer is not None:
            with self.writer.lock, explained(None):
                yield self.writer.connection
        else:
            raise RecordingError("the recording has neither a file nor a temporary database")

    def ids(self, signal: str) -> list[int]:
        """Ids of a signal's sites, in order of execution; at one depth, alike for all signals of the same names."""
        if signal not in SIGNALS:
            raise unknown_name("signal", signal, SIGNALS)
        sites = tuple(self.contents.sites)
        first: dict[str, int] = {}
        for i, site in enumerate(sites):
            first.setdefault(site.name, i)
        own = (i for i, site in enumerate(sites) if site.signal == signal)
        return sorted(own, key=lambda i: (sites[i].depth, first[sites[i].name]))

    def columns(self, signal: str) -> Ints:
        """Site id → its column in the order of `ids`; −1 for sites of other signals."""
        ids = self.ids(signal)
        column = np.full(len(self.contents.sites), -1, dtype=np.int64)
        column[ids] = np.arange(len(ids))
        return column

    def index(self, step: int, signal: str | None = None, table: Table = "moments") -> int:
        """The index from 0 of a step; for a signal, −1 is the last step that has data of it, if any has."""
        steps = self.contents.recorded
        if not -steps <= step < steps:
            raise IndexError(f"step={step} is out of range: {steps} steps are recorded")
        if step == -1 and signal is not None:
            if signal not in SIGNALS:
                raise unknown_name("signal", signal, SIGNALS)
            last = f"SELECT at FROM {table} WHERE signal = ? AND at < ? ORDER BY n DESC LIMIT 1"
            with self.connection() as connection:
                row = connection.execute(last, (SIGNALS.index(signal), steps)).fetchone()
            return int(row[0]) if row else steps - 1
        return step % steps

    def notes(self) -> Iterator[dict[str, Any]]:
        """The notes of every step."""
        with self.connection() as connection:
            yield from _reading.notes(connection, self.contents, 0, self.contents.recorded)

    def notes_at(self, at: int) -> dict[str, Any]:
        """The notes of one step."""
        with self.connection() as connection:
            return next(_reading.notes(connection, self.contents, at, at + 1))

    def moments(
        self, signal: str, at: int | None = None, tally: Tally | None = None
    ) -> Iterator[tuple[int, Ints, LazyMoments]]:
        """The moments of a signal: index of the step, site ids, moments.

        Of one step, or of every step: those of now, or those that an earlier tally counted.
        """
        for step, ids, blob in self._blobs("moments", signal, at, tally or self.contents.tally):
            yield step, ids, LazyMoments(blob, self.contents.layout.columns)

    def histograms(self, signal: str, at: int | None = None) -> Iterator[tuple[int, Ints, Ints]]:
        """The histograms of a signal: index of the step, site ids, counts `(sites, bins)`."""
        for step, ids, blob in self._blobs("histograms", signal, at, self.contents.tally):
            yield step, ids, blob.ints(1).reshape(len(ids), len(self.contents.layout.edges) - 1)

    def _blobs(self, table: Table, signal: str, at: int | None, tally: Tally) -> Iterator[tuple[int, Ints, Blob]]:
        number, start, stop = SIGNALS.index(signal), 0, tally.rows[table]
        with self.connection() as connection:
            if at is not None:
                start, stop = _reading.rows_of_step(connection, table, stop, at)
            seen = 0
            for row in _reading.blobs(connection, self.contents, table, number, start, stop):
                yield row
                seen += 1
            if at is None and seen != tally.of_signal[table, number]:
                raise Damage(f"table {table} has {seen} rows of {signal}, not {tally.of_signal[table, number]}")
