"""Opening a recording's file read-only, and one sentence for whatever is not one."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from gradscope.recording._errors import RecordingError
from gradscope.recording._schema import is_complete
from gradscope.recording._trouble import is_of_the_locks

TIMEOUT_S = 10.0
"""How long a reader or writer waits for another process to finish a transaction."""

_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a .npy file",
}


class Damage(Exception):
    """What is wrong with the file, in words that follow "is damaged:"."""


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection for the length of the with block, whose troubles become RecordingErrors."""
    _check_path(path)
    with explained(path), closing(_connect(path)) as connection:
        yield connection


@contextmanager
def explained(path: Path | None) -> Iterator[None]:
    """What goes wrong inside, as a RecordingError about the file (without a path: the temporary database)."""
    try:
        yield
    except Damage as e:
        raise RecordingError(_damaged(path, str(e))) from e
    except sqlite3.Error as e:
        raise RecordingError(_explain(path, e) if path else f"the temporary database cannot be read: {e}") from e
    except UnicodeDecodeError as e:  # from a message of SQLite that quotes what is damaged
        raise RecordingError(_damaged(path, e.object.decode("utf-8", "replace"))) from e


def _check_path(path: Path) -> None:
    """RecordingError where the path is no file.

    The file itself is not opened: closing it again would drop the locks that SQLite holds for this process.
    """
    try:
        if path.is_dir():
            raise RecordingError(f"{path} is a directory, not a recording")
        size = path.stat().st_size
    except FileNotFoundError:
        raise RecordingError(f"there is no recording at {path}") from None
    except OSError as e:
        raise RecordingError(f"{path} cannot be read: {e.strerror}") from None
    if size == 0:
        raise RecordingError(f"{path} is an empty file, not a recording")


def _connect(path: Path) -> sqlite3.Connection:
    if path in _needs_no_locks:
        with suppress(sqlite3.Error):
            return _complete(path)
    try:
        return _open(path, "mode=ro")
    except sqlite3.OperationalError as e:
        name = e.sqlite_errorname
        # A killed run's file in a directory where nothing may be written: SQLite wants to make its log anew.
        if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")) and not Path(f"{path}-wal").exists():
            if name != "SQLITE_READONLY_ROLLBACK":
                return _open(path, "mode=ro&immutable=1")
            _open(path, "mode=rw").close()  # killed in the middle of a step without WAL: this takes the step back
            return _open(path, "mode=ro")
        if is_of_the_locks(e):
            with suppress(sqlite3.Error, struct.error, TypeError):
                connection = _complete(path)
                _needs_no_locks.add(path)
                return connection
        raise


_needs_no_locks: set[Path] = set()
"""Complete recordings whose place refuses locks; SQLite takes seconds to find that out."""


def needs_no_locks(path: Path) -> bool:
    """Whether `opened` found that the place of this complete recording refuses locks."""
    return path in _needs_no_locks


def _complete(path: Path) -> sqlite3.Connection:
    """A connection without locks to a file that no writer has any more; sqlite3.Error where one may have."""
    if any(Path(f"{path}{suffix}").exists() for suffix in ("-wal", "-journal")):
        raise sqlite3.OperationalError("database is locked")
    connection = _open(path, "mode=ro&immutable=1")
    try:
        (seal,) = connection.execute("SELECT value FROM seal").fetchone()
        if is_complete(seal):
            return connection
        raise sqlite3.OperationalError("database is locked")
    except BaseException:
        connection.close()
        raise


def _open(path: Path, options: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?{options}", uri=True, timeout=TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA trusted_schema=OFF")  # a stranger's schema runs nothing
        connection.execute("PRAGMA schema_version")  # the first to read the file
    except BaseException:
        connection.close()
        raise
    return connection


def _explain(path: Path, error: sqlite3.Error) -> str:
    """One sentence for what SQLite stumbled over."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"recording {path} is locked by another process: {error}"
    if name == "SQLITE_READONLY_ROLLBACK":
        return f"recording {path} was killed in the middle of a step: it opens only where its directory can be written"
    try:
        if other := foreign(path):
            return other
    except OSError as e:
        return f"{path} cannot be read: {e.strerror}"
    if name.startswith("SQLITE_CANTOPEN"):
        return f"recording {path} cannot be opened: {error}"
    return _damaged(path, str(error))


def foreign(path: Path) -> str | None:
    """One sentence for a file that is no SQLite database, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(16)
    if start == b"SQLite format 3\0":
        return None
    kind = next((kind for magic, kind in _FOREIGN.items() if start.startswith(magic)), "some other file")
    return f"{path} is {kind}, not a recording (or its first bytes are damaged)"


def _damaged(path: Path | None, reason: str) -> str:
    reason = "".join(c if c.isprintable() else "?" for c in reason)  # it may quote the damage
    if path is None:
        return f"the temporary database is damaged: {reason}"
    with suppress(OSError):
        size, whole = path.stat().st_size, _size_in_header(path)
        if size < whole:
            return f"recording {path} is cut short: it has {size} bytes of {whole}; restore it from a copy"
    return f"recording {path} is damaged: {reason}; restore it from a copy"


def _size_in_header(path: Path) -> int:
    """What SQLite's header says, in bytes: page size × number of pages."""
    with path.open("rb") as file:
        start = file.read(32)
    page_size, pages = int.from_bytes(start[16:18], "big"), int.from_bytes(start[28:32], "big")
    return (65536 if page_size == 1 else page_size) * pages
