"""What is known of a tensor: which of its dimensions are what, how its entries are spread, and how they are alike.

An entry is f(h), h = H(z) the entry of a root: what a product with random weights has left, or a sum of independent
parts. Entries of one unit at two positions, or of two inputs, are alike: their z have a correlation. What is computed
entry by entry stays a function of its root, however it is written: x·sigmoid(x) is SiLU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gradscope.theory.prediction import _grid
from gradscope.theory.prediction._alike import NOTHING, Alike
from gradscope.theory.prediction._grid import Pair, Z, mean, square
from gradscope.theory.prediction._places import Array, Places, classes

Label = Literal["input", "position", "unit"]


@dataclass(frozen=True)
class Atom:
    """A dimension, or a factor of one that a reshape has put together."""

    label: Label
    size: int


Dims = tuple[tuple[Atom, ...], ...]
"""Of each dimension its factors, from the slowest."""


@dataclass(eq=False)
class Root:
    """Entries that are no function of others: H(z), and the correlations of z.

    Attributes:
        h: H on the grid; functions of it know their slope by autograd.
        position, input, both: correlations of the z of one unit.
        places: where positions differ, their mean square relative to all, and the correlations by position.
        gradient: mean products of the gradients of the entries, as far as they have come.
        profile: the mean square of the gradient as a function of z, on the grid.
    """

    h: Tensor
    position: float
    input: float
    both: float
    places: Places | None = None
    gradient: Alike = NOTHING
    profile: Tensor = field(default_factory=lambda: torch.zeros(_grid.POINTS, dtype=torch.float64))

    @classmethod
    def gaussian(cls, alike: Alike, centre: float = 0.0) -> Root:
        """Normal entries of this mean and these mean products."""
        var = max(alike.same - centre**2, 0.0)
        h = centre + math.sqrt(var) * Z
        position, inputs, both = (_share(a - centre**2, var) for a in alike.numbers[1:])
        return cls(h.clone().requires_grad_(), position, inputs, both, _by_position(h, alike))

    @classmethod
    def of(cls, h: Tensor, alike: Alike) -> Root:
        """Entries of this distribution, an increasing function of z, and these mean products of two.

        Where positions differ, the distribution may have been made of average ones: the mean square is that of all.
        """
        if alike.places is not None and (whole := square(h.detach())) > 0.0:
            h = h * math.sqrt(alike.same / whole)
        pair = Pair(h.detach())
        position, inputs, both = (pair.correlation(a) for a in alike.numbers[1:])
        return cls(h.detach().clone().requires_grad_(), position, inputs, both, _by_position(h.detach(), alike))

    def places_of(self, positions: int) -> Places | None:
        """By class of so many positions; None of those of another number of them."""
        if self.places is None:
            return Places.alike(classes(positions), (1.0, self.position, self.input, self.both))
        return self.places if self.places.count == positions else None


def _by_position(h: Tensor, alike: Alike) -> Places | None:
    """Sizes and correlations: at each position the entries are spread as h is, but for their size."""
    places, whole = alike.places, square(h)
    if places is None or not whole > 0.0 or not alike.same > 0.0:
        return None
    sizes = places.same / alike.same
    relative = places.scaled(1.0 / np.maximum(sizes, _SMALLEST))
    pair = Pair(h * math.sqrt(alike.same / whole))
    return Places(places.sizes, sizes, *(pair.correlations(one) for one in relative.tables[1:]))


def _share(part: float, whole: float) -> float:
    return min(max(part / whole, -1.0), 1.0) if whole > 0.0 else 0.0


@dataclass(frozen=True, eq=False)
class Scores:
    """Products of queries and keys, on their way through a softmax.

    Attributes:
        query, key: of whom.
        keys: how many there are.
        width: of both.
        factor: what the products are multiplied by.
        mask: what was added to them.
    """

    query: Value
    key: Value
    keys: int
    width: int
    factor: float = 1.0
    mask: Any = None


@dataclass(eq=False)
class Value:
    """Entries that are a function of a root's.

    Attributes:
        dims: of the tensor.
        root: whose function; None for numbers that are the same everywhere.
        f: the function on the grid, or one number.
        gain: by class of position, the square of what the function is multiplied by there; None for 1 at all.
        family: the values of the same root that a site looks at.
        gradient: mean square of the gradient of the entries, as far as it has come.
        scores: what they are in an attention.
    """

    dims: Dims
    root: Root | None
    f: Tensor
    gradient: float = 0.0
    scores: Scores | None = None
    gain: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(math.prod(atom.size for atom in dim) for dim in self.dims)

    @property
    def values(self) -> Tensor:
        """The function on the grid, without its history."""
        return self.f.detach().expand(_grid.POINTS) if self.root is None else self.f.detach()

    @property
    def mean(self) -> float:
        """Over the units."""
        return mean(self.values)

    @property
    def alike(self) -> Alike:
        """Mean products of two entries of one unit."""
        sizes = self.sizes
        if self.root is None:
            found = Alike.shared(float(self.f.detach().reshape(-1)[0]) ** 2)
            return found if sizes is None else Alike.of(found.by_position(self.count("position")).scaled(sizes))
        pair = Pair(self.values)
        own = self.root.places_of(self.count("position"))
        if sizes is None or own is None:
            root = self.root
            return Alike(square(self.values), pair.at(root.position), pair.at(root.input), pair.at(root.both))
        flat = np.full(len(own.sizes), square(self.values))
        return Alike.of(Places(own.sizes, flat, *(pair.table(one) for one in own.tables[1:])).scaled(sizes))

    @property
    def sizes(self) -> Array | None:
        """Mean squares by class of position, relative to their mean; None where they are all alike."""
        positions = self.count("position")
        own = None if self.root is None else self.root.places
        sizes = None if own is None or own.count != positions else own.same
        if self.gain is None or len(self.gain) != len(classes(positions)):
            return sizes
        return self.gain if sizes is None else sizes * self.gain

    def resized(self, f: Tensor, sizes: Array, dims: Dims | None = None) -> Value:
        """A function of the same root, its mean square by class of position relative to what it is on the grid."""
        dims = self.dims if dims is None else dims
        made = replace(self, dims=dims, f=f, gain=None, gradient=0.0)
        number = classes(made.count("position"))
        if len(number) != len(sizes):
            return made
        whole = float(number @ sizes) / float(number.sum())
        own = made.sizes
        gain = sizes / max(whole, _SMALLEST) / (1.0 if own is None else np.maximum(own, _SMALLEST))
        with torch.enable_grad():
            return replace(made, f=f * math.sqrt(whole), gain=gain)

    def with_dims(self, dims: Dims) -> Value:
        """The same entries in another order, or form."""
        return replace(self, dims=dims)

    @property
    def at_one_position(self) -> Value:
        """The same entries, at one position."""
        dims = tuple(tuple(atom for atom in dim if atom.label != "position") for dim in self.dims)
        return replace(self, dims=dims, gain=None)

    def count(self, label: Label) -> int:
        """How many positions, inputs or units there are."""
        return math.prod(atom.size for dim in self.dims for atom in dim if atom.label == label)


def regroup(dims: Dims, shape: tuple[int, ...]) -> Dims | None:
    """The dimensions of a reshaped tensor; None where a factor would be cut unevenly."""
    atoms = [atom for dim in dims for atom in dim if atom.size != 1]
    new: list[tuple[Atom, ...]] = []
    for size in shape:
        taken: list[Atom] = []
        left = size
        while left > 1:
            if not atoms:
                return None
            first = atoms[0]
            if left % first.size == 0:
                taken.append(first)
                atoms.pop(0)
                left //= first.size
            elif first.size % left == 0:
                taken.append(Atom(first.label, left))
                atoms[0] = Atom(first.label, first.size // left)
                left = 1
            else:
                return None
        new.append(tuple(taken))
    return tuple(new) if not atoms else None


def broadcast(one: Dims, other: Dims) -> Dims:
    """The dimensions of what two tensors give entry by entry."""
    length = max(len(one), len(other))
    first = ((),) * (length - len(one)) + one
    second = ((),) * (length - len(other)) + other
    return tuple(a if _size(a) >= _size(b) else b for a, b in zip(first, second, strict=True))


def _size(dim: tuple[Atom, ...]) -> int:
    return math.prod(atom.size for atom in dim)


_SMALLEST = 1e-30
"""Of a relative size: what is 0 at some positions stays 0 there."""


def number(value: float) -> Tensor:
    """One number as a function on the grid."""
    return torch.tensor(value, dtype=torch.float64, device="cpu")
