"""What is known of a tensor: which of its dimensions are what, how its entries are spread, and how they are alike.

An entry is f(h), h = H(z) the entry of a root: what a product with random weights has left, or a sum of independent
parts. Entries of one unit at two positions, or of two inputs, are alike: their z have a correlation. What is computed
entry by entry stays a function of its root, however it is written: x·sigmoid(x) is SiLU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gradscope.theory.prediction import _grid
from gradscope.theory.prediction._grid import Pair, Z, mean, square

Label = Literal["input", "position", "unit"]


@dataclass(frozen=True)
class Atom:
    """A dimension, or a factor of one that a reshape has put together."""

    label: Label
    size: int


Dims = tuple[tuple[Atom, ...], ...]
"""Of each dimension its factors, from the slowest."""


@dataclass(frozen=True)
class Alike:
    """Mean products of two entries of one unit.

    Attributes:
        same: of an entry with itself: the mean square.
        position: at two positions of one input.
        input: at one position of two inputs.
        both: at two positions of two inputs.
    """

    same: float
    position: float
    input: float
    both: float

    def __add__(self, other: Alike) -> Alike:
        return Alike(*(a + b for a, b in zip(self.numbers, other.numbers, strict=True)))

    def __mul__(self, factor: float) -> Alike:
        return Alike(*(a * factor for a in self.numbers))

    def times(self, other: Alike) -> Alike:
        """Of the products of independent entries."""
        return Alike(*(a * b for a, b in zip(self.numbers, other.numbers, strict=True)))

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """In their order."""
        return self.same, self.position, self.input, self.both

    @classmethod
    def shared(cls, number: float) -> Alike:
        """Of what is one number everywhere."""
        return cls(number, number, number, number)

    @classmethod
    def alone(cls, number: float) -> Alike:
        """Of entries that have nothing to do with each other."""
        return cls(number, 0.0, 0.0, 0.0)


NOTHING = Alike(0.0, 0.0, 0.0, 0.0)


@dataclass(eq=False)
class Root:
    """Entries that are no function of others: H(z), and the correlations of z.

    Attributes:
        h: H on the grid; functions of it know their slope by autograd.
        position, input, both: correlations of the z of one unit.
        gradient: mean products of the gradients of the entries, as far as they have come.
        profile: the mean square of the gradient as a function of z, on the grid.
    """

    h: Tensor
    position: float
    input: float
    both: float
    gradient: Alike = NOTHING
    profile: Tensor = field(default_factory=lambda: torch.zeros(_grid.POINTS, dtype=torch.float64))

    @classmethod
    def gaussian(cls, alike: Alike, centre: float = 0.0) -> Root:
        """Normal entries of this mean and these mean products."""
        var = max(alike.same - centre**2, 0.0)
        h = centre + math.sqrt(var) * Z
        position, inputs, both = (_share(a - centre**2, var) for a in alike.numbers[1:])
        return cls(h.clone().requires_grad_(), position, inputs, both)

    @classmethod
    def of(cls, h: Tensor, alike: Alike) -> Root:
        """Entries of this distribution, an increasing function of z, and these mean products of two."""
        pair = Pair(h.detach())
        position, inputs, both = (pair.correlation(a) for a in alike.numbers[1:])
        return cls(h.detach().clone().requires_grad_(), position, inputs, both)


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
        family: the values of the same root that a site looks at.
        gradient: mean square of the gradient of the entries, as far as it has come.
        scores: what they are in an attention.
    """

    dims: Dims
    root: Root | None
    f: Tensor
    gradient: float = 0.0
    scores: Scores | None = None

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
        if self.root is None:
            return Alike.shared(float(self.f.detach().reshape(-1)[0]) ** 2)
        pair = Pair(self.values)
        return Alike(
            square(self.values), pair.at(self.root.position), pair.at(self.root.input), pair.at(self.root.both)
        )

    def with_dims(self, dims: Dims) -> Value:
        """The same entries in another order, or form."""
        return replace(self, dims=dims)

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


def number(value: float) -> Tensor:
    """One number as a function on the grid."""
    return torch.tensor(value, dtype=torch.float64, device="cpu")
