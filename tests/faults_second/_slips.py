"""Slips inside a layer: the softmax of attention left out, gates that start shut, a bias meant for the head only."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import generator, images, language
from tests.faults_second._registry import faulty, healthy


class Attention(nn.Module):
    def __init__(self, width: int, softmax: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.norm, self.softmax = nn.LayerNorm(width), softmax

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        scores = self.query(y) @ self.key(y).transpose(1, 2) / math.sqrt(x.shape[2])
        return x + (scores.softmax(2) if self.softmax else scores.exp()) @ self.value(y)


@healthy("transformer", "attention-shares", steps=100)
@faulty(
    "transformer",
    "attention-exponentials-not-divided",
    "exploding-activation",
    {"softmax": False},
    cure="structural",
    also=("exploding-gradient", "update-too-large", "init-mismatch"),
    steps=100,
)
def attention(seed: int, softmax: bool = True) -> Run:
    """Whether token 3 or token 5 is the more frequent of 48."""
    blocks = [Attention(32, softmax) for _ in range(4)]
    model = nn.Sequential(nn.Embedding(32, 32), *blocks, Tokens(), nn.Linear(32, 2))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = language(seed, 24, 48)(step)[0]
        return x, ((x == 3).sum(1) > (x == 5).sum(1)).long()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Run(model, optimizer, batch, F.cross_entropy)


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Gated(nn.Module):
    """A convolution times a hard sigmoid of another, as in nets for telephones."""

    def __init__(self, inside: int, outside: int, bias: float) -> None:
        super().__init__()
        self.value, self.score = nn.Conv2d(inside, outside, 3), nn.Conv2d(inside, outside, 3)
        nn.init.constant_(self.score.bias, bias)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * self.gate(self.score(x))


@healthy("gated CNN", "hard-gates-half-open")
@healthy("gated CNN", "hard-gates-wide-open", {"bias": 2.0})
@faulty(
    "gated CNN",
    "hard-gates-shut",
    "saturated-units",
    {"bias": -4.5},
    cure="init",
    where="[01]*",
    also=(
        "vanishing-activation",
        "no-gradient",
        "dead-units",
        "init-mismatch",
        "vanishing-gradient",
        "collapsed-batch",
    ),
)
def hard_gates(seed: int, bias: float = 0.0) -> Run:
    """Below -3 a hard sigmoid is 0, and so is its slope."""
    model = nn.Sequential(Gated(1, 16, bias), Gated(16, 16, bias), nn.Flatten(), nn.Linear(256, 10))
    return Run(model, torch.optim.Adam(model.parameters(), lr=5e-3), images(seed), F.cross_entropy)


@healthy("segmentation", "prior-in-the-last-bias")
@faulty(
    "segmentation",
    "prior-in-every-bias",
    "dead-units",
    {"everywhere": True},
    cure="init",
    where="[0-9]",
    also=("init-mismatch", "no-gradient", "vanishing-activation", "vanishing-gradient", "collapsed-batch"),
)
def prior(seed: int, everywhere: bool = False) -> Run:
    """The bias of RetinaNet's head, log of 0.01 over 0.99, by a loop over all convolutions."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1)
    )
    for layer in (model[0], model[2], model[4]) if everywhere else (model[4],):
        nn.init.constant_(layer.bias, math.log(0.01 / 0.99))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(16, 1, 12, 12, generator=generator(seed, step))
        return x, (F.avg_pool2d(x, 3, 1, 1) > 0.6).float()

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Run(model, optimizer, batch, F.binary_cross_entropy_with_logits)
