"""The recording that one rank of a distributed run wrote, read step by step."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.recording import _flags, _reading
from gradscope.recording._codec import Blob
from gradscope.recording._errors import RecordingError
from gradscope.recording._frame import Frame
from gradscope.recording._moments import Ints, Moments
from gradscope.recording._opening import explained
from gradscope.recording._site import SIGNALS
from gradscope.recording._source import Source
from gradscope.recording._unit_moments import UnitMoments


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

    def __init__(self, path: Path, source: Source, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self.contents = source.contents
        self.rank, self.ranks = self._whole_number("rank"), self._whole_number("ranks")
        if not 0 <= self.rank < self.ranks:
            raise RecordingError(f"recording {path} is of rank {self.rank} of {self.ranks}: there is no such rank")
        self.sharded = bool(self.contents.facts.get("sharded", False))
        self.merged_ids: Ints = np.empty(0, np.int64)
        self._at = {step: at for at, step in enumerate(self.contents.steps)}
        self._body: tuple[int, Frame, memoryview] | None = None
        self._blob: tuple[int, Blob] | None = None

    @classmethod
    def opened(cls, path: Path, stack: ExitStack) -> RankFile:
        """The file at a path, open as long as the stack is."""
        source = Source.load(path)
        return cls(path, source, stack.enter_context(source.connection()))

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
            return next(_reading.notes(self._connection, self.contents, np.array([at])))

    def skipped(self, step: int) -> bool:
        """Whether the optimizer skipped the step."""
        return bool(self._flags(step) & _flags.SKIPPED)

    def moments(self, step: int, signal: int) -> tuple[Ints, Moments] | None:
        """Ids in the merged recording, and their moments; None where the step has none of that signal."""
        if not self._flags(step) & _flags.bit("moments", signal):
            return None
        at = self._at[step]
        with explained(self.path):
            if self._body is None or self._body[0] != at:
                self._body = next(_reading.bodies(self._connection, self.contents, np.array([at])))
            _, frame, body = self._body
            part = _reading.part_of(frame, signal, at)
        return self.merged_ids[part.ids], _reading.LazyMoments(part, [body]).decoded()

    def histograms(self, step: int, signal: int) -> tuple[Ints, Ints] | None:
        """Likewise, and their counts `(sites, bins)`."""
        if not self._flags(step) & _flags.bit("histograms", signal):
            return None
        at = self._at[step]
        with explained(self.path):
            if self._blob is None or self._blob[0] != at:
                self._blob = at, _reading.histogram_blob(self._connection, self.contents, at)
            ids, counts = _reading.histograms(self.contents, self._blob[1], signal)
        return self.merged_ids[ids], counts

    def units(self, step: int) -> tuple[Ints, UnitMoments] | None:
        """Ids in the merged recording, and their unit moments; None where the step has none."""
        if not self._flags(step) & _flags.bit("units", SIGNALS.index("activation")):
            return None
        with explained(self.path):
            ((_, ids, moments),) = _reading.units(self._connection, self.contents, np.array([self._at[step]]))
        return self.merged_ids[ids], moments

    def _flags(self, step: int) -> int:
        return self.contents.flags[self._at[step]]
