"""Moments: the raw sums of a tensor that merge exactly; and the record of one step.

The spread is kept as the standard deviation, never as a sum of squares, with half the values' range.
Two parts of sizes n_a, n_b and difference of means δ merge as (Chan, Golub & LeVeque 1983, eq. 2.1)

    mean = mean_a + δ·n_b/n        std² = (n_a·std_a² + n_b·std_b²)/n + δ²·n_a·n_b/n²

and the second is computed as a hypotenuse, so that nothing is squared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.recording._site import Signal

if TYPE_CHECKING:
    from gradscope.recording._unit_moments import UnitMoments

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

HISTOGRAM_EDGES: Floats = np.array(
    [-149.0, -134.0, -126.0, -100.0, -76.0, -56.0, -46.0, *range(-38, 18), 32.0, 128.0], dtype=np.float64
)
"""log2 of the 65 edges of a histogram's 64 bins over |x|: an octave each from 2^-38 to 2^17, wider beyond.

A bin holds its lower edge and not its upper one. Every power of two at which a type of reduced precision loses
entries is an edge: float16 and both float8 in the fine part; 2^-134, half of bfloat16's smallest number, below
which an entry becomes 0 in it; 2^-126, the smallest normal number of bfloat16 and float32; 2^-149, the smallest
float32. Zeros and non-finite entries are not in a histogram; what lies beyond an end counts in the bin at that end."""

HISTOGRAM_EDGES.flags.writeable = False

NOT_COUNTED = -1
"""In place of a number of entries: nobody counted them. It is no 0, and what is derived from it is NaN."""


class MomentColumns(Protocol):
    """What a statistic may read: the columns of `Moments`, decoded when asked for."""

    @property
    def count(self) -> Ints: ...
    @property
    def mean(self) -> Floats: ...
    @property
    def std(self) -> Floats: ...
    @property
    def min(self) -> Floats: ...
    @property
    def max(self) -> Floats: ...
    @property
    def zeros(self) -> Ints: ...
    @property
    def nans(self) -> Ints: ...
    @property
    def infs(self) -> Ints: ...
    @property
    def subnormals(self) -> Ints: ...


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of some tensors, one row per site; columns `(rows,)` in float64 and int64.

    `mean`, `std` (population), `min` and `max` are over the finite entries and NaN where there is none.

    Attributes:
        count: all entries, those that are not finite included.
        mean: mean of the finite entries.
        std: their population standard deviation, √E[(x − mean)²].
        min: the smallest of them.
        max: the largest of them.
        zeros: entries that are exactly zero.
        nans: entries that are NaN.
        infs: entries that are +inf or −inf.
        subnormals: finite entries that are not 0 and below the smallest normal number of the tensor's own dtype;
            −1 where nobody counted them (as in a file of an older version), which is the default.

    >>> m = Moments.from_array([0.0, 3.0, float("nan")])
    >>> int(m.count[0]), float(m.mean[0]), float(m.std[0]), int(m.zeros[0]), int(m.nans[0])
    (3, 1.5, 1.5, 1, 1)
    """

    count: Ints
    mean: Floats
    std: Floats
    min: Floats
    max: Floats
    zeros: Ints
    nans: Ints
    infs: Ints
    subnormals: Ints = field(default_factory=lambda: np.array(NOT_COUNTED))

    def __post_init__(self) -> None:
        known = self.__dict__  # written past the frozen dataclass, each column contiguous, for its bytes are joined
        for name, dtype in COLUMNS.items():
            known[name] = np.asarray(known[name], dtype, "C")
        shape = self.count.shape
        if self.subnormals.ndim == 0 and len(shape) == 1:
            known["subnormals"] = np.full(shape, self.subnormals)
        if len(shape) != 1 or any(known[name].shape != shape for name in COLUMNS):
            shapes = {name: known[name].shape for name in COLUMNS}
            raise ValueError(f"the columns of Moments are one-dimensional and of one length, got shapes {shapes}")

    def __len__(self) -> int:
        return len(self.count)

    def take(self, rows: ArrayLike | slice) -> Moments:
        """The given rows (indices, a slice or a mask), in that order."""
        index = rows if isinstance(rows, slice) else np.asarray(rows)
        return Moments(*(getattr(self, name)[index] for name in COLUMNS))

    @staticmethod
    def empty(rows: int) -> Moments:
        """Rows that have seen no entry: the neutral element of `merge`."""
        none = np.zeros(rows, np.int64)
        nan = np.full(rows, np.nan)
        return Moments(none, nan, nan, nan, nan, none, none, none, none)

    @staticmethod
    def from_array(x: ArrayLike) -> Moments:
        """The one row of an array of real numbers, accumulated in float64 about its mean."""
        values = np.asarray(x)
        if values.dtype.kind == "c":
            raise TypeError(f"x has dtype {values.dtype}; moments are those of real numbers")
        subnormals = _subnormals(values)
        values = values.astype(np.float64).ravel()
        finite = values[np.isfinite(values)]
        row: dict[str, Any] = dict.fromkeys(COLUMNS, np.nan)
        row["count"] = values.size
        row["zeros"] = np.count_nonzero(values == 0)
        row["nans"] = np.count_nonzero(np.isnan(values))
        row["infs"] = np.count_nonzero(np.isinf(values))
        row["subnormals"] = subnormals
        if finite.size:
            # A power of two takes the largest entry to [1/2, 1): no sum or square leaves float64's range.
            exponent = int(np.frexp(np.abs(finite).max())[1])
            scaled = np.ldexp(finite, -exponent)
            mean = scaled.mean()
            mean += (scaled - mean).mean()
            row["mean"] = np.ldexp(mean, exponent)
            row["std"] = np.ldexp(np.sqrt(np.square(scaled - mean).mean()), exponent)
            row["min"], row["max"] = finite.min(), finite.max()
        return Moments(*(np.array([row[name]]) for name in COLUMNS))

    @staticmethod
    def concat(parts: Sequence[Moments]) -> Moments:
        """The rows of all parts, one after the other."""
        if not parts:
            return Moments.empty(0)
        return Moments(*(np.concatenate([getattr(p, name) for p in parts]) for name in COLUMNS))

    @staticmethod
    def merge(a: Moments, b: Moments) -> Moments:
        """The moments of the two parts' entries together, row by row."""
        if len(a) != len(b):
            raise ValueError(f"a has {len(a)} rows and b has {len(b)}; moments merge row by row")
        size_a = a.count - a.nans - a.infs
        size_b = b.count - b.nans - b.infs
        # Where both are empty, any weights do: there is nothing but NaN to weigh.
        size = np.maximum(size_a + size_b, 1)
        part_a, part_b = size_a / size, size_b / size
        mean_a, mean_b = np.where(size_a, a.mean, b.mean), np.where(size_b, b.mean, a.mean)
        std_a, std_b = np.where(size_a, a.std, 0.0), np.where(size_b, b.std, 0.0)
        with np.errstate(over="ignore", under="ignore"):
            # Halved, the difference of two means cannot overflow; the weight makes up for it, as it is ≤ 1/2.
            half = mean_b / 2 - mean_a / 2
            mean = mean_a + 2 * (part_b * half)
            between = 2 * np.sqrt(part_a * part_b) * half
            std = np.hypot(np.hypot(np.sqrt(part_a) * std_a, np.sqrt(part_b) * std_b), between)
        std = np.where(size_a + size_b, std, np.nan)
        return Moments(
            count=a.count + b.count,
            mean=mean,
            std=std,
            min=np.fmin(a.min, b.min),
            max=np.fmax(a.max, b.max),
            zeros=a.zeros + b.zeros,
            nans=a.nans + b.nans,
            infs=a.infs + b.infs,
            subnormals=np.where(
                (a.subnormals < 0) & (a.count > 0) | (b.subnormals < 0) & (b.count > 0),
                NOT_COUNTED,
                np.maximum(a.subnormals, 0) + np.maximum(b.subnormals, 0),
            ),
        )


def _subnormals(values: NDArray[Any]) -> int:
    """How many entries of an array are subnormal in its own dtype."""
    if values.dtype.kind in "biu":
        return 0
    if not np.issubdtype(values.dtype, np.floating):  # a type that numpy does not know
        return NOT_COUNTED
    return int(np.count_nonzero((values != 0) & (np.abs(values) < np.finfo(values.dtype).smallest_normal)))


COLUMNS: dict[str, type[np.float64] | type[np.int64]] = {
    f.name: np.int64 if f.type == "Ints" else np.float64 for f in fields(Moments)
}
"""Name and dtype of each moment, in the order of the file's layout."""


@dataclass(frozen=True, eq=False)
class StepRecord:
    """What one step gave: moments of each signal at its sites.

    Attributes:
        step: number of the optimizer's step, from 0; larger than that of the record before.
        skipped: the optimizer's step was skipped (an overflowed loss scale).
        notes: facts of the step: loss, learning rate, …
        moments: signal → (site ids `(sites,)` as `Recording.add_site` returned them, their moments).
        histograms: signal → (site ids `(sites,)`, counts `(sites, 64)` over `HISTOGRAM_EDGES`).
        units: of some steps (activations' site ids `(sites,)`, their unit moments).
    """

    step: int
    skipped: bool = False
    notes: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)
    moments: Mapping[Signal, tuple[Ints, Moments]] = field(default_factory=dict)
    histograms: Mapping[Signal, tuple[Ints, Ints]] = field(default_factory=dict)
    units: tuple[Ints, UnitMoments] | None = None
