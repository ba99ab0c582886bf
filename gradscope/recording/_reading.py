"""Reading the rows that an answer needs, every checksum compared, and every row missed that is not there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradscope.recording._codec import SIZE, Blob, decode
from gradscope.recording._contents import Contents
from gradscope.recording._frame import Frame, Part
from gradscope.recording._json import loads
from gradscope.recording._moments import COLUMNS, Ints, Moments
from gradscope.recording._opening import Damage
from gradscope.recording._unit_moments import UNIT_COLUMNS, UnitMoments
from gradscope.recording._verifying import NONSENSE, Row, missing, verified

MOST_ROWS, MOST_BYTES = 256, 2**23
"""How many rows, and bytes, are read before they are handed on."""


class LazyMoments:
    """The moments of one signal in some steps that lie alike, `(steps × sites,)`.

    Each column is decoded when it is read: a statistic costs only what it needs.
    """

    def __init__(self, part: Part, bodies: Sequence[memoryview]) -> None:
        self._part = part
        self._bodies = bodies

    def __len__(self) -> int:
        return len(self._bodies) * len(self._part.ids)

    def __getattr__(self, name: str) -> Any:
        if name not in COLUMNS:
            raise AttributeError(f"moments have no column {name!r}; they have {', '.join(COLUMNS)}")
        code, start = self._part.places[name]
        stop = start + len(self._part.ids) * SIZE[code]
        return decode([body[start:stop] for body in self._bodies], code, len(self), COLUMNS[name])

    def decoded(self) -> Moments:
        """All columns."""
        return Moments(*(getattr(self, name) for name in COLUMNS))


class Batch(NamedTuple):
    """Moments of one signal: indices of some steps, ids of the sites that each of them has, and the moments of all."""

    steps: list[int]
    ids: Ints
    moments: LazyMoments


def notes(connection: sqlite3.Connection, contents: Contents, steps: Ints) -> Iterator[dict[str, Any]]:
    """The notes of steps, given by their indices in growing order."""
    for n, _, value in _rows(connection, contents, "steps", steps):
        try:
            row = dict(loads(value))
        except NONSENSE as e:
            raise Damage(f"row {n} of table steps holds what no GradScope wrote ({e})") from e
        yield row


def moments(
    connection: sqlite3.Connection, contents: Contents, signal: int, steps: Ints, most: int = MOST_ROWS
) -> Iterator[Batch]:
    """The moments of a signal (index into SIGNALS) in steps that have some, given by their indices in growing order.

    Steps that lie alike come together, at most so many; only one at a time comes in order.
    """
    waiting: dict[int, tuple[Part, list[int], list[memoryview]]] = {}
    rows = size = 0
    for n, frame, body in bodies(connection, contents, steps):
        part = part_of(frame, signal, n)
        _, numbers, parts = waiting.setdefault(id(part), (part, [], []))
        numbers.append(n)
        parts.append(body)
        rows, size = rows + 1, size + len(body)
        if rows >= most or size > MOST_BYTES:
            yield from _batches(waiting)
            waiting, rows, size = {}, 0, 0
    yield from _batches(waiting)


def _batches(waiting: dict[int, tuple[Part, list[int], list[memoryview]]]) -> Iterator[Batch]:
    for part, numbers, parts in waiting.values():
        yield Batch(numbers, part.ids, LazyMoments(part, parts))


def bodies(connection: sqlite3.Connection, contents: Contents, steps: Ints) -> Iterator[tuple[int, Frame, memoryview]]:
    """Index, frame and body of each of these steps' row of moments."""
    for n, (number,), value in _rows(connection, contents, "moments", steps):
        try:
            body = memoryview(value)
            if number >= 0:
                frame = contents.frame(number)
            else:
                end = 4 + int.from_bytes(body[:4], "little")
                frame = Frame.loads(value[4:end], contents.layout.columns, len(contents.sites))
                body = body[end:]
            if len(body) != frame.size:
                raise ValueError(f"a body of {len(body)} bytes in a frame of {frame.size}")
        except NONSENSE as e:
            raise Damage(f"row {n} of table moments holds what no GradScope wrote ({e})") from e
        yield n, frame, body


def part_of(frame: Frame, signal: int, n: int) -> Part:
    """The part of a signal in the frame of step n, which has it by its flags."""
    if signal not in frame.parts:
        raise Damage(f"row {n} of table moments lacks a signal that its step has")
    return frame.parts[signal]


def histogram_blob(connection: sqlite3.Connection, contents: Contents, at: int) -> Blob:
    """The histograms of a step that has some."""
    ((n, _, value),) = _rows(connection, contents, "histograms", np.array([at]))
    try:
        return Blob(value)
    except NONSENSE as e:
        raise Damage(f"row {n} of table histograms holds what no GradScope wrote ({e})") from e


def histograms(contents: Contents, blob: Blob, signal: int) -> tuple[Ints, Ints]:
    """Site ids `(sites,)` and counts `(sites, bins)` of one signal in a blob that has it."""
    bins = len(contents.layout.edges) - 1
    try:
        heads = blob.ints(0).reshape(-1, 3)
        (at,) = np.flatnonzero(heads[:, 0] == signal)
        _, low, high = heads[at].tolist()
        ids = blob.ints(1 + 2 * int(at))
        counts = np.zeros((len(ids), bins), np.int64)
        counts[:, low:high] = blob.ints(2 + 2 * int(at)).reshape(len(ids), high - low)
        if ids.size and not 0 <= ids.min() <= ids.max() < len(contents.sites):
            raise ValueError(f"site ids from {ids.min()} to {ids.max()}")
    except NONSENSE as e:
        raise Damage(f"a row of table histograms holds what no GradScope wrote ({e})") from e
    return ids, counts


def units(connection: sqlite3.Connection, contents: Contents, steps: Ints) -> Iterator[tuple[int, Ints, UnitMoments]]:
    """Index, site ids and unit moments of each of these steps, which have some."""
    for n, _, value in _rows(connection, contents, "units", steps):
        try:
            blob, names = Blob(value), contents.layout.unit_columns
            ids, columns = blob.ints(0), dict[str, Any]()
            if len(blob) != 1 + len(names):
                raise ValueError(f"{len(blob)} columns where there are {1 + len(names)}")
            for name, dtype in UNIT_COLUMNS.items():
                place = 1 + names.index(name)
                columns[name] = blob.ints(place) if dtype is np.int64 else blob.floats(place)
            if ids.size and not 0 <= ids.min() <= ids.max() < len(contents.sites):
                raise ValueError(f"site ids from {ids.min()} to {ids.max()}")
            found = UnitMoments(**columns)
            if len(ids) != len(found):
                raise ValueError(f"{len(ids)} site ids and {len(found)} rows")
        except NONSENSE as e:
            raise Damage(f"row {n} of table units holds what no GradScope wrote ({e})") from e
        yield n, ids, found


def _rows(connection: sqlite3.Connection, contents: Contents, table: str, numbers: Ints) -> Iterator[Row]:
    """The rows of these numbers, which grow; Damage where one is not there."""
    wanted, identity, tables = numbers.tolist(), contents.identity, contents.tables
    if wanted and wanted[-1] - wanted[0] == len(wanted) - 1:
        ends = (wanted[0], wanted[-1])
        found = verified(connection, table, identity, "WHERE n >= ? AND n <= ?", ends, tables)
    else:
        found = (row for n in wanted for row in verified(connection, table, identity, "WHERE n = ?", (n,), tables))
    for n in wanted:
        row = next(found, None)
        if row is None or row[0][0] != n:
            raise Damage(missing(table, n))
        yield row[0]
