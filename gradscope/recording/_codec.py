"""How columns become bytes: each takes the smallest type that gives every value back exactly.

Integers take 0, 1, 2, 4 or 8 bytes each, floats 4 or 8, little endian. (A float32 tensor's min and max are float32; a
float64 tensor's below 1e-38 are not, and a NaN only has to stay NaN.)

A blob is some columns that are read one at a time: `<B` how many there are, for each `<BI` its code and its number of
entries, then their bytes, one after the other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALL_ZERO, NOT_COUNTED, CONSECUTIVE = 0, 8, 7  # nothing stored, nothing (−1 each), the first of consecutive integers
FLOAT32, FLOAT64, INT64 = 5, 6, 4
STORED = {1: "<u1", 2: "<u2", 3: "<u4", INT64: "<i8", FLOAT32: "<f4", FLOAT64: "<f8"}
SIZE = {code: np.dtype(stored).itemsize for code, stored in STORED.items()} | {ALL_ZERO: 0, NOT_COUNTED: 0}
"""Bytes that an entry takes, by code."""

HIGHEST = np.array([0, 2**8 - 1, 2**16 - 1, 2**32 - 1])
"""The largest integer of the codes 0, 1, 2 and 3."""

_COUNT = struct.Struct("<B")
_ENTRY = struct.Struct("<BI")


def exact_in_float32(long: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The values as float32, and which of them come back from it bit by bit: −0 stays −0, a subnormal whole."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        short = long.astype("<f4")
        return short, short.astype(np.float64).view(np.int64) == long.view(np.int64)


def _encode_ints(column: NDArray[np.int64]) -> tuple[int, bytes]:
    if not column.size:
        return ALL_ZERO, b""
    low, high = int(np.minimum.reduce(column)), int(np.maximum.reduce(column))
    if low == high == 0:
        return ALL_ZERO, b""
    if high - low == column.size - 1 > 0 and (column[1:] - column[:-1] == 1).all():
        return CONSECUTIVE, column[:1].astype("<i8").tobytes()
    code = INT64 if low < 0 else int(np.searchsorted(HIGHEST, high))
    return code, column.astype(STORED[code]).tobytes()


def _encode_floats(column: NDArray[np.float64]) -> tuple[int, bytes]:
    short, exact = exact_in_float32(column)
    if exact.all():
        return FLOAT32, short.tobytes()
    return FLOAT64, column.astype("<f8", copy=False).tobytes()


def encode(columns: Sequence[NDArray[Any]]) -> bytes:
    """The blob of some int64 and float64 arrays (flattened)."""
    heads, bodies = [_COUNT.pack(len(columns))], []
    for column in columns:
        flat = column.ravel()
        code, body = _encode_ints(flat) if flat.dtype.kind == "i" else _encode_floats(flat)
        heads.append(_ENTRY.pack(code, flat.size))
        bodies.append(body)
    return b"".join(heads + bodies)


class Blob:
    """A blob's columns, decoded one at a time when asked for."""

    def __init__(self, data: bytes) -> None:
        self._columns: int = _COUNT.unpack_from(data)[0]
        self._data = data
        self._places: list[tuple[int, int, int]] = []  # code, entries, offset
        offset = _COUNT.size + self._columns * _ENTRY.size
        for i in range(self._columns):
            code, entries = _ENTRY.unpack_from(data, _COUNT.size + i * _ENTRY.size)
            self._places.append((code, entries, offset))
            offset += 8 if code == CONSECUTIVE else entries * SIZE[code]
        if offset != len(data):
            raise ValueError(f"a blob of {len(data)} bytes describes {offset}")

    def __len__(self) -> int:
        return self._columns

    def entries(self, index: int) -> int:
        """How many entries a column has."""
        return self._places[index][1]

    def ints(self, index: int) -> NDArray[np.int64]:
        """One integer column."""
        code, entries, offset = self._places[index]
        if code == CONSECUTIVE:
            (first,) = struct.unpack_from("<q", self._data, offset)
            return np.arange(first, first + entries, dtype=np.int64)
        return decode([self._data[offset : offset + entries * SIZE[code]]], code, entries, np.int64)

    def floats(self, index: int) -> NDArray[np.float64]:
        """One float column."""
        code, entries, offset = self._places[index]
        return decode([self._data[offset : offset + entries * SIZE[code]]], code, entries, np.float64)


def decode(pieces: Sequence[bytes | memoryview], code: int, entries: int, dtype: Any) -> NDArray[Any]:
    """One column of so many entries in all, from its pieces of one code."""
    if code == ALL_ZERO:
        return np.zeros(entries, dtype)
    if code == NOT_COUNTED:
        return np.full(entries, -1, dtype)
    return np.frombuffer(b"".join(pieces), STORED[code], entries).astype(dtype)
