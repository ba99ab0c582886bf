"""Contrastive and siamese losses on pairs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import mixture, seeded
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


class Two(nn.Module):
    """The same encoder for both views; with a norm of one, or a predictor as in SimSiam."""

    def __init__(self, unit: bool, deep: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
        self.unit = unit

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        za, zb = self.encoder(a), self.encoder(b)
        return (F.normalize(za, dim=1), F.normalize(zb, dim=1)) if self.unit else (za, zb)


def info_nce(temperature: float, plain: bool) -> Any:
    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        logits = output[0] @ output[1].T / temperature
        if plain:  # the logarithm of a softmax, written out
            return -torch.log(logits.exp().diagonal() / logits.exp().sum(1)).mean()
        return F.cross_entropy(logits, torch.arange(len(logits)))

    return loss


def pull(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return (output[0] - output[1]).square().sum(1).mean()


def spread(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    """How alike the embeddings of different inputs are, within [0, 1]."""
    z = F.normalize(output[0], dim=1)
    return (z @ z.T).mean()


@healthy("contrastive", "info-nce", steps=80)
@healthy("contrastive", "info-nce-warm", {"temperature": 0.5}, steps=80, goal=3.4)
@faulty(
    "contrastive",
    "info-nce-exp-overflows",
    "non-finite",
    {"temperature": 1e-3, "plain": True},
    cure="scale",
    where="<root>|encoder*",
    steps=40,
)
@faulty(
    "contrastive",
    "views-without-negatives",
    "collapsed-batch",
    {"collapse": True},
    cure="structural",
    where="encoder*|<root>",
    steps=100,
    also=("vanishing-activation",),
)
def contrastive(seed: int, temperature: float = 0.1, plain: bool = False, collapse: bool = False) -> Run:
    """Two noisy views of each point belong together."""
    model = Two(unit=not collapse)

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        source = seeded(seed, step)
        x = torch.randn(64, 32, generator=source)
        a, b = (x + 0.4 * torch.randn(64, 32, generator=source) for _ in range(2))
        return (a, b), x

    loss = pull if collapse else info_nce(temperature, plain)
    return Run(
        model, optimizer_of(model, "Adam", 5e-3), batch, loss, metric=info_nce(temperature, False) if collapse else None
    )


def margin(epsilon: float) -> Any:
    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        distance = ((output[0] - output[1]).square().sum(1) + epsilon).sqrt()
        return (target * distance**2 + (1 - target) * F.relu(4 - distance) ** 2).mean()

    return loss


@healthy("siamese", "siamese-margin", steps=80)
@faulty(
    "siamese",
    "siamese-sqrt-of-0",
    "non-finite",
    {"epsilon": 0.0, "same": 25},
    start=25,
    cure="structural",
    where="encoder*|<root>",
    steps=50,
    twin={"epsilon": 0.0},
)
def siamese(seed: int, epsilon: float = 1e-6, same: int | None = None) -> Run:
    """Whether two points are of one class; a pair of one point with itself has the distance 0."""
    model, plain = Two(unit=False), mixture(seed, 128, 32)

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        x, y = plain(step)
        a, b = x[:64], x[64:].clone()
        together = (y[:64] == y[64:]).float()
        if step == same:
            b[0], together[0] = a[0], 1.0
        return (a, b), together

    return Run(model, optimizer_of(model, "Adam", 3e-3), batch, margin(epsilon))
