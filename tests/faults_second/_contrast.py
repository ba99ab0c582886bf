"""Embeddings learned by comparison: SimSiam, hard triplets, CLIP; and sets explained by slots."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import batches, generator, standardized, table
from tests.faults_second._registry import faulty, healthy


def spread(found: Tensor, y: Tensor) -> Tensor:
    """Squared distances within the classes over those among all: 1 where the embedding knows nothing, or is a point."""
    within = torch.stack([(found[y == k] - found[y == k].mean(0)).pow(2).sum() for k in y.unique()]).sum()
    return (within + 1e-6) / ((found - found.mean(0)).pow(2).sum() + 1e-6)


@healthy("siamese", "views-held-apart-by-variance", steps=150)
@faulty(
    "siamese",
    "views-drawn-together-only",
    "collapsed-batch",
    {"apart": 0.0},
    cure="structural",
    also=("vanishing-gradient", "symmetric-units", "vanishing-activation"),
    steps=150,
)
def views(seed: int, apart: float = 1.0) -> Run:
    """VICReg: two noisy views are to agree, each unit is to vary, no two units are to vary together."""
    x, y = table("digits")
    plain = batches(standardized(x), y, seed)
    encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows, y = plain(step)
        noise = torch.randn(2, *rows.shape, generator=generator(seed, step))
        return torch.cat([rows + 0.3 * noise[0], rows + 0.3 * noise[1]]), torch.cat([y, y])

    def loss_fn(found: Tensor, _: Tensor) -> Tensor:
        a, b = found.chunk(2)
        agree = F.mse_loss(a, b)
        varied = sum(F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (a, b))
        covariance = torch.cov(a.T)
        apart_ = varied + (covariance - covariance.diag().diag()).pow(2).sum() / 64
        return agree + apart * apart_

    def metric(found: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(*found.chunk(2)) / (found.var(0).mean() + 1e-6) + 1 / (1 + 100 * found.var(0).mean())

    return Run(encoder, torch.optim.Adam(encoder.parameters(), lr=3e-3), batch, loss_fn, metric)


@healthy("metric learning", "triplets-all-of-the-batch", {"hard": False}, steps=100)
@healthy("metric learning", "triplets-hardest", {"hard": True}, steps=100)
@faulty(
    "metric learning",
    "triplets-hardest-collapse",
    "update-too-large",
    {"hard": True, "lr": 0.1},
    twin={"hard": True},
    cure="lr",
    also=("collapsed-batch", "dead-units", "vanishing-gradient", "no-gradient"),
    steps=100,
)
def triplets(seed: int, hard: bool, lr: float = 3e-3) -> Run:
    """Distances are not bounded by a norm; with the hardest pairs a point, where the loss is the margin, is near."""
    x, y = table("digits")
    model = nn.Sequential(
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 16),
    )

    def loss_fn(found: Tensor, target: Tensor) -> Tensor:
        apart = (found.unsqueeze(1) - found).pow(2).sum(2).add(1e-12).sqrt()
        same = target.unsqueeze(1) == target
        if hard:
            farthest = (apart * same).max(1).values
            nearest = (apart + 1e6 * same).min(1).values
            return F.relu(farthest - nearest + 1.0).mean()
        gap = F.relu(apart.unsqueeze(2) - apart.unsqueeze(1) + 1.0)
        return (gap * (same.unsqueeze(2) & ~same.unsqueeze(1))).mean() * 8

    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return Run(model, optimizer, batches(x / 8 - 1, y, seed), loss_fn, spread)


class Clip(nn.Module):
    """Images and the words for them, compared by cosine times a learned scale."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.word = nn.Embedding(10, 32)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def forward(self, x: Tensor) -> Tensor:
        return self.log_scale.exp() * F.normalize(self.image(x), dim=1) @ F.normalize(self.word.weight, dim=1).T


@healthy("CLIP", "clip-temperature-0.07")
@faulty(
    "CLIP",
    "clip-temperature-0.0001",
    "exploding-gradient",
    {"temperature": 1e-4},
    cure="init",
    where="log_scale|<root>|image*|word*",
    also=("saturated-units", "loss-scale", "exploding-activation", "init-mismatch", "update-too-large"),
)
@faulty(
    "CLIP",
    "clip-cosines-not-scaled",
    "output-pairing",
    {"temperature": 1.0, "fixed": True},
    cure="structural",
    also=("update-too-small", "vanishing-gradient", "loss-scale"),
)
def clip(seed: int, temperature: float = 0.07, fixed: bool = False) -> Run:
    x, y = table("digits")
    model = Clip(temperature)
    model.log_scale.requires_grad_(not fixed)
    free = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(free, lr=0.1)
    return Run(model, optimizer, batches(standardized(x), y, seed), F.cross_entropy)


class Slots(nn.Module):
    """Slots compete for the points of a set (softmax over the slots), three rounds; each names one centre."""

    def __init__(self, alike: bool, slots: int = 3, width: int = 32) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1 if alike else slots, width))
        self.slots = slots
        self.lift = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width))
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.update = nn.GRUCell(width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        points = self.lift(x)
        slots = self.start.expand(self.slots, -1).expand(len(x), -1, -1)
        for _ in range(3):
            scores = self.query(slots) @ self.key(points).transpose(1, 2) / math.sqrt(points.shape[2])
            share = scores.softmax(1) + 1e-6
            taken = share @ points / share.sum(2, keepdim=True)
            slots = self.update(taken.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        return self.head(slots)


@healthy("slot attention", "slots-start-apart", steps=120)
@faulty(
    "slot attention",
    "slots-start-alike",
    "symmetric-units",
    {"alike": True},
    cure="init",
    also=("collapsed-batch", "init-mismatch"),
    steps=120,
)
def slots(seed: int, alike: bool = False) -> Run:
    """Thirty points around three centres, which are to be found in any order (Chamfer distance)."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = generator(seed, step)
        centres = torch.randn(32, 3, 2, generator=made)
        noise = 0.1 * torch.randn(32, 30, 2, generator=made)
        return centres.repeat_interleave(10, 1) + noise, centres

    def loss_fn(found: Tensor, centres: Tensor) -> Tensor:
        apart = (found.unsqueeze(2) - centres.unsqueeze(1)).pow(2).sum(3)
        return apart.min(1).values.mean() + apart.min(2).values.mean()

    model = Slots(alike)
    return Run(model, torch.optim.Adam(model.parameters(), lr=3e-3), batch, loss_fn)
