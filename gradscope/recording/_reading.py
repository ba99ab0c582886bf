"""Reading a recording's rows, every checksum compared: all of them once, then those that an answer needs."""

from __future__ import annotations

import sqlite3
import struct
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradscope.recording._codec import Blob
from gradscope.recording._contents import Contents, Layout, site_from_bytes
from gradscope.recording._errors import RecordingError
from gradscope.recording._json import loads
from gradscope.recording._moments import Ints
from gradscope.recording._opening import Damage, foreign
from gradscope.recording._schema import APPLICATION_ID, DDL, GET, SCHEMA, checksum, is_complete
from gradscope.recording._site import SIGNALS

_NONSENSE = (struct.error, ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError)

Row = tuple[int, tuple[int, ...], bytes]


def verified(connection: sqlite3.Connection, table: str, identity: int, where: str = "") -> Iterator[tuple[Row, int]]:
    """The rows (n, keys, value) of a table in order, each with its checksum, which has been compared."""
    for row in connection.execute(f"{GET[table]} {where} ORDER BY n"):
        n, *keys, value, crc = row
        try:
            good = crc == checksum(table, n, tuple(keys), value, identity)
        except _NONSENSE as e:
            raise Damage(f"table {table} holds what no GradScope wrote ({e})") from e
        if not good:
            raise Damage(f"row {n} of table {table} does not match its checksum")
        yield (n, tuple(keys), value), crc


def load(connection: sqlite3.Connection, path: Path) -> Contents:
    """Everything but the blobs, after every row of every table has been verified, in one snapshot."""
    connection.execute("BEGIN")  # so that a writer in another process does not come in between
    _check_format(connection, path)
    try:
        return _load(connection)
    except _NONSENSE as e:
        raise Damage(f"it holds what no GradScope wrote ({e})") from e


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        # SQLite takes a file of a few bytes for an empty database.
        raise RecordingError(foreign(path) or f"{path} is an SQLite database, but not a recording")
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if schema > SCHEMA:
        raise RecordingError(
            f"recording {path} has schema version {schema}, and this GradScope reads up to {SCHEMA}: "
            "upgrade torch-gradscope"
        )
    tables = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY rowid").fetchall()
    if schema != SCHEMA or tables != [("table", table, table, sql) for table, sql in DDL.items()]:
        raise Damage(f"its tables are not those of schema version {SCHEMA}")


def _load(connection: sqlite3.Connection) -> Contents:
    contents, sealed = None, False
    for table in GET:
        identity = contents.identity if contents else 0  # the header says what the others begin with
        for expected, ((n, keys, value), crc) in enumerate(verified(connection, table, identity)):
            if n != expected:
                raise Damage(f"row {expected} of table {table} is missing")
            if contents is None:
                contents = Contents(Layout.loads(value))
            if table == "seal":
                contents.complete = is_complete(value)
                if n or value != contents.tally.seal(contents.complete):
                    raise Damage("its rows are not those that were last written")
                sealed = True
            else:
                contents.tally.add(table, keys, crc)
                _take(contents, table, n, keys, value)
    if contents is None or not sealed:
        raise Damage("its seal is missing")
    return contents


def _take(contents: Contents, table: str, n: int, keys: tuple[int, ...], value: bytes) -> None:
    """Keep what is kept in memory."""
    if table == "header" and n == 1:
        contents.facts = dict(loads(value))
    elif table == "sites":
        contents.sites.append(site_from_bytes(value))
    elif table == "steps":
        contents.steps.append(keys[0])
        contents.skipped.append(bool(keys[1]))
    elif keys and not (0 <= keys[0] < contents.recorded and 0 <= keys[1] < len(SIGNALS)):
        raise Damage(f"row {n} of table {table} belongs to no step or signal")


def notes(connection: sqlite3.Connection, contents: Contents, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """The notes of the steps from index `start` to before `stop`."""
    for (_, _, value), _ in verified(connection, "steps", contents.identity, f"WHERE n >= {start} AND n < {stop}"):
        yield loads(value)


def blobs(
    connection: sqlite3.Connection, contents: Contents, table: str, signal: int, start: int, stop: int
) -> Iterator[tuple[int, Ints, Blob]]:
    """The blobs of one signal in the rows from `start` to before `stop`: step's index, site ids, blob."""
    width = len(contents.layout.edges) - 1 if table == "histograms" else 1
    columns = 1 if table == "histograms" else len(contents.layout.columns)
    where = f"WHERE signal = {signal} AND n >= {start} AND n < {stop}"
    for (n, (at, _), value), _ in verified(connection, table, contents.identity, where):
        try:
            blob = Blob(value)
            sites = blob.entries(0)
            entries = [blob.entries(i) for i in range(1, len(blob))]
            if entries != columns * [sites * width] or sites > len(contents.sites):
                raise ValueError(f"{sites} sites with columns of {entries} entries")
            ids = blob.ints(0)
            if sites and not 0 <= ids.min() <= ids.max() < len(contents.sites):
                raise ValueError(f"site ids from {ids.min()} to {ids.max()}")
        except _NONSENSE as e:
            raise Damage(f"row {n} of table {table} holds what no GradScope wrote ({e})") from e
        yield at, ids, blob


def rows_of_step(connection: sqlite3.Connection, table: str, rows: int, at: int) -> tuple[int, int]:
    """The first row of a step among the first `rows` of a table, and the one after its last."""

    def step_of(n: int) -> int:
        row = connection.execute(f"SELECT at FROM {table} WHERE n = ?", (n,)).fetchone()
        if row is None or not isinstance(row[0], int):
            raise Damage(f"row {n} of table {table} is missing")
        return row[0]

    start = bisect_left(range(rows), at, key=step_of)  # rows come in the order of steps
    return start, bisect_left(range(rows), at + 1, lo=start, key=step_of)
