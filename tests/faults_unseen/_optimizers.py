"""Optimizers and schedules that the corpus does not have, on one small net, and their usual mistakes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from tests.faults._data import digits
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy


class Lion(torch.optim.Optimizer):
    """The sign of a running mean of gradients (Chen et al. 2023)."""

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                towards = mean.lerp(p.grad, 1 - group["betas"][0]).sign()
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * towards)
                mean.lerp_(p.grad, 1 - group["betas"][1])


class ValueClipped(torch.optim.SGD):
    """Every gradient's parts are clipped before the step."""

    limit = 1e-6

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            torch.nn.utils.clip_grad_value_(group["params"], self.limit)
        return super().step(closure)


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 20),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=80),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=10),
    "halved-each-step": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "warmup-of-epochs": lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1.0, (t + 1) / 1e6)),
}


@healthy("MLP", "optim-nadam", {"kind": "NAdam", "lr": 3e-3})
@healthy("MLP", "optim-radam", {"kind": "RAdam", "lr": 5e-3}, steps=100)
@healthy("MLP", "optim-asgd", {"kind": "ASGD", "lr": 0.3}, steps=100)
@healthy("MLP", "optim-rprop-full-batch", {"kind": "Rprop", "lr": 1e-3, "whole": True})
@healthy("MLP", "optim-adafactor", {"kind": "Adafactor", "lr": 0.02})
@healthy("MLP", "optim-adadelta", {"kind": "Adadelta", "lr": 1.0}, steps=100)
@healthy("MLP", "optim-lion", {"kind": "Lion", "lr": 1e-3}, steps=100)
@healthy("MLP", "schedule-cosine-restarts", {"schedule": "restarts"})
@healthy("MLP", "schedule-one-cycle", {"schedule": "one-cycle", "lr": 0.01}, steps=80)
@healthy("MLP", "schedule-cyclic", {"schedule": "cyclic"}, steps=80)
@healthy("MLP", "weights-averaged-beside", {"average": "beside"})
@faulty(
    "MLP",
    "optim-lion-with-the-rate-of-sgd",
    "update-too-large",
    {"kind": "Lion", "lr": 0.3},
    cure="learning rate",
    also=("exploding-activation", "dead-units", "saturated-units"),
    twin={"kind": "Lion", "lr": 1e-3},
)
@faulty(
    "MLP",
    "optim-adam-epsilon-1000",
    "update-too-small",
    {"kind": "Adam", "lr": 3e-3, "more": {"eps": 1e3}},
    cure="structural",
    twin={"kind": "Adam", "lr": 3e-3},
)
@faulty(
    "MLP",
    "optim-momentum-0.999",
    "update-too-large",
    {"lr": 0.5, "more": {"momentum": 0.999}},
    cure="structural",
    also=("exploding-activation", "exploding-gradient", "dead-units", "non-finite"),
    steps=100,
)
@faulty(
    "MLP",
    "optim-decay-1",
    "vanishing-activation",
    {"more": {"weight_decay": 1.0}},
    cure="weight decay",
    also=("vanishing-gradient", "collapsed-batch"),
    steps=100,
)
@faulty(
    "MLP",
    "schedule-halved-each-step",
    "update-too-small",
    {"schedule": "halved-each-step", "lr": 0.02},
    cure="learning rate",
    steps=80,
    twin={"lr": 0.02},
)
@faulty(
    "MLP",
    "schedule-warmup-never-ends",
    "update-too-small",
    {"schedule": "warmup-of-epochs"},
    cure="learning rate",
)
@faulty(
    "MLP",
    "gradients-clipped-by-value-1e-6",
    "update-too-small",
    {"kind": "ValueClipped"},
    cure="clipping",
    also=("clipping-always", "vanishing-gradient"),
)
@faulty(
    "MLP",
    "weights-averaged-copied-back",
    "update-too-small",
    {"average": "back"},
    cure="structural",
)
def optimized(
    seed: int,
    kind: str = "SGD",
    lr: float = 0.1,
    more: dict[str, Any] | None = None,
    schedule: str | None = None,
    average: str | None = None,
    whole: bool = False,
) -> Run:
    """The digits, two hidden layers of softplus-like units."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 10))
    if kind in ("Lion", "ValueClipped"):
        chosen: torch.optim.Optimizer = (
            Lion(model.parameters(), lr) if kind == "Lion" else ValueClipped(model.parameters(), lr, momentum=0.9)
        )
    else:
        chosen = optimizer_of(model, kind, lr, **(more or {}))
    mean = copy.deepcopy(model).requires_grad_(False)
    plain = digits(seed, 512 if whole else 64)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return plain(0 if whole else step)

    @torch.no_grad()
    def before_step(step: int) -> None:
        for p, q in zip(mean.parameters(), model.parameters(), strict=True):
            p.lerp_(q, 1e-4 if average == "back" else 0.1)
            if average == "back":
                q.copy_(p)

    return Run(
        model,
        chosen,
        batch,
        F.cross_entropy,
        scheduler=None if schedule is None else SCHEDULES[schedule](chosen),
        before_step=None if average is None else before_step,
    )
