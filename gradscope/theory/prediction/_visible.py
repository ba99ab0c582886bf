"""Which keys each query of an attention sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gradscope.theory.prediction._places import Array


@dataclass(frozen=True, eq=False)
class Visible:
    """Which keys each query sees.

    Attributes:
        counts: how many.
        table: which, `(queries, keys)`; None where they are the first ones.
    """

    counts: Array
    table: Array | None = None

    @classmethod
    def first(cls, counts: Sequence[int]) -> Visible:
        """So many from the first on."""
        return cls(np.array(counts, dtype=np.float64))

    @classmethod
    def of(cls, mask: Tensor) -> Visible:
        """Those that a mask leaves."""
        table = mask.double().cpu().numpy()
        counts = table.sum(1)
        if np.array_equal(table, np.arange(table.shape[1]) < counts[:, None]):
            return cls(np.maximum(counts, 1.0))
        return cls(np.maximum(counts, 1.0), table)

    @property
    def alike(self) -> bool:
        """Whether all queries see the same keys."""
        return self.table is None and bool((self.counts == self.counts[0]).all())

    def shares(self, keys: Array) -> Array:
        """Of each query, the part of a uniform weight that each class of keys has."""
        before = np.cumsum(keys) - keys
        if self.table is None:
            seen = np.clip(self.counts[:, None] - before[None, :], 0.0, keys[None, :])
        else:
            seen = np.add.reduceat(self.table, before.astype(np.int64), axis=1)
        shares: Array = seen / self.counts[:, None]
        return shares
