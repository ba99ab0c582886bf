"""The tables of a recording's file, and the sums that make damage noticed.

Every row has a consecutive number `n` from 0, its keys, a value, and a CRC-32 over all of them and the run's
random identity. The seal, one row rewritten with every step, holds how many rows each table has and the sum
of their checksums: a row that was cut off, lost, doubled, or came back in an older state breaks it.

    header      0: layout (JSON); 1: facts (JSON)
    sites       n is the site's id (JSON)
    steps       step, skipped; notes (JSON)
    moments     at (n of the step), signal (index into SIGNALS); a blob of site ids and the moments
    histograms  likewise; a blob of site ids and the counts
    seal        one row: complete, rows and sums of each table
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter

APPLICATION_ID = 0x47536370  # "GScp", in SQLite's own header
SCHEMA = 1

KEYS: dict[str, tuple[str, ...]] = {
    "header": (),
    "sites": (),
    "steps": ("step", "skipped"),
    "moments": ("at", "signal"),
    "histograms": ("at", "signal"),
    "seal": (),
}
SEALED = tuple(table for table in KEYS if table != "seal")

DDL: dict[str, str] = {
    table: f"CREATE TABLE {table}(n INTEGER PRIMARY KEY, "
    + "".join(f"{key} INTEGER NOT NULL, " for key in keys)
    + "value BLOB NOT NULL, crc INTEGER NOT NULL)"
    for table, keys in KEYS.items()
}
PUT = {
    table: f"INSERT OR REPLACE INTO {table} VALUES({', '.join('?' * (len(keys) + 3))})" for table, keys in KEYS.items()
}
GET = {table: f"SELECT {', '.join(('n', *keys, 'value', 'crc'))} FROM {table}" for table, keys in KEYS.items()}

_TAGS = {table: i for i, table in enumerate(KEYS)}
_KEY = {table: struct.Struct(f"<{len(keys) + 2}q") for table, keys in KEYS.items()}
_SEAL = struct.Struct(f"<?{2 * len(SEALED)}Q")


def checksum(table: str, n: int, keys: tuple[int, ...], value: bytes, identity: int) -> int:
    """CRC-32 over table, number, keys and value, begun with that of the run's identity."""
    return zlib.crc32(value, zlib.crc32(_KEY[table].pack(_TAGS[table], n, *keys), identity))


class Tally:
    """How many rows each table has, in all and of each signal, and the sum of their checksums."""

    def __init__(self) -> None:
        self.rows = dict.fromkeys(SEALED, 0)
        self.sums = dict.fromkeys(SEALED, 0)
        self.of_signal: Counter[tuple[str, int]] = Counter()

    def copy(self) -> Tally:
        """An independent copy."""
        twin = Tally()
        twin.rows, twin.sums, twin.of_signal = self.rows.copy(), self.sums.copy(), self.of_signal.copy()
        return twin

    def add(self, table: str, keys: tuple[int, ...], crc: int) -> None:
        """Count a new row."""
        self.rows[table] += 1
        self.sums[table] = (self.sums[table] + crc) % 2**64
        if KEYS[table][-1:] == ("signal",):
            self.of_signal[table, keys[-1]] += 1

    def exchange(self, table: str, old: int, new: int) -> None:
        """Count a row that replaces one with the checksum `old`."""
        self.sums[table] = (self.sums[table] + new - old) % 2**64

    def seal(self, complete: bool) -> bytes:
        """The value of the seal's row."""
        return _SEAL.pack(complete, *self.rows.values(), *self.sums.values())


def is_complete(seal: bytes) -> bool:
    """Whether the writer closed the file that bears this seal."""
    return bool(_SEAL.unpack(seal)[0])


def completed(seal: bytes) -> bytes:
    """The same seal, for a file that will not grow."""
    return _SEAL.pack(True, *_SEAL.unpack(seal)[1:])
