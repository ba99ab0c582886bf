"""Habits of former times and slips of the pen: sigmoids, softmaxes between layers, norms swapped."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import batches, generator, images, standardized, table
from tests.faults_second._registry import faulty, healthy


@healthy("autoencoder", "seven-layers-silu", {"act": nn.SiLU}, steps=200)
@faulty(
    "autoencoder",
    "seven-layers-sigmoid",
    "vanishing-gradient",
    {"act": nn.Sigmoid},
    twin={"act": nn.SiLU},
    cure="structural",
    also=("default-init", "init-mismatch", "collapsed-batch", "uneven-learning"),
    steps=200,
)
def autoencoder(seed: int, act: type[nn.Module]) -> Run:
    x, _ = table("digits")
    x = standardized(x)
    sizes = (64, 48, 32, 16, 8, 16, 32, 64)
    layers: list[nn.Module] = []
    for inside, outside in itertools.pairwise(sizes):
        layers += [nn.Linear(inside, outside), act()]
    model = nn.Sequential(*layers[:-1])
    return Run(model, torch.optim.Adam(model.parameters(), lr=5e-3), batches(x, x, seed), F.mse_loss)


@healthy("MLP", "softmax-at-the-end-only", {"between": nn.ReLU})
@faulty(
    "MLP",
    "softmax-between-layers",
    "vanishing-gradient",
    {"between": lambda: nn.Softmax(1)},
    twin={"between": nn.ReLU},
    cure="structural",
    also=("vanishing-activation", "collapsed-batch", "uneven-learning"),
)
def between(seed: int, between: Any) -> Run:
    x, y = table("digits")
    model = nn.Sequential(
        nn.Linear(64, 96), between(), nn.Linear(96, 96), between(), nn.Linear(96, 96), between(), nn.Linear(96, 10)
    )
    return Run(model, torch.optim.Adam(model.parameters(), lr=3e-3), batches(standardized(x), y, seed), F.cross_entropy)


class Hash(nn.Module):
    """Sixteen bits of each image: tanh of a steep slope."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.bits, self.slope = nn.Tanh(), slope

    def forward(self, x: Tensor) -> Tensor:
        return self.bits(self.slope * self.body(x))


@healthy("hashing", "bits-of-gentle-slope")
@faulty(
    "hashing",
    "bits-of-steep-slope-from-the-start",
    "saturated-units",
    {"slope": 200.0},
    cure="structural",
    also=("vanishing-gradient", "exploding-gradient"),
    where="bits|body*",
)
def hashing(seed: int, slope: float = 1.0) -> Run:
    """Codes of a class are to agree and of two classes to differ; the slope is to grow with time."""
    x, y = table("digits")

    def loss_fn(code: Tensor, target: Tensor) -> Tensor:
        alike = (target.unsqueeze(1) == target).float()
        return F.binary_cross_entropy_with_logits(code @ code.T / 2 - 2, alike)

    model = Hash(slope)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    return Run(model, optimizer, batches(standardized(x), y, seed), loss_fn)


class FrozenNorm(nn.Module):
    """A batch norm that learns nothing any more: a scale and a shift of each channel, from a checkpoint."""

    def __init__(self, width: int, swapped: bool) -> None:
        super().__init__()
        scale, shift = 0.8 + 0.4 * torch.rand(width), torch.zeros(width)
        self.register_buffer("scale", shift if swapped else scale)
        self.register_buffer("shift", scale if swapped else shift)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)


@healthy("CNN", "frozen-norms")
@faulty(
    "CNN",
    "frozen-norms-scale-and-shift-swapped",
    "collapsed-batch",
    {"swapped": True},
    cure="structural",
    where="[345]",
    also=("no-gradient", "vanishing-activation", "vanishing-gradient"),
)
def frozen_norm(seed: int, swapped: bool = False) -> Run:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), FrozenNorm(16, False), nn.ReLU(), nn.Conv2d(16, 16, 3), FrozenNorm(16, swapped), nn.ReLU()
    )
    model.extend(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)))
    return Run(model, torch.optim.Adam(model.parameters(), lr=3e-3), images(seed), F.cross_entropy)


class Bag(nn.Module):
    """Embeddings of words summed, over the number of words or over that of places."""

    def __init__(self, padded: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(201, 32, padding_idx=200)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
        self.padded = padded

    def forward(self, x: Tensor) -> Tensor:
        number = torch.tensor(float(x.shape[1])) if self.padded else (x < 200).sum(1, keepdim=True)
        return self.head(self.words(x).sum(1) / number)


@healthy("text", "bag-of-words-over-their-number", steps=150)
@faulty(
    "text",
    "bag-of-words-over-the-places",
    "vanishing-activation",
    {"padded": True},
    cure="structural",
    also=("vanishing-gradient", "update-too-small", "uneven-learning", "collapsed-batch"),
    steps=150,
)
def bag(seed: int, padded: bool = False) -> Run:
    """Five words of two hundred in sentences padded to 512; a word's number modulo 4 votes for the class."""
    model = Bag(padded)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = generator(seed, step)
        y = torch.randint(4, (128, 1), generator=made)
        words = torch.randint(50, (128, 5), generator=made) * 4 + y
        return F.pad(words, (0, 507), value=200), y.squeeze(1)

    return Run(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), batch, F.cross_entropy)
