"""How the columns of one step lie in the body of its row: alike step after step, hence kept once, as a frame.

A frame is `<B` the number of signals with data, for each `<BI` its index into SIGNALS and its number of sites, its
sites' ids (`<u4`) and a code for each column of the layout. A body is the columns' bytes, one after the other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gradscope.recording._codec import SIZE
from gradscope.recording._moments import Ints
from gradscope.recording._site import SIGNALS

_COUNT = struct.Struct("<B")
_PART = struct.Struct("<BI")


@dataclass(frozen=True, eq=False)
class Part:
    """Where the columns of one signal lie in a body.

    Attributes:
        ids: of its sites, `(rows,)`.
        places: by column, its code, and its bytes' offset in the body.
    """

    ids: Ints
    places: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Frame:
    """The parts of a body, by the index of their signal; `size` is the body's length in bytes."""

    parts: dict[int, Part]
    size: int

    @staticmethod
    def dumps(parts: Sequence[tuple[int, Ints, bytes]]) -> bytes:
        """The bytes of a frame, given the index, the site ids and the codes of each signal."""
        data = [_COUNT.pack(len(parts))]
        for signal, ids, codes in parts:
            data += [_PART.pack(signal, len(ids)), ids.astype("<u4").tobytes(), codes]
        return b"".join(data)

    @staticmethod
    def loads(data: bytes, columns: Sequence[str], sites: int) -> Frame:
        """A frame of these columns; struct.error, ValueError or KeyError where it is none for so many sites."""
        (count,), at, size = _COUNT.unpack_from(data), _COUNT.size, 0
        parts: dict[int, Part] = {}
        for _ in range(count):
            signal, rows = _PART.unpack_from(data, at)
            at += _PART.size
            ids = np.frombuffer(data, "<u4", rows, at).astype(np.int64)
            at += 4 * rows
            codes, places = data[at : at + len(columns)], {}
            at += len(columns)
            for name, code in zip(columns, codes, strict=True):
                places[name] = code, size
                size += rows * SIZE[code]
            if signal in parts or signal >= len(SIGNALS) or (rows and ids.max() >= sites):
                raise ValueError(f"a frame of signal {signal} with site ids up to {ids.max(initial=0)}")
            parts[signal] = Part(ids, places)
        if at != len(data):
            raise ValueError(f"a frame of {len(data)} bytes describes {at}")
        return Frame(parts, size)


class Frames:
    """The frames of a recording: new ones are added at the end, none is ever changed."""

    def __init__(self, data: Sequence[bytes] = ()) -> None:
        self._data = list(data)
        self._known: dict[int, Frame] = {}

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, n: int) -> bytes:
        return self._data[n]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._data)

    def add(self, data: bytes) -> int:
        """Keep one more; its number."""
        self._data.append(data)
        return len(self._data) - 1

    def frame(self, n: int, columns: Sequence[str], sites: int) -> Frame:
        """Frame number n; IndexError where there is none, and as `Frame.loads`."""
        if n not in self._known:
            if n < 0:
                raise IndexError(f"frame {n}")
            self._known[n] = Frame.loads(self._data[n], columns, sites)
        return self._known[n]
