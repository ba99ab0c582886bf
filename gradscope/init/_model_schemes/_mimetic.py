"""Mimetic: attention that begins as trained attention looks.

Per head WqᵀWk ≈ α₁·Z + β₁·I, and over all heads WoWv ≈ α₂·Z − β₂·I, Z of independent N(0, 1/d): the products are drawn,
and their singular value decompositions split between the two factors. Trockman & Kolter (2023), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._edits import drawn, each_part
from gradscope.init._steps import Part, Step
from gradscope.init._variance_scaling import ready

Generator = torch.Generator | None


@dataclass(frozen=True)
class Mimetic(ModelScheme):
    """For the packed projections of `nn.MultiheadAttention`; other layers get what is recommended for them.

    Attributes:
        alpha_1, beta_1: of queries and keys.
        alpha_2, beta_2: of values and outputs.

    Raises:
        ValueError: a number that is not finite; a model without such an attention.
    """

    name: ClassVar[str] = "mimetic"
    paper: ClassVar[str] = "Trockman & Kolter (2023), section 3"
    alpha_1: float = 0.7
    beta_1: float = 0.7
    alpha_2: float = 0.4
    beta_2: float = 0.4

    def __post_init__(self) -> None:
        for field in ("alpha_1", "beta_1", "alpha_2", "beta_2"):
            if not math.isfinite(getattr(self, field)):
                raise ValueError(f"{field}={getattr(self, field)!r} must be finite")

    def steps(self, setting: Setting) -> Iterable[Step]:
        """Queries and keys are drawn together with the values, the output projection after them."""
        attentions = {
            name: module
            for name, module in setting.model.named_modules()
            if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
        }
        if not attentions:
            raise ValueError("model has no nn.MultiheadAttention with one width of queries, keys and values")
        outputs: dict[str, Tensor] = {}
        """What the values' draw has left for the output projection."""
        ends = {f"{name}.out_proj.weight".lstrip("."): name for name in attentions}
        packed: set[str] = set()
        for step in setting.steps():
            name = step.slot.module_name
            if name in attentions and step.slot.name == "in_proj_weight" and step.fills:
                packed.add(name)
                yield self._packed(step, attentions[name].num_heads, outputs)
            elif ends.get(step.slot.path) in packed:
                fill = partial(_fill_output, outputs, ends[step.slot.path])
                yield each_part(step, lambda part, fill=fill: drawn(part, self.name, None, fill))  # type: ignore[misc]
            else:
                yield step

    def _packed(self, step: Step, heads: int, outputs: dict[str, Tensor]) -> Step:
        """Its blocks depend on each other: the queries' draw leaves the keys', the values' the output projection's."""
        key = step.slot.module_name

        def change(part: Part) -> Part:
            return drawn(part, self.name, None, partial(self._fill, part.row.block, heads, key, outputs))

        return each_part(step, change)

    def _fill(
        self, block: str, heads: int, key: str, outputs: dict[str, Tensor], value: Tensor, generator: Generator
    ) -> None:
        if not ready(value, generator):
            return
        width = value.shape[1]
        if block == "q":
            pairs = [
                self._split(width, width // heads, self.alpha_1, self.beta_1, value, generator) for _ in range(heads)
            ]
            value.copy_(torch.cat([left.T for left, _ in pairs]))
            outputs[f"{key} keys"] = torch.cat([right for _, right in pairs])
        elif block == "k":
            value.copy_(outputs.pop(f"{key} keys"))
        else:
            left, right = self._split(width, width, self.alpha_2, -self.beta_2, value, generator)
            value.copy_(right)
            outputs[key] = left

    @staticmethod
    def _split(
        width: int, rank: int, alpha: float, beta: float, like: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """(width, rank) and (rank, width), whose product is nearest to alpha·Z + beta·I."""
        wide = torch.empty(width, width, dtype=torch.float32, device=like.device)
        wide.normal_(0.0, alpha / math.sqrt(width), generator=generator)
        wide.diagonal().add_(beta)
        u, s, vh = torch.linalg.svd(wide)
        root = s[:rank].sqrt()
        return u[:, :rank] * root, root[:, None] * vh[:rank]


def _fill_output(outputs: dict[str, Tensor], key: str, value: Tensor, generator: Generator) -> None:
    if ready(value, generator):
        value.copy_(outputs.pop(key))
