"""Loops, layers and penalties written by hand, as in first questions to a forum."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import batches, images, standardized, table
from tests.faults_second._registry import faulty, healthy


class ByHand(nn.Module):
    """Weights stored (inside, outside), as `x @ w` wants them."""

    def __init__(self, std: str) -> None:
        super().__init__()
        sizes = ((64, 256), (256, 64), (64, 64), (64, 10))
        self.weights = nn.ParameterList([nn.Parameter(torch.empty(sizes_)) for sizes_ in sizes])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(outside)) for _, outside in sizes])
        for weight in self.weights:
            if std == "randn":
                nn.init.normal_(weight)
            elif std == "transposed":
                nn.init.kaiming_normal_(weight.T, mode="fan_in")
            else:
                nn.init.kaiming_normal_(weight, mode="fan_in")

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            x = x.relu() if place < 3 else x
        return x


@healthy("by hand", "by-hand-fans-of-the-transposed")
@faulty(
    "by hand",
    "by-hand-randn",
    "init-mismatch",
    {"std": "randn"},
    cure="init",
    also=("exploding-activation", "exploding-gradient"),
)
def by_hand(seed: int, std: str = "transposed") -> Run:
    model = ByHand(std)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return Run(model, optimizer, images(seed), F.cross_entropy)


@healthy("MLP", "loop-zero-grad-first")
@healthy("MLP", "loop-zero-grad-set-to-zeros-last", {"order": "last"})
@faulty(
    "MLP",
    "loop-zero-grad-before-the-step",
    "update-too-small",
    {"order": "between"},
    cure="structural",
    also=("no-gradient",),
)
def loop(seed: int, order: str = "first") -> Run:
    """Adam; the gradients are zeroed at the right place, or between backward and step."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def train(run: Run, steps: int, scope: Any) -> list[float]:
        losses = []
        for step in range(steps):
            x, y = run.batch(step)
            if order == "first":
                optimizer.zero_grad()
            loss = run.loss_fn(run.model(x), y)
            if scope is not None:
                scope.note(loss=loss)
            loss.backward()
            if order == "between":
                optimizer.zero_grad(set_to_none=False)
            optimizer.step()
            if order == "last":
                optimizer.zero_grad(set_to_none=False)
            losses.append(loss.item())
        return losses

    return Run(model, optimizer, images(seed), F.cross_entropy, loop=train)


@healthy("MLP", "penalty-by-hand-small")
@faulty(
    "MLP",
    "penalty-by-hand-rules",
    "vanishing-activation",
    {"strength": 1.0},
    cure="structural",
    also=("vanishing-gradient", "collapsed-batch", "loss-scale", "symmetric-units"),
    steps=150,
)
@faulty(
    "MLP",
    "loss-wrapped-in-a-new-tensor",
    "no-gradient",
    {"rewrap": True},
    cure="structural",
    also=("vanishing-activation",),
)
def penalty(seed: int, strength: float = 1e-4, rewrap: bool = False) -> Run:
    """Squares of all weights beside the cross-entropy; a loss made of a copy of the output leaves only these."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        found = output.detach().clone().requires_grad_() if rewrap else output
        return F.cross_entropy(found, target) + strength * sum(p.pow(2).sum() for p in model.parameters())

    return Run(model, optimizer, images(seed), loss_fn, F.cross_entropy)


@healthy("MLP", "flowers-full-batch", steps=120)
@healthy("MLP", "flowers-each-its-own-step", {"size": 1, "lr": 0.02}, steps=300)
@faulty(
    "MLP",
    "flowers-summed-with-the-rate-of-a-mean",
    "update-too-large",
    {"reduction": "sum", "lr": 0.5},
    cure="lr",
    also=("loss-scale", "dead-units", "exploding-gradient", "exploding-activation", "non-finite"),
    steps=120,
)
def flowers(seed: int, size: int = 150, reduction: str = "mean", lr: float = 0.5) -> Run:
    x, y = table("iris")
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction=reduction)

    return Run(model, optimizer, batches(standardized(x), y, seed, size), loss_fn, F.cross_entropy)
