"""Making the database in which a recording grows, on whatever the place allows.

A file is in WAL mode while it grows: others can read it, and a commit does not wait for the disk
(synchronous=NORMAL loses nothing when the process dies, and at most the last steps, never the file, when the
machine does). Where WAL's shared memory is refused, a rollback journal does. Where locks are refused (some network
drives), the recording grows in the directory for temporary files and is brought to its path when it is closed.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gradscope.recording import _place
from gradscope.recording._contents import Contents
from gradscope.recording._ledger import Ledger
from gradscope.recording._pages import bound_log
from gradscope.recording._schema import Tally
from gradscope.recording._trouble import is_of_the_locks, is_of_the_place

FIRST_LOCK_S = 0.5
"""How long to wait for a lock on a file that was just made, which nobody else can have."""


@dataclass(frozen=True)
class Ground:
    """Where a recording grows.

    Attributes:
        ledger: writes there.
        path: the file; None for SQLite's private temporary database, which spills to disk.
        refused: why it does not grow at the path that was asked for; None where it does.
    """

    ledger: Ledger
    path: Path | None
    refused: sqlite3.Error | None = None


def new_ground(contents: Contents, path: Path | None) -> Ground:
    """A new database for these contents, at the path (an empty file) if that can be.

    Raises:
        sqlite3.Error: neither there nor elsewhere.
    """
    if path is None:
        return Ground(_private(contents), None)
    try:
        return Ground(_at(contents, path), path)
    except sqlite3.Error as e:
        if not is_of_the_locks(e):
            raise
        refused = e
    try:
        elsewhere = _place.temporary(path)
        try:
            return Ground(_at(contents, elsewhere), elsewhere, refused)
        except BaseException:
            _place.remove(elsewhere)
            raise
    except (sqlite3.Error, OSError):
        return Ground(_private(contents), None, refused)


def _at(contents: Contents, path: Path) -> Ledger:
    try:
        return _in_mode("WAL", contents, path)
    except sqlite3.Error as e:
        if not is_of_the_place(e):
            raise
    _place.empty(path)  # it may have been left in a mode in which it cannot be opened
    return _in_mode("DELETE", contents, path)


def _in_mode(mode: str, contents: Contents, path: Path) -> Ledger:
    connection = _connect(f"{path.as_uri()}?mode=rw", FIRST_LOCK_S)
    try:
        ledger = _begun(connection, contents)
        # Only now, so that even a file whose log was lost says what it is.
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("PRAGMA synchronous=NORMAL")
        ledger.seal()  # the mode is only tried by a transaction
    except BaseException:
        with suppress(sqlite3.Error):
            connection.close()
        raise
    return ledger


def _private(contents: Contents) -> Ledger:
    connection = _connect("", FIRST_LOCK_S)
    ledger = _begun(connection, contents)
    connection.execute("PRAGMA journal_mode=MEMORY")
    connection.execute("PRAGMA synchronous=OFF")
    return ledger


def _begun(connection: sqlite3.Connection, contents: Contents) -> Ledger:
    contents.tally = Tally(contents.tables)  # an attempt elsewhere may have failed half way
    ledger = Ledger(connection, contents)
    ledger.begin()
    return ledger


def _connect(target: str, timeout: float) -> sqlite3.Connection:
    return sqlite3.connect(target, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)


def reconnect(ledger: Ledger, path: Path) -> bool:
    """Give the ledger a new connection, if the file is there and in the state in which the ledger left it."""
    contents = ledger.contents
    try:
        fresh = _connect(f"{path.as_uri()}?mode=rw", 0.0)
    except sqlite3.Error:
        return False
    try:
        (header,) = fresh.execute("SELECT value FROM header WHERE n = 0").fetchone() or (None,)
        (seal,) = fresh.execute("SELECT value FROM seal").fetchone() or (None,)
        fresh.execute("PRAGMA synchronous=NORMAL")
        bound_log(fresh)
        good = header == contents.layout.dumps() and seal == contents.tables.seal(False, contents.tally)
    except sqlite3.Error:
        good = False
    dead, kept = (ledger.connection, fresh) if good else (fresh, ledger.connection)
    ledger.connection = kept
    with suppress(sqlite3.Error):
        dead.close()
    return good
