"""SIREN: sine networks, f(x) = sin(ω₀·(W x + b)).

The first layer is U(±1/fan_in), the others U(±√(6/fan_in)/ω₀): ω₀·W x is then N(0, 1) at any depth, and the activations
have the arcsine distribution, of variance 1/2. Sitzmann et al. (2020), theorem 1.8 and section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from gradscope.init._left import is_bias
from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._edits import each_part, uniform
from gradscope.init._steps import Part, Step


@dataclass(frozen=True)
class Siren(ModelScheme):
    """Uniform weights for sines; biases as torch has them, as in the authors' code.

    Attributes:
        omega: ω₀, the factor that the model itself applies within its sines; 1 where it applies none.

    Raises:
        ValueError: omega is not above 0.
    """

    name: ClassVar[str] = "siren"
    paper: ClassVar[str] = "Sitzmann et al. (2020), section 3.2"
    omega: float = 30.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.omega) and self.omega > 0.0):
            raise ValueError(f"omega={self.omega!r} must be finite and above 0")

    def steps(self, setting: Setting) -> Iterable[Step]:
        """The first layer, and the others."""
        first = next(iter(setting.following.order), None)
        for step in setting.steps("torch_default"):

            def change(part: Part, step: Step = step) -> Part:
                if is_bias(step.slot) or part.row.fans is None:
                    return part
                fan_in = part.row.fans.fan_in
                limit = 1.0 / fan_in if step.slot.module_name == first else math.sqrt(6.0 / fan_in) / self.omega
                return uniform(part, self.name, limit)

            yield each_part(step, change)
