"""A whole, complete copy of a recording: what its database holds, and the steps that could not be written to it.

A copy is written under a name that nobody else knows, hence without locks (`nolock`), which its place may refuse,
and takes its path's name when it is whole.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from gradscope.recording import _place
from gradscope.recording._backlog import EncodedStep
from gradscope.recording._contents import Contents
from gradscope.recording._errors import RecordingError
from gradscope.recording._ledger import Ledger
from gradscope.recording._opening import TIMEOUT_S, explained
from gradscope.recording._site import Site
from gradscope.recording._verifying import contents_of

_WAITS = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_MODE_BYTES = 18  # of SQLite's header: the versions that write and read, 2 in WAL mode, else 1


@dataclass(frozen=True)
class Unwritten:
    """What a recording has and its database lacks: steps, and sites and facts that no step has carried yet."""

    steps: Iterable[EncodedStep] = ()
    sites: dict[int, Site] = field(default_factory=dict)
    facts: bool = False


def copy(
    source: sqlite3.Connection,
    contents: Contents,
    path: Path,
    overwrite: bool,
    unwritten: Unwritten | None = None,
) -> Contents:
    """Write a complete copy of a recording to the path, all of it or nothing; the copy's contents.

    Raises:
        RecordingError: the path is taken or cannot be written, or the source cannot be read.
    """
    _place.check_free(path, overwrite)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        twin = write_copy(source, contents, partial, unwritten or Unwritten())
        _place.claim(path, overwrite)
        partial.replace(path)
    except (sqlite3.Error, OSError) as e:
        raise RecordingError(f"recording {path} cannot be written: {e}") from e
    finally:
        _place.remove(partial)
    return twin


def write_copy(source: sqlite3.Connection | None, contents: Contents, target: Path, unwritten: Unwritten) -> Contents:
    """Write a complete recording to a file that nobody else knows: what the source holds and what is unwritten.

    Without a source, what it held is left out: the recording begins with the first step that is unwritten.
    """
    twin = contents.copy()
    if source is None:
        twin.forget_rows()
    else:
        with closing(_unlocked(target)) as connection:
            source.backup(connection, progress=_Patience())
        _leave_wal_mode(target)
    with closing(_unlocked(target)) as connection:
        ledger = Ledger(connection, twin)
        ledger.changed_sites, ledger.changed_facts = dict(unwritten.sites), unwritten.facts
        if source is None:
            ledger.changed_sites, ledger.changed_facts = dict(enumerate(twin.sites)), True
            ledger.begin()
        for step in unwritten.steps:
            if source is None or step.at >= contents.recorded:  # an interrupt may have left one that is written
                ledger.write(step)
        ledger.seal(complete=True)
    return twin


def _unlocked(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?nolock=1", uri=True, isolation_level=None)


def _leave_wal_mode(path: Path) -> None:
    """Say of a database copied from one in WAL mode, whose log it took in, that it has no log."""
    with path.open("r+b") as file:
        file.seek(_MODE_BYTES)
        file.write(b"\x01\x01")


class _Patience:
    """Ends a backup that waits for a lock too long: on its own it would wait for ever."""

    def __init__(self) -> None:
        self._end = time.monotonic() + TIMEOUT_S

    def __call__(self, status: int, remaining: int, total: int) -> None:
        if status in _WAITS and time.monotonic() > self._end:
            raise sqlite3.OperationalError("database is locked")


def read_back(path: Path) -> Contents:
    """The contents of a copy that nobody else knows, after every checksum in it has been verified.

    Raises:
        RecordingError: what was copied was damaged.
    """
    with explained(path), closing(_unlocked(path)) as connection:
        return contents_of(connection, whole=True)
