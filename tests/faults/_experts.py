"""Mixtures of experts, and several heads on one trunk."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import mixture
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


class Experts(nn.Module):
    """A mixture of experts: each row goes to its best one."""

    def __init__(self, inside: int, outside: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(inside, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(inside, 32), nn.ReLU(), nn.Linear(32, outside)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate = self.router(x).softmax(-1)
        weight, chosen = gate.max(-1)
        out = torch.zeros(len(x), 10)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, weight[rows, None] * expert(x[rows]))
        share = F.one_hot(chosen, len(self.experts)).float().mean(0)
        return out, len(self.experts) * (share * gate.mean(0)).sum()


@healthy("MoE", "moe-4-balanced", steps=80)
@healthy("MoE", "moe-2-balanced", {"experts": 2}, steps=80)
@faulty(
    "MoE",
    "moe-collapsed-router",
    "no-gradient",
    {"bias": 30.0, "balance": 0.0},
    cure="init",
    also=("saturated-units", "dead-units"),
    where="experts.[123]*|router",
    static=lambda run: run.model.experts[2][0].weight.grad is None,
    steps=60,
)  # type: ignore[union-attr, index]
@faulty(
    "MoE",
    "moe-lr-3",
    "update-too-large",
    {"lr": 3.0},
    cure="learning rate",
    also=("exploding-activation", "dead-units"),
    steps=60,
)
def experts(seed: int, experts: int = 4, bias: float = 0.0, balance: float = 0.01, lr: float = 5e-3) -> Run:
    """Ten classes by experts."""
    model = Experts(64, 10, experts)
    with torch.no_grad():
        model.router.bias[0] += bias
    return Run(
        model,
        optimizer_of(model, "Adam", lr),
        mixture(seed),
        lambda output, target: F.cross_entropy(output[0], target) + balance * output[1],
    )


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.kind, self.size = nn.Linear(64, 10), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.kind(h), self.size(h)


@healthy("multi-head", "two-heads-two-losses", steps=60)
@faulty(
    "multi-head",
    "one-head-rules",
    "uneven-learning",
    {"weight": 1e6, "kind": "SGD", "lr": 1e-7},
    cure="scale",
    where="kind|kind.*",
    also=("update-too-small",),
    twin={"kind": "SGD", "lr": 0.05},
    steps=80,
)
@faulty(
    "multi-head",
    "second-head-without-loss",
    "no-gradient",
    {"weight": None},
    cure="structural",
    where="size|size.*",
    steps=60,
    static=lambda run: run.model.size.weight.grad is None,
)  # type: ignore[union-attr]
def heads(seed: int, weight: float | None = 0.5, kind: str = "Adam", lr: float = 5e-3) -> Run:
    """A class and a number from one trunk."""
    model = Heads()

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        number = (target.float()[:, None] - 4.5) / 3
        cross = F.cross_entropy(output[0], target)
        return cross if weight is None else cross + weight * F.mse_loss(output[1], number)

    return Run(
        model,
        optimizer_of(model, kind, lr),
        mixture(seed),
        loss,
        metric=lambda output, y: F.cross_entropy(output[0], y),
    )
