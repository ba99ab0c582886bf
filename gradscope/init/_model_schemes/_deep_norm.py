"""DeepNorm: post-norm transformers of a thousand layers, x ← LN(α·x + f(x)).

Values, output projections and feed-forward weights have Glorot's weights times β, queries and keys times 1.

    one stack of N layers:      α = (2N)^(1/4),                  β = (8N)^(−1/4)
    encoder N, decoder M:       α = 0.81·(N⁴M)^(1/16), β = 0.87·(N⁴M)^(−1/16);   α = (3M)^(1/4), β = (12M)^(−1/4)

Wang et al. (2022), figure 2. α is part of the architecture: `alphas` tells what it has to be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from gradscope.init._model_schemes._base import ModelScheme, Setting
from gradscope.init._model_schemes._edits import each_part, scaled
from gradscope.init._model_schemes._transformer import Stacks, stacks
from gradscope.init._steps import Part, Step


@dataclass(frozen=True)
class DeepNorm(ModelScheme):
    """For torch's transformer layers and, with inputs, for any model of residual branches (as one stack).

    Raises:
        ValueError: a model without transformer layers, where there are no inputs to see its branches.
    """

    name: ClassVar[str] = "deep_norm"
    paper: ClassVar[str] = "Wang et al. (2022), figure 2"

    @staticmethod
    def alphas(encoder: int, decoder: int = 0) -> tuple[float, float]:
        """α of the encoder's and of the decoder's residual sums; of one stack, whatever it is, twice the same.

        >>> [round(alpha, 3) for alpha in DeepNorm.alphas(6, 6)]
        [1.418, 2.06]
        """
        if encoder and decoder:
            return 0.81 * (encoder**4 * decoder) ** 0.0625, (3.0 * decoder) ** 0.25
        alone = (2.0 * (encoder or decoder)) ** 0.25
        return alone, alone

    @staticmethod
    def betas(encoder: int, decoder: int = 0) -> tuple[float, float]:
        """β, the factors on the weights, likewise."""
        if encoder and decoder:
            return 0.87 * (encoder**4 * decoder) ** -0.0625, (12.0 * decoder) ** -0.25
        alone = (8.0 * (encoder or decoder)) ** -0.25
        return alone, alone

    def steps(self, setting: Setting) -> Iterable[Step]:
        """The two stacks, and Glorot's weights for what is left."""
        found = stacks(setting, self.name)
        for step in setting.steps("glorot_normal"):
            yield each_part(step, lambda part: self._scaled(part, found))

    def _scaled(self, part: Part, found: Stacks) -> Part:
        stack = found.of(part.row.parameter, part.row.block)
        if stack is None:
            return part
        which = 0 if stack == "encoder" else 1
        alpha, beta = (both(found.encoder, found.decoder)[which] for both in (self.alphas, self.betas))
        return scaled(part, beta, f"beta of {(found.encoder, found.decoder)[which]} layers, alpha = {alpha:.4g}")
