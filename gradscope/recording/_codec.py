"""How columns become the bytes of one blob, and one column comes back without the others.

A blob is `<B` the number of columns, per column `<BI` its code and number of entries, then the columns'
bytes one after another, little endian. A column takes the smallest type that gives every value back exactly:
integers 0, 1, 2, 4 or 8 bytes each, floats 4 or 8. (A float32 tensor's min and max are float32; a float64
tensor's below 1e-38 are not, and a NaN only has to stay NaN.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STORED = {1: "<u1", 2: "<u2", 3: "<u4", 4: "<i8", 5: "<f4", 6: "<f8"}
_SIZE = {code: np.dtype(stored).itemsize for code, stored in _STORED.items()}
_ALL_ZERO, _CONSECUTIVE = 0, 7  # nothing stored; only the first of a run of consecutive integers stored

_COUNT = struct.Struct("<B")
_ENTRY = struct.Struct("<BI")


def _encode_ints(column: NDArray[np.int64]) -> tuple[int, bytes]:
    if not column.size:
        return _ALL_ZERO, b""
    low, high = int(np.minimum.reduce(column)), int(np.maximum.reduce(column))
    if low == high == 0:
        return _ALL_ZERO, b""
    if high - low == column.size - 1 > 0 and (column[1:] - column[:-1] == 1).all():
        return _CONSECUTIVE, column[:1].astype("<i8").tobytes()
    code = 4 if low < 0 or high >= 2**32 else 1 if high < 2**8 else 2 if high < 2**16 else 3
    return code, column.astype(_STORED[code]).tobytes()


def _encode_floats(column: NDArray[np.float64]) -> tuple[int, bytes]:
    short, long = column.astype("<f4"), column.astype("<f8", copy=False).tobytes()
    # Bit by bit, so that −0 stays −0 and what does not survive float32 stays whole.
    if short.astype("<f8").tobytes() == long:
        return 5, short.tobytes()
    return 6, long


def encode(columns: Sequence[NDArray[Any]]) -> bytes:
    """The blob of some int64 and float64 arrays (flattened)."""
    heads, bodies = [_COUNT.pack(len(columns))], []
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
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
            if code == _CONSECUTIVE:
                offset += 8
            elif code != _ALL_ZERO:
                offset += entries * _SIZE[code]
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
        if code == _ALL_ZERO:
            return np.zeros(entries, np.int64)
        if code == _CONSECUTIVE:
            (first,) = struct.unpack_from("<q", self._data, offset)
            return np.arange(first, first + entries, dtype=np.int64)
        return np.frombuffer(self._data, _STORED[code], entries, offset).astype(np.int64)

    def floats(self, index: int) -> NDArray[np.float64]:
        """One float column."""
        code, entries, offset = self._places[index]
        return np.frombuffer(self._data, _STORED[code], entries, offset).astype(np.float64)
