"""Where a recording may be put: whether a path is free, and files of our own there and among the temporary ones."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from gradscope.recording._errors import RecordingError
from gradscope.recording._opening import needs_no_locks, opened
from gradscope.recording._schema import APPLICATION_ID

_SIDE_FILES = ("-wal", "-shm", "-journal")


def check_free(path: Path, overwrite: bool) -> None:
    """RecordingError where nothing may be written: what is there was not given up, or is no recording."""
    try:
        if not path.parent.is_dir():
            raise RecordingError(f"recording {path} cannot be created: there is no directory {path.parent}")
        if path.is_dir():
            raise RecordingError(f"{path} is a directory, not a place for a recording")
        size = path.stat().st_size if path.exists() else None
    except OSError as e:
        raise RecordingError(f"recording {path} cannot be created: {e.strerror}") from e
    if size is not None and not overwrite:
        raise RecordingError(
            f"{path} exists: choose another path, or remove it (Recording.save and merge replace with overwrite=True)"
        )
    if size:
        with opened(path) as connection:
            if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
                raise RecordingError(f"{path} is an SQLite database, but not a recording: it is not replaced")
        if not needs_no_locks(path):
            with suppress(sqlite3.DatabaseError), closing(_alone(path)):
                pass


def _alone(path: Path) -> sqlite3.Connection:
    """A connection to a file that nobody else has open; a damaged one raises sqlite3.DatabaseError."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=0.1, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=DELETE")  # needs the file for itself while it is being written
    except sqlite3.OperationalError as e:
        connection.close()
        if e.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise RecordingError(f"recording {path} is in use, so it cannot be replaced: close it first") from e
        raise
    return connection


def claim(path: Path, overwrite: bool) -> None:
    """Make an empty file at the path that no other writer can take; RecordingError where that may not be."""
    check_free(path, overwrite)
    try:
        if overwrite:
            for suffix in (*_SIDE_FILES, ""):  # a log left behind would be taken for the new file's
                Path(f"{path}{suffix}").unlink(missing_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as e:
        raise RecordingError(f"recording {path} cannot be created: {e.strerror}") from e


def temporary(path: Path | None) -> Path:
    """A new, empty file among the temporary ones, with a name like the path's; OSError where there can be none."""
    stem = "recording" if path is None else path.stem
    handle, name = tempfile.mkstemp(prefix=f"{stem}-", suffix=".gscope")
    os.close(handle)
    return Path(name).absolute()


def remove(path: Path) -> None:
    """Remove a recording of our own and what SQLite put beside it; nothing is raised."""
    for suffix in (*_SIDE_FILES, ""):
        with suppress(OSError):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def empty(path: Path) -> None:
    """Make a recording of our own an empty file again; nothing is raised."""
    for suffix in _SIDE_FILES:
        with suppress(OSError):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    with suppress(OSError):
        os.truncate(path, 0)
