"""The edge of chaos: weights and biases at which a gradient keeps its mean square and the signal keeps its length.

    Var w = 1/(fan_in·E[f'(√q z)²]),   Var b = q − E[f(√q z)²]/E[f'(√q z)²],   z ~ N(0, 1)

with f the activation behind the layer before. Poole et al. (2016); Schoenholz et al. (2017); Hayou, Doucet & Rousseau
(2019). The first layer, which no activation is before, gets Var w = q/fan_in and no biases: inputs of mean square 1
then begin at q.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from gradscope.activations import get
from gradscope.init._left import is_bias
from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._edits import each_part, normal
from gradscope.init._steps import Part, Step
from gradscope.theory import CriticalPoint, attracts_from, critical_at


@dataclass(frozen=True)
class EdgeOfChaos(ModelScheme):
    """Normal weights and biases on the critical line.

    Attributes:
        q: mean square of the pre-activations that is to be kept, above 0.

    What no activation is before, but for the first layer, counts as behind the identity: Var w = 1/fan_in.

    Raises:
        ValueError: q is not above 0; with an activation that has no critical point at this q (sigmoid, softplus).
    """

    name: ClassVar[str] = "edge_of_chaos"
    paper: ClassVar[str] = "Schoenholz et al. (2017); Hayou, Doucet & Rousseau (2019)"
    q: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.q) and self.q > 0.0):
            raise ValueError(f"q={self.q!r} must be finite and above 0")

    def steps(self, setting: Setting) -> Iterable[Step]:
        """Each layer by the activation before it."""
        before = setting.following.before()
        first = next(iter(before), None)
        for step in setting.steps("lecun_normal"):
            layer = step.slot.module_name
            activation = before.get(layer)
            point = self._point(activation) if activation is not None else None
            sigma_w2 = point.sigma_w2 if point is not None else self.q if layer == first else 1.0
            sigma_b2 = point.sigma_b2 if point is not None else 0.0
            yield each_part(step, lambda part, s=step, w=sigma_w2, b=sigma_b2: self._part(s, part, w, b))  # type: ignore[misc]

    def _part(self, step: Step, part: Part, sigma_w2: float, sigma_b2: float) -> Part:
        if is_bias(step.slot):
            return part if sigma_b2 == 0.0 else normal(part, self.name, sigma_b2)
        if part.row.fans is None:
            return part
        return normal(part, self.name, sigma_w2 / part.row.fans.fan_in)

    def _point(self, activation: str) -> CriticalPoint | None:
        found = get(activation)
        if not found.elementwise:
            return None
        point = critical_at(found, self.q)
        if point is None:
            where = attracts_from(found)
            hint = "at no q" if where is None else f"from q = {where.q:.4g} on"
            raise ValueError(
                f"q={self.q:g}: {found.name} has no critical point there, it would take biases of negative variance; "
                f"there are such points {hint}"
            )
        return point
