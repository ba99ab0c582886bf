"""Mean products position by position, where some positions are not like the others.

A class token whose embedding is a parameter, the first tokens under a causal mask, a token that is chosen at the end:
1/std of a norm is another one there, and E[1/var] is not 1/E[var]. Long sequences are taken in classes of neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_BEFORE, _AFTER = 12, 4
"""A class has a part of so many of the positions before it, or after it if these are fewer: both ends are fine."""


@lru_cache(maxsize=64)
def classes(positions: int) -> Array:
    """How many positions each class has: always the same for so many positions."""
    sizes, done = [], 0
    while done < positions:
        sizes.append(max(1, min(done // _BEFORE, (positions - done) // _AFTER)))
        done += sizes[-1]
    return np.array(sizes, dtype=np.float64)


def membership(places: NDArray[np.int64], positions: int, others: int, *, at: int = 0) -> Array:
    """How many of a class's positions come from each class of another sequence.

    Args:
        places: positions of the other sequence, in the order in which they stand in this one.
        positions: of this sequence.
        others: positions of the other one.
        at: where in this sequence they begin.
    """
    here = np.repeat(np.arange(len(classes(positions))), classes(positions).astype(np.int64))
    there = np.repeat(np.arange(len(classes(others))), classes(others).astype(np.int64))
    found = np.zeros((len(classes(positions)), len(classes(others))))
    np.add.at(found, (here[at : at + len(places)], there[places]), 1.0)
    return found


@dataclass(frozen=True, eq=False)
class Places:
    """Mean products of two entries of one unit.

    Attributes:
        sizes: positions of each class.
        same: of an entry with itself, by class.
        position: at two different positions of one input, by both their classes.
        input: at one position of two inputs, by class.
        both: at two different positions of two inputs, by both their classes.
    """

    sizes: Array
    same: Array
    position: Array
    input: Array
    both: Array

    @classmethod
    def alike(cls, sizes: Array, numbers: tuple[float, float, float, float]) -> Places:
        """The same in all classes."""
        n = len(sizes)
        forms = ((n,), (n, n), (n,), (n, n))
        return cls(sizes, *(np.full(form, number) for form, number in zip(forms, numbers, strict=True)))

    @property
    def tables(self) -> tuple[Array, Array, Array, Array]:
        """In their order."""
        return self.same, self.position, self.input, self.both

    @property
    def count(self) -> int:
        """Positions."""
        return int(self.sizes.sum())

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """Means over all positions, and over all pairs of two."""
        pairs, count = self.pairs, self.sizes.sum()
        every = max(float(pairs.sum()), 1.0)
        same, inputs = (float(self.sizes @ one) / count for one in (self.same, self.input))
        if count == 1:  # no two: they are what they are at one
            return same, same, inputs, inputs
        position, both = (float((pairs * one).sum()) / every for one in (self.position, self.both))
        return same, position, inputs, both

    @property
    def pairs(self) -> Array:
        """How many pairs of different positions there are of two classes."""
        return np.outer(self.sizes, self.sizes) - np.diag(self.sizes)

    def full(self) -> tuple[Array, Array]:
        """Means over all pairs, each position with itself included: of one input, of two."""
        share = 1.0 / self.sizes
        own, other = (
            table + np.diag(share * (at - np.diag(table)))
            for at, table in ((self.same, self.position), (self.input, self.both))
        )
        return own, other

    def scaled(self, factor: Array) -> Places:
        """Of entries that are multiplied by a number of their position: by class its square."""
        sizes = np.sqrt(factor)
        both = np.outer(sizes, sizes)
        return Places(self.sizes, self.same * factor, self.position * both, self.input * factor, self.both * both)

    def moved(self, members: Array, sizes: Array) -> Places:
        """At other positions, which come from these; 0 where a position comes from none."""
        pairs = np.outer(sizes, sizes) - np.diag(sizes)

        def of_one(one: Array) -> Array:
            found: Array = members @ one / sizes
            return found

        def of_two(two: Array) -> Array:
            every = members @ two @ members.T - np.diag(members @ np.diag(two))
            return every / np.maximum(pairs, 1.0)

        return Places(sizes, of_one(self.same), of_two(self.position), of_one(self.input), of_two(self.both))
