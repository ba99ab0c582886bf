"""The page size that suits a recording's steps, for SQLite wastes what is left of a page after the last row that fits.

A row of at most U − 35 bytes, U being the page's, lies whole on its page, however many fit. A longer one fills
overflow pages, and leaves what does not fill one on its own page, between M and U − 35 bytes; where that would be
more, M, and its last page stays in part empty (https://www.sqlite.org/fileformat2.html, section 1.6).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress

SIZES = (4096, 8192, 2048, 1024)
"""Bytes; one in front is taken before a better one behind it if it wastes little."""

LARGE, LITTLE, MUCH = 16384, 1.06, 1.1
"""Pages are written whole, so that a commit takes longer with the large one: only where all others waste much."""

LOG_BYTES = 2**22
"""How long the log of a database in WAL mode gets before it is taken into the database."""

_HEAD = 20
"""Bytes of a row beside its value, about."""


def growth(rows: Sequence[int], page: int) -> float:
    """Bytes by which a file grows over those that rows of these sizes need: what pages waste, as a ratio.

    >>> growth([2100], 4096) > 1.9 and growth([2100], 1024) < 1.1
    True
    """
    most, least = page - 35, (page - 12) * 32 // 255 - 23
    taken = 0.0
    for size in rows:
        row, overflow = size + _HEAD, 0
        if row > most:
            kept = least + (row - least) % (page - 4)
            kept = kept if kept <= most else least
            overflow, row = -(-(row - kept) // (page - 4)), kept + 4
        taken += page * (1 / max(1, (page - 8) // row) + overflow)
    return taken / max(1, sum(rows) + _HEAD * len(rows))


def best_size(rows: Sequence[int]) -> int:
    """The page size for steps with rows of these sizes.

    >>> best_size([200]), best_size([2100]), best_size([1100])
    (4096, 1024, 8192)
    """
    ratios = {page: growth(rows, page) for page in SIZES}
    little = [page for page in SIZES if ratios[page] <= LITTLE]
    if little:
        return little[0]
    best = min(SIZES, key=lambda page: ratios[page])
    return LARGE if ratios[best] > max(MUCH, growth(rows, LARGE)) else best


def fit(connection: sqlite3.Connection, rows: Sequence[int]) -> None:
    """Give a database that is still small the page size for such steps; where that cannot be, it stays as it is."""
    page, mode = best_size(rows), ""
    with suppress(sqlite3.Error):  # a reader is in the way, or the place is in trouble
        if connection.execute("PRAGMA page_size").fetchone() == (page,):
            return
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if mode == "wal":
            connection.execute("PRAGMA journal_mode=DELETE")  # in which alone it can be changed
        connection.execute(f"PRAGMA page_size={page}")
        connection.execute("VACUUM")
    if mode == "wal":
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA journal_mode=WAL")
    bound_log(connection)


def bound_log(connection: sqlite3.Connection) -> None:
    """Have the log, if there is one, taken in when it is that long, whatever the size of a page."""
    with suppress(sqlite3.Error):
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA wal_autocheckpoint={LOG_BYTES // page}")
