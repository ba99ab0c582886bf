"""What SQLite says when the place of a recording is in trouble, and not the recording."""

from __future__ import annotations

import sqlite3

_LOCKS = (
    "SQLITE_BUSY",  # also what SQLite makes of ENOLCK
    "SQLITE_LOCKED",
    "SQLITE_PROTOCOL",
    "SQLITE_IOERR_LOCK",
    "SQLITE_IOERR_RDLOCK",
    "SQLITE_IOERR_UNLOCK",
    "SQLITE_IOERR_CHECKRESERVEDLOCK",
    "SQLITE_IOERR_SHM",
)
_PLACE = (
    *_LOCKS,
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_READONLY",
    "SQLITE_CANTOPEN",
    "SQLITE_CORRUPT",
    "SQLITE_NOTADB",
)
_WAITING_HELPS = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL")


def _code(error: sqlite3.Error) -> str:
    return str(getattr(error, "sqlite_errorname", ""))


def is_of_the_place(error: sqlite3.Error) -> bool:
    """The disk is full, a lock is refused, a file cannot be reached or was overwritten: the steps are good."""
    return _code(error).startswith(_PLACE)


def is_of_the_locks(error: sqlite3.Error) -> bool:
    """A lock was refused, or the memory that WAL mode shares: another process has it, or the place has none."""
    return _code(error).startswith(_LOCKS)


def breaks_the_connection(error: sqlite3.Error) -> bool:
    """The file may be well and only this connection's handle of it dead (a network drive that went and came)."""
    return is_of_the_place(error) and not _code(error).startswith(_WAITING_HELPS)
