"""A step's record, checked and turned into the values of its rows, before anything is written.

Step after step the same sites have columns of the same types, so all that depends on these is kept (`_plan`); what is
left for a step is a few operations over all signals at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.recording import _flags
from gradscope.recording._codec import (
    FLOAT32,
    FLOAT64,
    HIGHEST,
    INT64,
    NOT_COUNTED,
    STORED,
    encode,
    exact_in_float32,
)
from gradscope.recording._contents import Contents
from gradscope.recording._errors import unknown_name
from gradscope.recording._moments import Ints, Moments, StepRecord
from gradscope.recording._plan import FLOATS, INTS, Plan, Shape, plan_of
from gradscope.recording._site import SIGNALS, Signal
from gradscope.recording._unit_moments import UnitMoments

CACHED = 100
"""How many shapes, and plans of each, are kept: more than a training has, but for one that is different each step."""


class Encoded(NamedTuple):
    """The flags of a step, and frame and values of its rows; `histograms` and `units` are empty where it has none."""

    flags: int
    frame: int
    moments: bytes
    histograms: bytes
    units: bytes


class Encoder:
    """Encodes the records of one recording; ValueError where a record does not fit its sites."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._checked: dict[str, bytes] = {}  # by signal the ids that passed: mostly the same as before
        self._shapes: dict[tuple[tuple[int, bytes], ...], Shape] = {}
        self._nothing = plan_of(Shape((), ()), b"", contents.frames)

    def __call__(self, record: StepRecord) -> Encoded:
        """The rows of a step."""
        flags = _flags.of_notes(record.skipped, record.notes)
        histograms = units = b""
        if record.histograms:
            histograms, more = self._histograms(record.histograms)
            flags |= more
        if record.units is not None and len(record.units[1]):
            units = self._units(*record.units)
            flags |= _flags.bit("units", SIGNALS.index("activation"))
        plan, moments = self._moments(record.moments)
        return Encoded(flags | plan.flags, plan.frame, moments, histograms, units)

    def _moments(self, signals: Mapping[Signal, tuple[Ints, Moments]]) -> tuple[Plan, bytes]:
        keys: list[tuple[int, bytes]] = []
        own: list[Moments] = []
        for signal, (site_ids, moments) in signals.items():
            key = self._check(signal, site_ids, len(moments))
            if len(moments):
                keys.append((SIGNALS.index(signal), key))
                own.append(moments)
        if not own:
            return self._nothing, self._nothing.head
        shape = self._shape(tuple(keys))
        long = np.frombuffer(b"".join([getattr(m, name) for m in own for name in FLOATS]), np.float64)
        ints = np.frombuffer(b"".join([getattr(m, name) for m in own for name in INTS]), np.int64)
        short, exact = exact_in_float32(long)
        float_codes = FLOAT64 - np.logical_and.reduceat(exact, shape.float_starts).view(np.uint8)
        codes = float_codes.tobytes() + _int_codes(ints, shape.int_starts)
        plan = shape.plans.get(codes)
        if plan is None:
            plan = shape.plans[codes] = plan_of(shape, codes, self._contents.frames)
            if len(shape.plans) > CACHED:
                shape.plans.clear()
        stored: dict[int, memoryview] = {FLOAT32: _bytes(short), FLOAT64: _bytes(long.astype("<f8", copy=False))}
        pieces = [plan.head]
        for code, piece in plan.pieces:
            if code not in stored:
                stored[code] = _bytes(ints.astype(STORED[code]))
            pieces.append(stored[code][piece])  # type: ignore[arg-type]
        return plan, b"".join(pieces)

    def _shape(self, keys: tuple[tuple[int, bytes], ...]) -> Shape:
        shape = self._shapes.get(keys)
        if shape is None:
            ids = tuple(np.frombuffer(key, np.int64) for _, key in keys)
            shape = self._shapes[keys] = Shape(tuple(signal for signal, _ in keys), ids)
            if len(self._shapes) > CACHED:
                self._shapes.clear()
        return shape

    def _histograms(self, signals: Mapping[Signal, tuple[Ints, Ints]]) -> tuple[bytes, int]:
        """The blob of heads, site ids and counts, and the flags: of each signal only the bins between its ends."""
        bins, heads, columns, flags = len(self._contents.layout.edges) - 1, [], [], 0
        for signal, (site_ids, histograms) in signals.items():
            counts = np.asarray(histograms, dtype=np.int64)
            if counts.ndim != 2 or counts.shape[1] != bins:
                raise ValueError(f"histograms of {signal} have shape {counts.shape}; they are (sites, {bins})")
            key = self._check(signal, site_ids, len(counts))
            if len(counts):
                used = np.flatnonzero(counts.any(axis=0))
                low, high = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
                heads.append((SIGNALS.index(signal), low, high))
                columns += [np.frombuffer(key, np.int64), counts[:, low:high]]
                flags |= _flags.bit("histograms", SIGNALS.index(signal))
        return (encode([np.array(heads, dtype=np.int64), *columns]) if heads else b""), flags

    def _units(self, site_ids: Ints, moments: UnitMoments) -> bytes:
        """The blob of site ids and columns."""
        ids = np.frombuffer(self._check("activation", site_ids, len(moments)), np.int64)
        return encode([ids, *(getattr(moments, name) for name in self._contents.layout.unit_columns)])

    def _check(self, signal: str, site_ids: ArrayLike, rows: int) -> bytes:
        """The ids' bytes, after they have been found to be those of so many sites of the signal."""
        if signal not in SIGNALS:
            raise unknown_name("signal", signal, SIGNALS)
        ids: Ints = np.asarray(site_ids, dtype=np.int64)
        if len(ids) != rows:
            raise ValueError(f"{signal} has {len(ids)} site ids and {rows} rows")
        key = ids.tobytes()
        if self._checked.get(signal) != key:
            self._check_ids(signal, ids)
            self._checked[signal] = key
        return key

    def _check_ids(self, signal: str, ids: Ints) -> None:
        sites = self._contents.sites
        if ids.ndim != 1 or len(set(ids.tolist())) != len(ids):
            raise ValueError(f"site ids of {signal} must be one-dimensional and distinct, got {ids.tolist()}")
        for i in ids.tolist():
            if not 0 <= i < len(sites):
                raise ValueError(f"{signal} has site id {i}; add_site has given {len(sites)}, from 0")
            if sites[i].signal != signal:
                raise ValueError(f"{signal} has site id {i}, which is a site of {sites[i].signal}")


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.data.cast("B")


def _int_codes(ints: Ints, starts: Ints) -> bytes:
    """The code of each integer column."""
    high = np.maximum.reduceat(ints, starts)
    codes = np.searchsorted(HIGHEST, high)
    low = np.minimum.reduceat(ints, starts)
    negative = low < 0
    if negative.any():
        codes[negative] = np.where((low == -1) & (high == -1), NOT_COUNTED, INT64)[negative]
    return codes.astype(np.uint8).tobytes()
