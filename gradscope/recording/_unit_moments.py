"""Unit moments: what a tensor's units and samples have in common. Dear to take, so only some steps have them.

A unit is one entry of the unit axis: a channel, a feature. Of the batch x (N samples, U units, any positions)

    batch_spread = N/(N−1) · Σ_i |x_i − mean_i x|² / Σ_i |x_i|²      the samples' part that is their own
    unit_spread  = Σ (x − mean over units)² / Σ x²                   the units' part that is their own

The mean of <x_i, x_j> over all pairs of different samples, divided by the mean of |x_i|², is 1 − batch_spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gradscope.recording._moments import Floats, Ints

MOST_READS = 10
"""Over so many reads, the latest, a unit has to be silent to be dead."""


@dataclass(frozen=True, eq=False)
class UnitMoments:
    """Unit moments of some activations in one forward pass, one row per site; columns `(rows,)` int64 and float64.

    Attributes:
        entries: all entries of the tensor.
        units: size of its unit axis; 1 where it has none.
        samples: size of its batch axis; 1 where it has none.
        silent_units: units that are exactly zero in every entry of this pass.
        dead_units: units that were silent in this and in each of the reads before it, `dead_reads` in all.
        dead_reads: how many reads that are: 1 at the first, 10 at most.
        saturated: entries of a bounded activation (logistic, tanh, softsign, hardtanh, …) whose slope is below 1 % of
            its largest; −1 where the site is none, or its slope cannot be told.
        slope: mean of the squared slope of a pointwise activation, E[f'(z)²]; NaN where the site is none, or its
            slope cannot be told from what is left of its input.
        batch_similarity: mean inner product of two different samples, divided by the mean square of one, in [−1, 1];
            NaN for one sample, for zeros, and where an entry is not finite.
        batch_spread: 1 − batch_similarity, without cancellation where all samples are nearly the same.
        unit_spread: share of the sum of squares that is not common to all units, 0 where all are the same, at most 1;
            NaN for one unit, for zeros, and where an entry is not finite.
    """

    entries: Ints
    units: Ints
    samples: Ints
    silent_units: Ints
    dead_units: Ints
    dead_reads: Ints
    saturated: Ints
    slope: Floats
    batch_similarity: Floats
    batch_spread: Floats
    unit_spread: Floats

    def __post_init__(self) -> None:
        known = self.__dict__  # written past the frozen dataclass
        for name, dtype in UNIT_COLUMNS.items():
            known[name] = np.asarray(known[name], dtype, "C")
        shapes = {name: known[name].shape for name in UNIT_COLUMNS}
        if set(shapes.values()) != {(len(self.entries),)}:
            raise ValueError(f"the columns of UnitMoments are one-dimensional and of one length, got shapes {shapes}")

    def __len__(self) -> int:
        return len(self.entries)

    def take(self, rows: ArrayLike | slice) -> UnitMoments:
        """The given rows (indices, a slice or a mask), in that order."""
        index = rows if isinstance(rows, slice) else np.asarray(rows)
        return UnitMoments(*(getattr(self, name)[index] for name in UNIT_COLUMNS))

    @staticmethod
    def empty() -> UnitMoments:
        """No row."""
        columns: list[Any] = [np.empty(0, dtype) for dtype in UNIT_COLUMNS.values()]
        return UnitMoments(*columns)

    @staticmethod
    def from_rows(rows: Sequence[Sequence[float]]) -> UnitMoments:
        """Of rows of numbers in the order of the columns."""
        if not rows:
            return UnitMoments.empty()
        return UnitMoments(*(np.array(column) for column in zip(*rows, strict=True)))


UNIT_COLUMNS: dict[str, type[np.float64] | type[np.int64]] = {
    f.name: np.int64 if f.type == "Ints" else np.float64 for f in fields(UnitMoments)
}
"""Name and dtype of each column, in the order of the file's layout."""
