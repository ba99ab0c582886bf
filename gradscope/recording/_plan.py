"""What steps have in common when they are encoded: where each column begins, and which pieces make a body.

The columns of a step are joined to one array of floats and one of integers, signal after signal, so that a few
operations over each find every column's code. A plan says what becomes of them then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from gradscope.recording import _flags
from gradscope.recording._codec import ALL_ZERO, SIZE
from gradscope.recording._frame import Frame, Frames
from gradscope.recording._moments import COLUMNS, Ints

MOST_FRAMES = 1000
"""Further ones are not kept: a step that lies in its own way carries its frame itself."""

FLOATS = tuple(name for name, dtype in COLUMNS.items() if dtype is np.float64)
INTS = tuple(name for name, dtype in COLUMNS.items() if dtype is np.int64)


@dataclass(frozen=True)
class Plan:
    """What steps with the same sites and the same codes share.

    Attributes:
        frame: its number; −1 where it begins the value.
        head: that beginning, else empty.
        flags: which signals there are, and which of them have something that is not finite.
        pieces: of the body in order: a code, and the bytes of the joined array in that type.
    """

    frame: int
    head: bytes
    flags: int
    pieces: tuple[tuple[int, slice], ...]


class Shape:
    """What steps with the same sites share.

    Attributes:
        signals: their indices into SIGNALS, in the order in which they came.
        ids: of each, its sites.
        float_starts: where each column begins in the joined floats; `int_starts` in the integers.
        plans: by codes.
    """

    def __init__(self, signals: tuple[int, ...], ids: tuple[Ints, ...]) -> None:
        self.signals, self.ids = signals, ids
        rows = [len(each) for each in ids]
        self.float_starts, self.int_starts = _starts(rows, FLOATS), _starts(rows, INTS)
        self.plans: dict[bytes, Plan] = {}


def _starts(rows: list[int], names: Sequence[str]) -> Ints:
    return np.array([0, *accumulate(n for n in rows for _ in names)][:-1], dtype=np.int64)


def plan_of(shape: Shape, codes: bytes, frames: Frames) -> Plan:
    """That of steps of this shape, with these codes: of every float column of each signal, then of the integers.

    A frame that is new is added to the frames, as long as they are few.
    """
    signals = range(len(shape.ids))
    columns = [(k, name) for k in signals for name in FLOATS] + [(k, name) for k in signals for name in INTS]
    code = dict(zip(columns, codes, strict=True))
    starts = dict(zip(columns, (*shape.float_starts.tolist(), *shape.int_starts.tolist()), strict=True))
    pieces: list[tuple[int, slice]] = []
    flags, parts = 0, []
    for k, (signal, ids) in enumerate(zip(shape.signals, shape.ids, strict=True)):
        parts.append((signal, ids, bytes(code[k, name] for name in COLUMNS)))
        flags |= _flags.bit("moments", signal)
        if any(code[k, name] != ALL_ZERO for name in ("nans", "infs")):
            flags |= _flags.bit("nonfinite", signal)
        for name in COLUMNS:
            own, size = code[k, name], SIZE[code[k, name]]
            start, stop = starts[k, name] * size, (starts[k, name] + len(ids)) * size
            if pieces and pieces[-1][0] == own and pieces[-1][1].stop == start:
                pieces[-1] = own, slice(pieces[-1][1].start, stop)
            elif size:
                pieces.append((own, slice(start, stop)))
    data = Frame.dumps(parts)
    number = _number(data, frames)
    head = b"" if number >= 0 else len(data).to_bytes(4, "little") + data
    return Plan(number, head, flags, tuple(pieces))


def _number(data: bytes, frames: Frames) -> int:
    """The number of a frame, −1 of one that is not kept."""
    for n, known in enumerate(frames):
        if known == data:
            return n
    return frames.add(data) if len(frames) < MOST_FRAMES else -1
