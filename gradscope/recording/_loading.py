"""Opening a recording's file, of whichever schema version: a small one is verified whole, a large one as it is read."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from gradscope.recording import _schema_1
from gradscope.recording._contents import Contents
from gradscope.recording._errors import RecordingError
from gradscope.recording._opening import Damage, foreign
from gradscope.recording._schema import APPLICATION_ID, SCHEMA, TABLES_OF
from gradscope.recording._verifying import contents_of
from gradscope.recording._writing import Writer

WHOLE_BYTES = 64 * 2**20
"""A file up to this size is verified whole when it is loaded: in half a second even from a slow disk (150 MB/s)."""

_TABLES = {1: _schema_1.TABLES, **TABLES_OF}


def load(connection: sqlite3.Connection, path: Path) -> Contents | Writer:
    """What is kept in memory of the recording, in one snapshot.

    One of schema version 1 is written anew to a temporary database, whose writer, closed, comes back.
    """
    connection.execute("BEGIN")  # so that a writer in another process does not come in between
    if _schema_of(connection, path) == 1:
        return _schema_1.rewritten(connection)
    return contents_of(connection, whole=_size(path) <= WHOLE_BYTES)


def _schema_of(connection: sqlite3.Connection, path: Path) -> int:
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        # SQLite takes a file of a few bytes for an empty database.
        raise RecordingError(foreign(path) or f"{path} is an SQLite database, but not a recording")
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if schema > SCHEMA:
        raise RecordingError(
            f"recording {path} has schema version {schema}, and this GradScope reads up to {SCHEMA}: "
            "upgrade torch-gradscope"
        )
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY rowid").fetchall()
    if schema not in _TABLES or found != [("table", t, t, sql) for t, sql in _TABLES[schema].ddl.items()]:
        raise Damage(f"its tables are not those of schema version {schema if schema in _TABLES else SCHEMA}")
    return int(schema)


def _size(path: Path) -> int:
    """Bytes of a file and of the log beside it."""
    size = path.stat().st_size
    try:
        return size + Path(f"{path}-wal").stat().st_size
    except OSError:
        return size
