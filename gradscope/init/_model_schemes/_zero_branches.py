"""Residual branches that begin as nothing: x + f(x) with f = 0, so that any depth begins as the identity.

Where a branch ends in a norm its factors become 0 (Goyal et al. 2017, 5.1: zero-gamma), where it ends in a factor of
its own that (De & Smith 2020: SkipInit; Bachlechner et al. 2021: ReZero), else its last weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from gradscope.init._choice import AUTO
from gradscope.init._left import is_bias, is_norm
from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._edits import constant_step, each_part, zeroed
from gradscope.init._steps import Step


@dataclass(frozen=True)
class ZeroBranches(ModelScheme):
    """A scheme of single weights, and the end of each residual branch 0.

    Attributes:
        base: scheme of single weights.

    Raises:
        ValueError: no inputs, or a model without residual branches.
    """

    name: ClassVar[str] = "zero_branches"
    paper: ClassVar[str] = "Goyal et al. (2017), 5.1; De & Smith (2020); Bachlechner et al. (2021)"
    base: str = AUTO

    def steps(self, setting: Setting) -> Iterable[Step]:
        """The end of a branch is the parameter used last in it."""
        ends = {branch.last for branch in setting.branches(self.name).branches}
        owners = {end.rpartition(".")[0] for end in ends}
        for step in setting.steps(self.base):
            own = step.slot
            if own.path in ends and not step.fills:
                if not (is_norm(own.module) or own.originals[0].dim() < 2):
                    raise ValueError(
                        f"model: {own.path} ends a residual branch and cannot be set: {step.parts[0].row.note}"
                    )
                yield constant_step(step, 0.0, "last of its branch")
            elif own.path in ends or (is_bias(own) and own.module_name in owners):
                yield each_part(step, lambda part: zeroed(part, "last of its branch"))
            else:
                yield step
