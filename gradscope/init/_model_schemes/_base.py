"""What a scheme of a whole model is, and what it is given."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from gradscope.init._choice import AUTO, Choices, SchemeLike
from gradscope.init._following import Following
from gradscope.init._model_schemes._branches import Branches, branches
from gradscope.init._plan import PlanRow
from gradscope.init._slots import slots
from gradscope.init._steps import Step, steps


@dataclass(frozen=True, eq=False)
class Setting:
    """A model that is to be initialized.

    Attributes:
        model: itself.
        following: which activation follows each layer.
        inputs: one batch, None where none was given.
    """

    model: nn.Module
    following: Following
    inputs: Any = None

    def steps(self, scheme: SchemeLike | Mapping[str, SchemeLike] = AUTO) -> list[Step]:
        """What a scheme of single weights makes of the model."""
        choices = Choices(scheme, [slot.path for slot in slots(self.model)])
        return list(steps(self.model, choices, self.following.by_layer))

    def steps_of_all(self, scheme: SchemeLike) -> list[Step]:
        """The same, where every matrix is named in full: embeddings are set too, and weights of unknown use."""
        return self.steps({slot.path: scheme for slot in slots(self.model)})

    def branches(self, scheme: str) -> Branches:
        """The residual branches, which a forward pass shows.

        Raises:
            ValueError: there are no inputs to run, or no branches.
        """
        if self.inputs is None:
            raise ValueError(f"inputs is None; {scheme} takes one batch, to see the residual branches")
        found = self.program
        if not found.branches:
            raise ValueError(f"model has no residual branch x + f(x) with a weight in it; {scheme} is for those")
        return found

    @functools.cached_property
    def program(self) -> Branches:
        """What the model does with the inputs, and the residual branches in it."""
        return branches(self.model, self.inputs)


class ModelScheme(ABC):
    """A scheme of a whole model; its settings are its fields.

    Attributes:
        name: as `initialize` takes it.
        paper: where it comes from.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    @abstractmethod
    def steps(self, setting: Setting) -> Iterable[Step]:
        """What each parameter gets.

        Raises:
            ValueError: the model is none that the scheme is for, or inputs are missing.
        """

    def finish(self, setting: Setting, rows: Sequence[PlanRow], generator: torch.Generator | None) -> Sequence[PlanRow]:
        """What is left to do once all is drawn; the rows, changed where that changes them."""
        return rows
