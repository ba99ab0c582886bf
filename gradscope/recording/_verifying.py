"""Comparing a recording's rows with their checksums and with its seal, and keeping of them what is kept in memory.

The moments, histograms and unit moments may be left out. The seal and the flags of the steps, which are verified, say
how many rows of these there are and which; each of them is verified when it is read (`_reading`), and one that is
missing is noticed then. So every number that a recording gives is true, or a RecordingError in its place.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable, Iterator
from itertools import count

from gradscope.recording import _flags
from gradscope.recording._contents import Contents, Layout, site_from_bytes
from gradscope.recording._json import loads
from gradscope.recording._opening import Damage
from gradscope.recording._schema import SPARSE, TABLES, Tables, Tally, is_complete

NONSENSE = (struct.error, ValueError, LookupError, TypeError, OverflowError, MemoryError)

Row = tuple[int, tuple[int, ...], bytes]

_LARGE = ("moments", *SPARSE)


def verified(
    connection: sqlite3.Connection,
    table: str,
    identity: int,
    where: str = "",
    parameters: tuple[int, ...] = (),
    tables: Tables = TABLES,
) -> Iterator[tuple[Row, int]]:
    """The rows (n, keys, value) of a table in order, each with its checksum, which has been compared."""
    checksum = tables.checksum
    for n, *more, value, crc in connection.execute(f"{tables.get[table]} {where} ORDER BY n", parameters):
        keys = tuple(more)
        try:
            good = crc == checksum(table, n, keys, value, identity)
        except NONSENSE as e:
            raise Damage(f"table {table} holds what no GradScope wrote ({e})") from e
        if not good:
            raise Damage(f"row {n} of table {table} does not match its checksum")
        yield (n, keys, value), crc


def contents_of(connection: sqlite3.Connection, whole: bool) -> Contents:
    """What is kept in memory, once all tables, or all but the large ones, have been verified; Damage where they lie."""
    try:
        contents, seal = _opened(connection)
        tables = contents.tables
        counted, contents.tally = contents.tally, Tally(tables)
        for table in tables.sealed:
            if whole or table not in _LARGE:
                _verify(connection, contents, table)
            else:
                contents.tally.rows[table], contents.tally.sums[table] = counted.rows[table], counted.sums[table]
        if tables.seal(contents.complete, contents.tally) != seal:
            raise Damage("its rows are not those that were last written")
        _check_ends(connection, contents)
    except NONSENSE as e:
        raise Damage(f"it holds what no GradScope wrote ({e})") from e
    return contents


def _opened(connection: sqlite3.Connection) -> tuple[Contents, bytes]:
    """Contents with the layout and with what the seal counts; and the seal."""
    header = next(verified(connection, "header", 0), None)
    if header is None or header[0][0] != 0:
        raise Damage("row 0 of table header is missing")
    contents = Contents(Layout.loads(header[0][2]))
    seals = [row for row, _ in verified(connection, "seal", contents.identity, tables=contents.tables)]
    if len(seals) != 1 or seals[0][0] != 0:
        raise Damage("its seal is missing")
    seal = seals[0][2]
    contents.complete, contents.tally = is_complete(seal), contents.tables.tally(seal)
    return contents, seal


def _verify(connection: sqlite3.Connection, contents: Contents, table: str) -> None:
    """Compare every row of a table, count it, and keep what is kept in memory."""
    identity = 0 if table == "header" else contents.identity
    expected = iter(_having(contents, table) if table in SPARSE else count())
    rows = total = 0
    for (n, keys, value), crc in verified(connection, table, identity, tables=contents.tables):
        must = next(expected, None)
        if n != must:
            raise Damage(f"row {n} of table {table} is one too many" if must is None else missing(table, must))
        if table == "steps":
            contents.steps.append(keys[0])
            contents.flags.append(keys[1])
        elif table == "frames":
            contents.frames.add(value)
        elif table == "sites":
            contents.sites.append(site_from_bytes(value))
        elif table == "header" and n == 1:
            contents.facts = dict(loads(value))
        rows += 1
        total += crc
    contents.tally.rows[table], contents.tally.sums[table] = rows, total % 2**64


def missing(table: str, n: int) -> str:
    """What is wrong with a table that lacks a row."""
    return f"row {n} of table {table} is missing"


def _having(contents: Contents, table: str) -> list[int]:
    """Which steps have a row in one of the tables that not all have."""
    part: _flags.Part = "histograms" if table == "histograms" else "units"
    return [int(at) for at in _flags.have(contents.flags_of(contents.recorded), part).nonzero()[0]]


def _check_ends(connection: sqlite3.Connection, contents: Contents) -> None:
    """That the large tables have as many rows as the steps say, and begin and end where they must."""
    must: dict[str, Iterable[int]] = {"moments": range(contents.recorded)}
    must |= {table: _having(contents, table) for table in SPARSE if table in contents.tables.keys}
    for table, numbers in must.items():
        ends = connection.execute(f"SELECT (SELECT MIN(n) FROM {table}), (SELECT MAX(n) FROM {table})").fetchone()
        rows = list(numbers)
        if contents.tally.rows[table] != len(rows) or ends != ((rows[0], rows[-1]) if rows else (None, None)):
            raise Damage(f"table {table} does not have the {len(rows)} rows that its steps say")
