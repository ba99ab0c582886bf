"""Fixup: residual branches without norms, scaled so that the first update does not depend on how many there are.

Of L branches with m layers each, the first m − 1 get He's weights times L^(−1/(2m − 2)), the last one 0, and so does
the output layer. Zhang, Dauphin & Ma (2019), section 3. The scalar biases and multipliers that the paper adds are part
of an architecture, not of its initial weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._edits import each_part, scaled, zeroed
from gradscope.init._steps import Part, Step


@dataclass(frozen=True)
class Fixup(ModelScheme):
    """He's weights, scaled within residual branches.

    Queries and keys of an attention count as no layer of the branch: they keep what they have.

    Attributes:
        base: scheme of single weights.

    Raises:
        ValueError: no inputs, or a model without residual branches.
    """

    name: ClassVar[str] = "fixup"
    paper: ClassVar[str] = "Zhang, Dauphin & Ma (2019), section 3"
    base: str = "he_normal"

    def steps(self, setting: Setting) -> Iterable[Step]:
        """Branch by branch."""
        found = setting.branches(self.name)
        count = len(found.branches)
        factors: dict[str, float] = {}
        for branch in found.branches:
            *earlier, last = branch.layers or branch.weights
            factors |= {name: count ** (-1.0 / (2 * len(earlier))) for name in earlier}
            factors[last] = 0.0
        if found.output is not None:
            factors[found.output] = 0.0
        for step in setting.steps(self.base):
            factor = factors.get(step.slot.path, 1.0)
            if factor == 0.0:
                why = "output" if step.slot.path == found.output else "last of its branch"
                yield each_part(step, lambda part, why=why: zeroed(part, why))  # type: ignore[misc]
            elif factor != 1.0:

                def change(part: Part, factor: float = factor) -> Part:
                    only_scores = part.row.block in ("q", "k")
                    return part if only_scores else scaled(part, factor, f"{count} branches")

                yield each_part(step, change)
            else:
                yield step
