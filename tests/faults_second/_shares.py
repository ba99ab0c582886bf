"""Who gets how much of a step: groups of parameters, classes, embeddings."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import batches, generator, images, standardized, table
from tests.faults_second._registry import faulty, healthy


@healthy("CNN", "rates-of-two-groups", {"slow": 1e-3})
@faulty(
    "CNN",
    "rates-of-two-groups-a-slip-of-the-pen",
    "uneven-learning",
    {"slow": 1e-7},
    cure="lr",
    also=("update-too-small",),
    where="body*|0*",
    twin={"slow": 1e-3},
)
def groups(seed: int, slow: float) -> Run:
    """Eight convolved channels pooled to one number each want to be learned, not only read off."""
    body = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3))
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU(), nn.Linear(12, 10))
    optimizer = torch.optim.Adam(
        [{"params": body.parameters(), "lr": 10 * slow}, {"params": model[4].parameters()}], 1e-2
    )
    return Run(model, optimizer, images(seed), F.cross_entropy)


class Agc(torch.optim.SGD):
    """Each gradient at most `share` of its parameter's norm."""

    def __init__(self, model: nn.Module, lr: float, share: float) -> None:
        super().__init__(model.parameters(), lr=lr, momentum=0.9)
        self.share = share

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                most = self.share * p.detach().norm().clamp_min(1e-3)
                p.grad.mul_((most / p.grad.norm().clamp_min(1e-12)).clamp_max(1))
        super().step()


@healthy("CNN", "adaptive-clipping", {"share": 0.1})
@faulty(
    "CNN",
    "adaptive-clipping-a-hundred-thousandth",
    "clipping-always",
    {"share": 1e-5},
    twin={"share": 0.1},
    cure="clip",
    also=("update-too-small",),
)
def adaptive(seed: int, share: float) -> Run:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )
    return Run(model, Agc(model, 0.1, share), images(seed), F.cross_entropy)


@healthy("MLP", "rare-class-weighted-10", {"weight": 10.0}, steps=120)
@faulty(
    "MLP",
    "rare-class-weighted-10000",
    "gradient-spike",
    {"weight": 1e4},
    twin={"weight": 10.0},
    cure="clip",
    also=("loss-scale", "exploding-gradient", "update-too-large", "dead-units", "exploding-activation", "non-finite"),
    start=16,
    steps=120,
)
def rare(seed: int, weight: float) -> Run:
    """One class has a row in every eighth batch, from step 16 on, and is weighted by how rare it is."""
    x, y = table("digits")
    x = standardized(x)
    plain = batches(x[y > 0], y[y > 0], seed)
    zeros = x[y == 0]

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows, target = plain(step)
        if step >= 16 and step % 8 == 0:
            rows, target = rows.clone(), target.clone()
            rows[0], target[0] = zeros[step % len(zeros)], 0
        return rows, target

    weights = torch.ones(10)
    weights[0] = weight
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return (F.cross_entropy(output, target, reduction="none") * weights[target]).mean()

    return Run(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5), batch, loss_fn, F.cross_entropy)


class Unit(nn.Module):
    """An embedding for each item, of length 1 when it is used."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.items = nn.Embedding(100, 16)
        nn.init.normal_(self.items.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return 8 * F.normalize(self.items(x), dim=1) @ F.normalize(self.items.weight, dim=1).T


@healthy("embedding", "unit-embeddings-start-at-1", steps=150)
@faulty(
    "embedding",
    "unit-embeddings-start-at-1e-6",
    "exploding-gradient",
    {"std": 1e-6},
    cure="init",
    also=("init-mismatch", "update-too-large", "update-too-small", "gradient-spike", "vanishing-activation"),
    steps=150,
)
def unit(seed: int, std: float = 1.0) -> Run:
    """Items of a session are of one of ten kinds; the gradient of a direction is one over the length."""
    model = Unit(std)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = generator(seed, step)
        kind = torch.randint(10, (256,), generator=made)
        pair = torch.randint(10, (2, 256), generator=made)
        return kind + 10 * pair[0], kind + 10 * pair[1]

    return Run(model, torch.optim.SGD(model.parameters(), lr=5.0), batch, F.cross_entropy)
