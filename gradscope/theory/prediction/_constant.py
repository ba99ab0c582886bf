"""Tensors that do not depend on what the model is given, and whole numbers that it is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.theory.prediction._alike import Alike
from gradscope.theory.prediction._value import Dims, Label, Value


@dataclass(frozen=True)
class Moments:
    """Of the entries of a parameter: what theory has to know where its values do not exist.

    Attributes:
        square: their mean square.
        mean: their mean.
    """

    square: float
    mean: float = 0.0


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that does not depend on the inputs: a parameter, a buffer, a mask.

    Attributes:
        shape: of it.
        moments: of its entries.
        tensor: itself, where its values exist.
        name: of the parameter that it is, or is a part of.
        share: how large a part.
    """

    shape: tuple[int, ...]
    moments: Moments
    tensor: Tensor | None = None
    name: str | None = None
    share: float = 1.0

    @classmethod
    def of(cls, tensor: Tensor, name: str | None = None, share: float = 1.0) -> Constant:
        """A tensor whose values exist."""
        wide = tensor.detach().double() if not tensor.is_complex() else tensor.detach().abs().double()
        finite = wide[torch.isfinite(wide)]
        if finite.numel() == 0:
            return cls(tuple(tensor.shape), Moments(0.0), tensor, name, share)
        found = Moments(float(finite.square().mean()), float(finite.mean()))
        return cls(tuple(tensor.shape), found, tensor, name, share)

    def alike(self, dims: Dims) -> Alike:
        """Mean products of two of its numbers, as they meet the entries of a value of these dimensions.

        What is the same at all positions is shared by them, and so for inputs; what differs has its mean in common.
        """
        varies = self.varies(dims)
        square, apart = self.moments.square, self.moments.mean**2
        position = apart if "position" in varies else square
        inputs = apart if "input" in varies else square
        return Alike(square, position, inputs, apart if varies & {"position", "input"} else square)

    def varies(self, dims: Dims) -> set[Label]:
        """Over what: it differs from one position to another, from input to input, from unit to unit."""
        labels = [{atom.label for atom in dim} for dim in dims[::-1]]
        return {label for size, found in zip(self.shape[::-1], labels, strict=False) if size > 1 for label in found}

    @property
    def spread(self) -> float:
        """Variance of the entries: 0 for what is one number everywhere."""
        found = self.moments.square - self.moments.mean**2
        return found if found > 1e-12 * self.moments.square else 0.0


@dataclass(frozen=True, eq=False)
class Indices:
    """Whole numbers that the model is given: tokens.

    Attributes:
        dims: of the tensor.
        alike: how often two of them are the same: at two positions, of two inputs, at both.
        tensor: the numbers, where they exist.
    """

    dims: Dims
    alike: Alike
    tensor: Tensor | None = None


Known = Value | Constant | Indices
"""What is known of a tensor."""
