"""Where the steps of a growing recording go: into its database, or, while that cannot be written, into a backlog."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gradscope.recording import _pages, _place
from gradscope.recording._backlog import Backlog, EncodedStep
from gradscope.recording._contents import Contents
from gradscope.recording._copying import Unwritten, copy, read_back, write_copy
from gradscope.recording._creating import new_ground, reconnect
from gradscope.recording._errors import RecordingError
from gradscope.recording._opening import TIMEOUT_S
from gradscope.recording._trouble import breaks_the_connection, is_of_the_locks, is_of_the_place

LOCK_S = 2.0
"""How long a step waits for another process to let go of the file; while steps wait, none waits for it."""


class Keeper:
    """Keeps the steps of one recording. Its methods raise sqlite3's errors, but for troubles of the place.

    Attributes:
        asked: the path that was asked for; None for a temporary database.
        path: the file in which the rows are now; None while they are in a temporary database.
        contents: what is written, there.
        backlog: what waits.
        refused: why the recording does not grow at `asked`; None where it does.
    """

    def __init__(self, contents: Contents, path: Path | None) -> None:
        ground = new_ground(contents, path)
        self.asked, self.path, self.refused = path, ground.path, ground.refused
        self.contents = contents
        self.backlog = Backlog()
        self.ledger = ground.ledger
        self.ledger.changed_facts = True
        self._fitted = False
        self._wait_for_locks(LOCK_S)

    @property
    def unwritten(self) -> Unwritten:
        """What the database lacks."""
        return Unwritten(self.backlog, self.ledger.changed_sites, self.ledger.changed_facts)

    def write(self, step: EncodedStep) -> sqlite3.Error | None:
        """Write a step after those that wait; where it has to wait itself, the trouble that the place is in."""
        if not self._fitted:
            self._fit_pages(step)
        kept, waited = self.backlog.push(step), len(self.backlog) > 1
        try:
            self._persistently(self._drain)
        except sqlite3.Error as e:
            if not is_of_the_place(e):
                if kept:
                    self.backlog.pop_last()
                raise
            if not waited:
                self._wait_for_locks(0.0)
            return e
        if waited:
            self._wait_for_locks(LOCK_S)
        return None

    def _fit_pages(self, step: EncodedStep) -> None:
        """Before the first step, that is: later all would have to be written again."""
        self._fitted = True
        self._wait_for_locks(0.0)
        _pages.fit(self.ledger.connection, [len(row) for row in (step.moments, step.histograms) if row])
        self._wait_for_locks(LOCK_S)

    def _drain(self) -> None:
        while (step := self.backlog.first()) is not None:
            if step.at >= self.contents.recorded:  # else an interrupt came between its commit and the next line
                self.ledger.write(step)
            self.backlog.pop()

    def _persistently(self, action: Callable[[], None]) -> None:
        """Do it, over a new connection where the old one is dead."""
        try:
            action()
        except sqlite3.Error as e:
            if self.path is None or not breaks_the_connection(e) or not reconnect(self.ledger, self.path):
                raise
            action()

    def _wait_for_locks(self, seconds: float) -> None:
        self.ledger.connection.execute(f"PRAGMA busy_timeout={int(seconds * 1000)}")

    def close(self) -> str | None:
        """Write all that waits and the mark that nothing will follow, here or elsewhere; what the user has to know."""
        try:
            self._wait_for_locks(TIMEOUT_S)
            self._persistently(self._finish)
            said = self._bring_home() if self.refused is not None else self._into_one_file()
        except sqlite3.Error as e:
            said = self._rescue(e)
        if self.path is not None:
            with suppress(sqlite3.Error):
                self.ledger.connection.close()
        return said

    def _finish(self) -> None:
        self._drain()
        self.ledger.seal(complete=True)

    def _into_one_file(self) -> str | None:
        """Take the log into the file."""
        if self.path is None:
            return None
        try:
            self._wait_for_locks(LOCK_S)
            self.ledger.connection.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.Error as e:
            log = Path(f"{self.path}-wal")
            if not is_of_the_locks(e) and log.exists():  # a reader in the way takes the log away when it goes
                return f"recording {self.path} is whole, but only together with {log.name} beside it ({e})"
        return None

    def _bring_home(self) -> str | None:
        """Save what grew elsewhere to the path that was asked for."""
        assert self.asked is not None
        try:
            self._copy_to_asked()
        except RecordingError as e:
            if self.path is None:
                return self._rescue(e)
            self._into_one_file()
            return f"{e}: it stays at {self.path}"
        return None

    def _copy_to_asked(self) -> None:
        assert self.asked is not None
        with suppress(OSError):
            if self.asked.stat().st_size == 0:  # the one that we made to hold the place
                self.asked.unlink()
        twin = copy(self.ledger.connection, self.contents, self.asked, overwrite=False, unwritten=self.unwritten)
        self._move_to(self.asked, twin)

    def _move_to(self, path: Path, contents: Contents) -> None:
        grown, self.path, self.contents = self.path, path, contents
        self.backlog.clear()
        with suppress(sqlite3.Error):
            self.ledger.connection.close()
        if self.refused is not None and grown is not None:
            _place.remove(grown)

    def _rescue(self, trouble: Exception) -> str:
        """Save everything among the temporary files."""
        name = "in a temporary database" if self.asked is None else str(self.asked)
        cannot = f"recording {name} cannot be written ({trouble})"
        held, target = self.contents.recorded, None
        try:
            if self.refused is not None:
                with suppress(RecordingError):
                    self._copy_to_asked()
                    return f"{cannot}: it was saved there at last, at its end"
            target = _place.temporary(self.asked)
            twin = self._whole_copy(target)
        except (sqlite3.Error, OSError) as e:
            if target is not None:
                _place.remove(target)
            return f"{cannot}, nor saved in {tempfile.gettempdir()} ({e}): {self._loss(len(self.backlog))}"
        missing = held - (twin.recorded - len(self.backlog))
        self._move_to(target, twin)
        left = f", without its first {missing} steps, which cannot be read where they are" if missing > 0 else ""
        return f"{cannot}: it was saved to {target}{left}"

    def _loss(self, steps: int) -> str:
        if steps:
            return f"{steps} steps are lost, the first {self.contents.recorded} are kept"
        return f"it has all of its {self.contents.recorded} steps, but is not marked complete"

    def _whole_copy(self, target: Path) -> Contents:
        """What is written, if it can be read, and what waits; the copy's contents."""
        try:
            write_copy(self.ledger.connection, self.contents, target, self.unwritten)
            return read_back(target)
        except (sqlite3.Error, RecordingError):
            _place.empty(target)
        return write_copy(None, self.contents, target, self.unwritten)
