"""What a scheme does to the layers of a plain network beyond drawing their weights: factors and biases.

Schemes whose weights depend on the activation behind them share one draw with it: the edge of chaos is a factor and
random biases, LSUV a factor that is found as the signal passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradscope.experiments._config import SweepConfig
from gradscope.experiments._networks import draw_biases
from gradscope.theory import critical_at


@dataclass(eq=False)
class Adjustment:
    """Factors and biases of the layers of some networks.

    Attributes:
        gains: of each layer, `(seeds or 1, activations)`.
        biases: `(depth, seeds, activations, width)`; None where there are none.
        unit_variance: a layer's factor is not given: it is what gives its outputs variance 1 as they pass.
    """

    gains: dict[int, Tensor] = field(default_factory=dict)
    biases: Tensor | None = None
    unit_variance: bool = False

    def forward(self, layer: int, outputs: Tensor) -> None:
        """Changes outputs `(seeds, activations, batch, width, …)` of layer 0, 1, … in this order, in place."""
        if self.unit_variance:
            self.gains[layer] = outputs.double().flatten(2).var(2, correction=0).rsqrt().float()
        outputs.mul_(self._spread(layer, outputs))
        if self.biases is not None:
            biases = self.biases[layer].unsqueeze(2)  # one for all inputs of the batch
            outputs.add_(biases.reshape(*biases.shape, *(1,) * (outputs.dim() - 4)))

    def backward(self, layer: int, gradients: Tensor) -> None:
        """Changes gradients of the layer's inputs in place."""
        gradients.mul_(self._spread(layer, gradients))

    def _spread(self, layer: int, like: Tensor) -> Tensor:
        gains = self.gains[layer]
        return gains.reshape(*gains.shape, *(1,) * (like.dim() - 2))


def adjustment(
    config: SweepConfig,
    init: str,
    activations: Sequence[str],
    depth: int,
    width: int,
    seeds: Sequence[int],
    device: torch.device,
) -> Adjustment | None:
    """What a scheme adds to its base in networks of these activations and seeds; None for schemes of single weights."""
    if init == "lsuv":
        return Adjustment(unit_variance=True)
    if init != "edge_of_chaos":
        return None
    gains = torch.ones(depth, 1, len(activations), dtype=torch.float32, device="cpu")
    biases = torch.zeros(depth, len(seeds), len(activations), width, dtype=torch.float32, device="cpu")
    for i, name in enumerate(activations):
        sigma_w, sigma_b = edge(name)
        gains[1:, 0, i] = sigma_w
        for j, seed in enumerate(seeds):
            biases[1:, j, i] = sigma_b * draw_biases(config, name, depth, width, seed)[1:]
    return Adjustment(dict(enumerate(gains.to(device))), biases.to(device))


def edge(activation: str) -> tuple[float, float]:
    """(σ_w, σ_b) at q = 1.

    Raises:
        ValueError: there is no critical point, or the activation is not elementwise.
    """
    point = critical_at(activation)
    if point is None:
        raise ValueError(f"{activation} has no critical point at q = 1")
    return math.sqrt(point.sigma_w2), math.sqrt(point.sigma_b2)
