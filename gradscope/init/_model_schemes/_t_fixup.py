"""T-Fixup: a transformer that trains without warm-up and without layer norms.

Glorot's weights; embeddings N(0, 1/d)·(9N)^(−1/4); values, output projections and feed-forward weights of the encoder
times 0.67·N^(−1/4), of the decoder times (9N)^(−1/4), N layers each. Where the stacks are not equally deep, embeddings
have the decoder's N. Huang, Pérez, Ba & Volkovs (2020), section 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._edits import each_part, normal, scaled
from gradscope.init._model_schemes._transformer import Stacks, stacks
from gradscope.init._slots import slots
from gradscope.init._steps import Part, Step


@dataclass(frozen=True)
class TFixup(ModelScheme):
    """For torch's transformer layers and, with inputs, for any model of residual branches (as an encoder).

    The layer norms that the paper takes out belong to the architecture; with them left in it still holds.

    Raises:
        ValueError: a model without transformer layers, where there are no inputs to see its branches.
    """

    name: ClassVar[str] = "t_fixup"
    paper: ClassVar[str] = "Huang, Pérez, Ba & Volkovs (2020), section 3"

    def steps(self, setting: Setting) -> Iterable[Step]:
        """Embeddings, the two stacks, and what is left."""
        found = stacks(setting, self.name)
        tables = {s.path: "glorot_normal" for s in slots(setting.model) if isinstance(s.module, nn.Embedding)}
        depth = found.decoder or found.encoder
        for step in setting.steps({**tables, "*": "glorot_normal"}):
            if step.slot.path in tables:
                width = step.slot.read().shape[1]
                variance = (9.0 * depth) ** -0.5 / width
                yield each_part(step, lambda part, v=variance: normal(part, self.name, v))  # type: ignore[misc]
            else:
                yield each_part(step, lambda part: _scaled(part, found))


def _scaled(part: Part, found: Stacks) -> Part:
    stack = found.of(part.row.parameter, part.row.block)
    if stack is None:
        return part
    factor = 0.67 * found.encoder**-0.25 if stack == "encoder" else (9.0 * found.decoder) ** -0.25
    return scaled(part, factor, f"{found.encoder if stack == 'encoder' else found.decoder} layers of the {stack}")
