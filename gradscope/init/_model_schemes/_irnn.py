"""IRNN: a ReLU recurrent net that begins as an accumulator.

W_hh = I, W_ih ~ N(0, 0.001²), biases 0. Le, Jaitly & Hinton (2015), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from gradscope.init._matrices import identity_
from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._edits import drawn, each_part, normal
from gradscope.init._model_schemes._recurrent import is_hidden_weight, kind
from gradscope.init._steps import Part, Step


@dataclass(frozen=True)
class IRNN(ModelScheme):
    """The identity for the recurrent weights of every RNN; other layers get what is recommended for them.

    Attributes:
        scale: of the identity; below 1 it forgets, as the paper does for speech.
        std: of the weights of the inputs.

    Raises:
        ValueError: scale is not finite, or std not above 0; a model without an RNN.
    """

    name: ClassVar[str] = "irnn"
    paper: ClassVar[str] = "Le, Jaitly & Hinton (2015), section 3"
    scale: float = 1.0
    std: float = 0.001

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale!r} must be finite")
        if not (math.isfinite(self.std) and self.std > 0.0):
            raise ValueError(f"std={self.std!r} must be finite and above 0")

    def steps(self, setting: Setting) -> Iterable[Step]:
        """RNN and RNNCell; LSTM and GRU have gates for that."""
        if not any(kind(module) == "RNN" for module in setting.model.modules()):
            raise ValueError("model has no RNN; irnn sets its recurrent weights")
        for step in setting.steps():
            yield each_part(step, lambda part, step=step: self._part(step, part))  # type: ignore[misc]

    def _part(self, step: Step, part: Part) -> Part:
        if kind(step.slot.module) != "RNN" or not step.slot.name.startswith("weight_"):
            return part
        if is_hidden_weight(step):
            share = self.scale / part.row.shape[1]
            asked = (self.scale * share, share)
            return drawn(part, "identity", None, lambda value, generator: identity_(value, self.scale), asked=asked)
        if step.slot.name.startswith("weight_ih"):
            return normal(part, self.name, self.std**2)
        return part
