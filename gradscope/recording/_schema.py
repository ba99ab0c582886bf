"""The tables of a recording's file, and the sums that make damage noticed.

Every row has a number `n`, its keys, a value, and a CRC-32 over all of them and the run's random identity. The seal,
one row rewritten with every step, holds how many rows each table has and the sum of their checksums: a row that was
cut off, lost, doubled, or came back in an older state breaks it.

    header      0: layout (JSON); 1: facts (JSON)
    sites       n is the site's id (JSON)
    frames      how the bodies of some steps lie (`_frame`)
    steps       step's number, flags: what the step has (`_flags`); notes (JSON)
    moments     frame (−1: it begins the value); the body: every signal's columns. n is that of the step
    histograms  of a step that has some; a blob of heads, site ids and counts. n is that of the step
    units       of a step that has some; a blob of site ids and the columns of its unit moments. n is that of the step
    seal        one row: complete, rows and sums of each table

In all but the `SPARSE` tables the numbers are consecutive from 0, and the flags say which numbers those have. So a
reader knows which rows there must be before it reads any, and need not read those that it is not asked for.

Files of schema version 2 have no `units`, and are else the same: they are read as they lie.
"""

from __future__ import annotations

import struct
import zlib

APPLICATION_ID = 0x47536370  # "GScp", in SQLite's own header
SCHEMA = 3

SPARSE = ("histograms", "units")
"""Tables with a row for some of the steps."""


class Tables:
    """The tables of one schema version: their keys, the statements that make, fill and read them, their sums.

    Attributes:
        keys: by table, in the order in which it is made, the columns between `n` and `value`.
        sealed: the tables that the seal counts.
    """

    def __init__(self, keys: dict[str, tuple[str, ...]]) -> None:
        self.keys = keys
        self.sealed = tuple(table for table in keys if table != "seal")
        self.ddl = {
            table: f"CREATE TABLE {table}(n INTEGER PRIMARY KEY, "
            + "".join(f"{key} INTEGER NOT NULL, " for key in own)
            + "value BLOB NOT NULL, crc INTEGER NOT NULL)"
            for table, own in keys.items()
        }
        self.put = {
            table: f"INSERT OR REPLACE INTO {table} VALUES({', '.join('?' * (len(own) + 3))})"
            for table, own in keys.items()
        }
        self.get = {
            table: f"SELECT {', '.join(('n', *own, 'value', 'crc'))} FROM {table}" for table, own in keys.items()
        }
        self._tags = {table: i for i, table in enumerate(keys)}
        self._pack = {table: struct.Struct(f"<{len(own) + 2}q").pack for table, own in keys.items()}
        self._seal = struct.Struct(f"<?{2 * len(self.sealed)}Q")

    def checksum(self, table: str, n: int, keys: tuple[int, ...], value: bytes, identity: int) -> int:
        """CRC-32 over table, number, keys and value, begun with that of the run's identity."""
        return zlib.crc32(value, zlib.crc32(self._pack[table](self._tags[table], n, *keys), identity))

    def seal(self, complete: bool, tally: Tally) -> bytes:
        """The value of the seal's row."""
        return self._seal.pack(complete, *tally.rows.values(), *tally.sums.values())

    def tally(self, seal: bytes) -> Tally:
        """What a seal counts; struct.error where it is none."""
        _, *numbers = self._seal.unpack(seal)
        half = len(self.sealed)
        tally = Tally(self)
        tally.rows = dict(zip(self.sealed, numbers[:half], strict=True))
        tally.sums = dict(zip(self.sealed, numbers[half:], strict=True))
        return tally


_COMMON: dict[str, tuple[str, ...]] = {
    "header": (),
    "sites": (),
    "frames": (),
    "steps": ("step", "flags"),
    "moments": ("frame",),
    "histograms": (),
}

TABLES = Tables(_COMMON | {"units": (), "seal": ()})
"""Those of the present version."""

TABLES_OF = {2: Tables(_COMMON | {"seal": ()}), SCHEMA: TABLES}
"""Those of each version whose files are read as they lie."""


class Tally:
    """How many rows each table has, and the sum of their checksums."""

    def __init__(self, tables: Tables = TABLES) -> None:
        self.rows = dict.fromkeys(tables.sealed, 0)
        self.sums = dict.fromkeys(tables.sealed, 0)

    def copy(self) -> Tally:
        """An independent copy."""
        twin = Tally.__new__(Tally)
        twin.rows, twin.sums = self.rows.copy(), self.sums.copy()
        return twin

    def add(self, table: str, crc: int) -> None:
        """Count a new row."""
        self.rows[table] += 1
        self.sums[table] = (self.sums[table] + crc) % 2**64

    def exchange(self, table: str, old: int, new: int) -> None:
        """Count a row that replaces one with the checksum `old`."""
        self.sums[table] = (self.sums[table] + new - old) % 2**64


def is_complete(seal: bytes) -> bool:
    """Whether the writer closed the file that bears this seal, of whichever version."""
    return bool(struct.unpack_from("<?", seal)[0])
