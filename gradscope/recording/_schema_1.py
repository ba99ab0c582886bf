"""Files of schema version 1: a row and a blob for each signal of a step, and no count of subnormals.

Such a file is verified whole and written anew, so that everything else knows one version only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradscope.recording._codec import Blob
from gradscope.recording._contents import Contents, Layout, site_from_bytes
from gradscope.recording._json import loads
from gradscope.recording._moments import COLUMNS, Ints, Moments, StepRecord
from gradscope.recording._opening import Damage
from gradscope.recording._schema import Tables, Tally, is_complete
from gradscope.recording._site import SIGNALS, Signal
from gradscope.recording._verifying import NONSENSE, Row, verified
from gradscope.recording._writing import Writer

TABLES = Tables(
    {
        "header": (),
        "sites": (),
        "steps": ("step", "skipped"),
        "moments": ("at", "signal"),
        "histograms": ("at", "signal"),
        "seal": (),
    }
)
_COLUMNS = ("count", "mean", "std", "min", "max", "zeros", "nans", "infs")


def rewritten(connection: sqlite3.Connection) -> Writer:
    """The recording in a temporary database of the present version, closed; Damage where it is damaged."""
    try:
        contents = _verified_contents(connection)
        writer = Writer(None, contents.facts, edges=contents.layout.edges)
        try:
            for site in contents.sites:
                writer.add_site(site)
            for record in _records(connection, contents):
                writer.append(record)
            writer.close()
        except BaseException:
            writer.release()
            raise
    except NONSENSE as e:
        raise Damage(f"it holds what no GradScope wrote ({e})") from e
    writer.contents.complete = contents.complete
    return writer


def _rows(connection: sqlite3.Connection, table: str, identity: int) -> Iterator[tuple[Row, int]]:
    for expected, ((n, keys, value), crc) in enumerate(verified(connection, table, identity, tables=TABLES)):
        if n != expected:
            raise Damage(f"row {expected} of table {table} is missing")
        yield (n, keys, value), crc


def _verified_contents(connection: sqlite3.Connection) -> Contents:
    """Layout, facts and sites, after every row of every table has been verified."""
    contents, seal, tally = None, None, Tally(TABLES)
    for table in TABLES.keys:
        identity = contents.identity if contents else 0  # the header says what the others begin with
        for (n, _, value), crc in _rows(connection, table, identity):
            if contents is None:
                contents = Contents(Layout.loads(value, _COLUMNS))
            elif table == "header" and n == 1:
                contents.facts = dict(loads(value))
            elif table == "sites":
                contents.sites.append(site_from_bytes(value))
            if table == "seal":
                seal, contents.complete = value, is_complete(value)
            else:
                tally.add(table, crc)
    if contents is None or seal is None:
        raise Damage("its seal is missing")
    if seal != TABLES.seal(contents.complete, tally):
        raise Damage("its rows are not those that were last written")
    return contents


def _records(connection: sqlite3.Connection, contents: Contents) -> Iterator[StepRecord]:
    moments, histograms = (_Signals(connection, contents, table) for table in ("moments", "histograms"))
    for (at, (step, skipped), value), _ in _rows(connection, "steps", contents.identity):
        yield StepRecord(
            step,
            bool(skipped),
            loads(value),
            {signal: _moments(blob, contents.layout) for signal, blob in moments.of(at)},
            {signal: _histograms(blob, contents.layout) for signal, blob in histograms.of(at)},
        )


def _moments(blob: Blob, layout: Layout) -> tuple[Ints, Moments]:
    columns: dict[str, Any] = {}
    for name in _COLUMNS:
        place = 1 + layout.columns.index(name)
        columns[name] = blob.ints(place) if COLUMNS[name] is np.int64 else blob.floats(place)
    return blob.ints(0), Moments(**columns)


def _histograms(blob: Blob, layout: Layout) -> tuple[Ints, Ints]:
    ids = blob.ints(0)
    return ids, blob.ints(1).reshape(len(ids), len(layout.edges) - 1)


class _Signals:
    """The rows of a table, which are in the order of the steps, taken step by step."""

    def __init__(self, connection: sqlite3.Connection, contents: Contents, table: str) -> None:
        self._rows = _rows(connection, table, contents.identity)
        self._next = next(self._rows, None)

    def of(self, at: int) -> Iterator[tuple[Signal, Blob]]:
        """The signals of a step, and their blobs."""
        while self._next is not None and self._next[0][1][0] == at:
            (_, (_, signal), value), _ = self._next
            yield SIGNALS[signal], Blob(value)
            self._next = next(self._rows, None)
