"""Where a recording's rows come from, file or temporary database, found by signal and step."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.recording import _flags, _reading
from gradscope.recording._contents import Contents
from gradscope.recording._errors import RecordingError, unknown_name
from gradscope.recording._loading import load
from gradscope.recording._moments import Ints
from gradscope.recording._opening import explained, opened
from gradscope.recording._site import SIGNALS
from gradscope.recording._unit_moments import UnitMoments
from gradscope.recording._verifying import contents_of
from gradscope.recording._writing import Writer


class Source:
    """The contents of a recording, and access to its rows.

    A file is opened read-only for each answer and closed again, so that a recording holds no file open and a
    writer is never in a reader's way; a temporary database has one connection, which answers one at a time.
    """

    def __init__(self, contents: Contents, path: Path | None, writer: Writer | None = None) -> None:
        self._contents = contents
        self._path = path
        self.writer = writer

    @classmethod
    def load(cls, path: Path) -> Source:
        """That of the recording at a path."""
        with opened(path) as connection:
            found = load(connection, path)
        return cls(found, path) if isinstance(found, Contents) else cls(found.contents, path, found)

    @property
    def contents(self) -> Contents:
        """What of the recording is in memory."""
        return self._contents if self.writer is None else self.writer.contents

    @property
    def path(self) -> Path | None:
        """The file of the recording; None where it is in a temporary database only."""
        return (self.writer and self.writer.path) or self._path

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection to read with."""
        file = self._path if self.writer is None else self.writer.path
        if file is not None:
            with opened(file) as connection:
                connection.execute("BEGIN")  # one snapshot, and locks that are taken once
                (header,) = connection.execute("SELECT value FROM header WHERE n = 0").fetchone() or (None,)
                if header != self.contents.layout.dumps():
                    raise RecordingError(f"{file} is no longer the recording that was loaded: load it again")
                yield connection
        elif self.writer is not None:
            with self.writer.lock, explained(None):
                yield self.writer.connection
        else:
            raise RecordingError("the recording has neither a file nor a temporary database")

    def verify(self) -> None:
        """Compare every row with its checksum, and all of them with the seal."""
        with self.connection() as connection:
            contents_of(connection, whole=True)

    def ids(self, signal: str) -> list[int]:
        """Ids of a signal's sites, in order of execution; at one depth, alike for all signals of the same names."""
        _index_of(signal)
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

    def have(self, part: _flags.Part, signal: str | None = None) -> NDArray[np.bool_]:
        """Which of the recorded steps have moments (histograms, …) of a signal, or of any, `(steps,)`."""
        number = None if signal is None else _index_of(signal)
        contents = self.contents
        return _flags.have(contents.flags_of(contents.recorded), part, number)

    def index(self, step: int, signal: str | None = None, part: _flags.Part = "moments") -> int:
        """The index from 0 of a step; for a signal, −1 is the last step that has data of it, if any has."""
        steps = self.contents.recorded
        if not -steps <= step < steps:
            raise IndexError(f"step={step} is out of range: {steps} steps are recorded")
        if step == -1 and signal is not None:
            having = np.flatnonzero(self.have(part, signal)[:steps])
            return int(having[-1]) if having.size else steps - 1
        return step % steps

    def notes(self, steps: Ints | None = None) -> Iterator[dict[str, Any]]:
        """The notes of steps, given by their indices in growing order; None is every step."""
        chosen = np.arange(self.contents.recorded) if steps is None else steps
        with self.connection() as connection:
            yield from _reading.notes(connection, self.contents, chosen)

    def notes_at(self, at: int) -> dict[str, Any]:
        """The notes of one step."""
        with self.connection() as connection:
            return next(_reading.notes(connection, self.contents, np.array([at])))

    def moments(self, signal: str, steps: Ints, most: int = _reading.MOST_ROWS) -> Iterator[_reading.Batch]:
        """The moments of a signal in those of some steps that have some; their indices grow."""
        having = steps[self.have("moments", signal)[steps]]
        if having.size:
            with self.connection() as connection:
                yield from _reading.moments(connection, self.contents, SIGNALS.index(signal), having, most)

    def histograms(self, signal: str, at: int) -> tuple[Ints, Ints] | None:
        """The histograms of a signal in one step: site ids, counts `(sites, bins)`; None where it has none."""
        if not self.have("histograms", signal)[at]:
            return None
        with self.connection() as connection:
            blob = _reading.histogram_blob(connection, self.contents, at)
            return _reading.histograms(self.contents, blob, SIGNALS.index(signal))

    def units(self, steps: Ints) -> Iterator[tuple[int, Ints, UnitMoments]]:
        """Index, site ids and unit moments of those of some steps that have some; their indices grow."""
        having = steps[self.have("units")[steps]]
        if having.size:
            with self.connection() as connection:
                yield from _reading.units(connection, self.contents, having)


def _index_of(signal: str) -> int:
    if signal not in SIGNALS:
        raise unknown_name("signal", signal, SIGNALS)
    return SIGNALS.index(signal)


def indices(steps: ArrayLike, recorded: int) -> Ints:
    """The indices from 0 of some steps of so many; IndexError where there is no such step."""
    chosen = np.asarray(steps)
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise ValueError(f"steps are whole numbers, indices into `steps`, got {chosen.dtype} of shape {chosen.shape}")
    outside = chosen[(chosen < -recorded) | (chosen >= recorded)]
    if outside.size:
        raise IndexError(f"steps has {outside[0]}, which is out of range: {recorded} steps are recorded")
    return np.where(chosen < 0, chosen + recorded, chosen).astype(np.int64)
