"""How alike the entries of one unit are: at one position and another, of one input and another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gradscope.theory.prediction._places import Array, Places, classes


@dataclass(frozen=True)
class Alike:
    """Mean products of two entries of one unit.

    Attributes:
        same: of an entry with itself: the mean square.
        position: at two positions of one input.
        input: at one position of two inputs.
        both: at two positions of two inputs.
        places: the same position by position, where these differ; the four numbers are their means.
    """

    same: float
    position: float
    input: float
    both: float
    places: Places | None = field(default=None, compare=False)

    @classmethod
    def of(cls, places: Places) -> Alike:
        """Means, and what they are means of."""
        return cls(*places.numbers, places if len(places.sizes) > 1 else None)

    @classmethod
    def shared(cls, number: float) -> Alike:
        """Of what is one number everywhere."""
        return cls(number, number, number, number)

    @classmethod
    def alone(cls, number: float) -> Alike:
        """Of entries that have nothing to do with each other."""
        return cls(number, 0.0, 0.0, 0.0)

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """In their order."""
        return self.same, self.position, self.input, self.both

    @property
    def flat(self) -> Alike:
        """The means alone."""
        return Alike(*self.numbers)

    def at(self, sizes: Array) -> Places:
        """By class of position."""
        if self.places is not None and len(self.places.sizes) == len(sizes) and self.places.count == sizes.sum():
            return self.places
        return Places.alike(sizes, self.numbers)

    def by_position(self, positions: int) -> Places:
        """By class of so many positions."""
        return self.at(classes(positions))

    def within(self, positions: int) -> Alike:
        """The same for a value of so many positions: without those of another number of them."""
        return self if self.places is None or self.places.count == positions else self.flat

    def __add__(self, other: Alike) -> Alike:
        return self._with(other, lambda a, b: a + b)

    def __mul__(self, factor: float) -> Alike:
        return self.scaled(factor, factor, factor, factor)

    def times(self, other: Alike) -> Alike:
        """Of the products of independent entries."""
        return self._with(other, lambda a, b: a * b)

    def scaled(self, same: float = 1.0, position: float = 1.0, input: float = 1.0, both: float = 1.0) -> Alike:
        """Each times a factor of its own."""
        return self.times(Alike(same, position, input, both))

    def over_inputs(self, times: float) -> Alike:
        """A sum over so many inputs, by their number: what is the same for all of them."""

        def summed(same: Any, position: Any, inputs: Any, both: Any) -> tuple[Any, Any, Any, Any]:
            one, two = same + (times - 1) * inputs, position + (times - 1) * both
            return one, two, one, two

        if self.places is None:
            return Alike(*summed(*self.numbers))
        return Alike.of(Places(self.places.sizes, *summed(*self.places.tables)))

    def _with(self, other: Alike, combine: Callable[[Any, Any], Any]) -> Alike:
        known = self.places or other.places
        if known is None or (self.places and other.places and self.places.count != other.places.count):
            return Alike(*(combine(a, b) for a, b in zip(self.numbers, other.numbers, strict=True)))
        ours, theirs = self.at(known.sizes), other.at(known.sizes)
        tables = (combine(a, b) for a, b in zip(ours.tables, theirs.tables, strict=True))
        return Alike.of(Places(known.sizes, *tables))


NOTHING = Alike(0.0, 0.0, 0.0, 0.0)
