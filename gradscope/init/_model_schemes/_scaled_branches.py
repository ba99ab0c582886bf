"""Residual branches scaled by their number: x + f(x)/√L, by the last weight of each branch.

The stream's mean square then grows by (1 + 1/L)^L < e over all L branches, where it would by 2^L. Hayou et al. (2021),
"stable ResNet"; De & Smith (2020), 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from gradscope.init._choice import AUTO
from gradscope.init._left import is_norm
from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._edits import constant_step, each_part, scaled
from gradscope.init._slots import slots
from gradscope.init._steps import Step


@dataclass(frozen=True)
class ScaledBranches(ModelScheme):
    """A scheme of single weights, and the end of each residual branch times a factor.

    Attributes:
        base: scheme of single weights.
        factor: above 0; by default 1/√L, L branches.

    Where a branch ends in a norm its factors are scaled, which a weight before it could not change.

    Raises:
        ValueError: factor is not above 0; no inputs, or a model without residual branches.
    """

    name: ClassVar[str] = "scaled_branches"
    paper: ClassVar[str] = "Hayou et al. (2021), 3; De & Smith (2020), 3"
    base: str = AUTO
    factor: float | None = None

    def __post_init__(self) -> None:
        if self.factor is not None and not (math.isfinite(self.factor) and self.factor > 0.0):
            raise ValueError(f"factor={self.factor!r} must be finite and above 0")

    def steps(self, setting: Setting) -> Iterable[Step]:
        """The end of a branch is the parameter used last in it."""
        found = setting.branches(self.name).branches
        factor = len(found) ** -0.5 if self.factor is None else self.factor
        norms = {slot.path for slot in slots(setting.model) if is_norm(slot.module)}
        weights = {(branch.layers or branch.weights)[-1] for branch in found if branch.last not in norms}
        ends = {branch.last for branch in found}
        for step in setting.steps(self.base):
            if step.slot.path in ends and is_norm(step.slot.module) and not step.fills:
                yield constant_step(step, factor, f"last of one of {len(found)} branches")
            elif step.slot.path in weights:
                yield each_part(step, lambda part: scaled(part, factor, f"last of one of {len(found)} branches"))
            else:
                yield step
