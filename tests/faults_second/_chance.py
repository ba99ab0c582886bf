"""Weights that are drawn, mixtures of Gaussians."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import batches, generator, standardized, table
from tests.faults_second._registry import faulty, healthy


class Bayes(nn.Linear):
    """A mean and a deviation for each weight; those drawn are used once."""

    def __init__(self, inside: int, outside: int, raw: float = -4.0) -> None:
        super().__init__(inside, outside)
        self.raw = nn.Parameter(torch.full_like(self.weight, raw))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + F.softplus(self.raw) * torch.randn_like(self.weight), self.bias)

    def divergence(self) -> Tensor:
        std = F.softplus(self.raw)
        return (self.weight.pow(2) + std.pow(2) - 1 - 2 * std.log()).sum() / 2


@healthy("Bayesian", "weights-drawn-kl-over-the-data", steps=120)
@faulty(
    "Bayesian",
    "weights-drawn-kl-each-batch",
    "loss-scale",
    {"share": 1.0},
    cure="structural",
    also=("uneven-learning", "vanishing-activation", "collapsed-batch"),
    steps=120,
)
def bayes(seed: int, share: float = 1 / 1797) -> Run:
    """The divergence from the prior is to be shared by all rows; per row it outweighs what they say."""
    x, y = table("digits")
    layers = [Bayes(64, 48), Bayes(48, 10)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1])

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) + share * sum(layer.divergence() for layer in layers)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Run(model, optimizer, batches(standardized(x), y, seed), loss_fn, F.cross_entropy)


class Mixture(nn.Module):
    """Six Gaussians with learned means and weights, fitted by gradient."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.zeros(6, 2) if alike else torch.randn(6, 2))
        self.log_std, self.scores = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        apart = (x.unsqueeze(1) - self.means).pow(2).sum(2) / self.log_std.exp().pow(2)
        return torch.logsumexp(self.scores.log_softmax(0) - apart / 2 - 2 * self.log_std, 1)


@healthy("mixture", "gaussians-start-apart", steps=120)
@faulty(
    "mixture",
    "gaussians-start-alike",
    "symmetric-units",
    {"alike": True},
    cure="init",
    where="means|<root>|<input>",
    also=("init-mismatch", "no-gradient", "collapsed-batch"),
    steps=120,
)
def gaussians(seed: int, alike: bool = False) -> Run:
    """Points about six corners; no gradient tells apart components that are the same."""
    corners = 3 * torch.stack([torch.arange(6).mul(math.pi / 3).cos(), torch.arange(6).mul(math.pi / 3).sin()], 1)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = generator(seed, step)
        x = corners[torch.randint(6, (128,), generator=made)] + 0.3 * torch.randn(128, 2, generator=made)
        return x, x

    def loss_fn(found: Tensor, _: Tensor) -> Tensor:
        return -found.mean()

    model = Mixture(alike)
    return Run(model, torch.optim.Adam(model.parameters(), lr=0.05), batch, loss_fn)
