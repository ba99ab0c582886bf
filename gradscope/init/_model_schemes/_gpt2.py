"""GPT-2: N(0, 0.02²) for everything, and less for what a residual branch ends in.

Weights that write into the residual stream have the standard deviation std/√L, L branches: the stream's variance then
does not depend on the depth. Radford et al. (2019), 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from gradscope.init._left import is_bias
from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._edits import each_part, normal
from gradscope.init._steps import Part, Step


@dataclass(frozen=True)
class GPT2(ModelScheme):
    """Normal weights of one standard deviation, embeddings too; biases 0.

    Attributes:
        std: standard deviation, above 0.

    Raises:
        ValueError: std is not above 0; no inputs, or a model without residual branches.
    """

    name: ClassVar[str] = "gpt2"
    paper: ClassVar[str] = "Radford et al. (2019), 2.3"
    std: float = 0.02

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and self.std > 0.0):
            raise ValueError(f"std={self.std!r} must be finite and above 0")

    def steps(self, setting: Setting) -> Iterable[Step]:
        """All matrices, whatever they are for."""
        found = setting.branches(self.name).branches
        ends = {(branch.layers or branch.weights)[-1] for branch in found}
        for step in setting.steps_of_all("naive_normal"):
            last = step.slot.path in ends
            variance = self.std**2 / (len(found) if last else 1)
            why = f"last of one of {len(found)} branches" if last else ""

            def change(part: Part, step: Step = step, variance: float = variance, why: str = why) -> Part:
                return part if is_bias(step.slot) else normal(part, self.name, variance, why)

            yield each_part(step, change)
