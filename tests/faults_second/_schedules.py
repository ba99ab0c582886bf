"""Rates, schedules, accumulation, momentum: what happens between backward and step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import images
from tests.faults_second._registry import faulty, healthy


def net(act: type[nn.Module] = nn.ReLU, norm: bool = False) -> nn.Sequential:
    norms = [nn.BatchNorm2d(16)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        *norms,
        act(),
        nn.Conv2d(16, 16, 3, 2, 1),
        act(),
        nn.Flatten(),
        nn.Linear(256, 48),
        act(),
        nn.Linear(48, 10),
    )


class Plateau:
    """ReduceLROnPlateau fed with the loss of each step."""

    def __init__(self, optimizer: torch.optim.Optimizer, mode: str) -> None:
        self.inner = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, factor=0.1, patience=10)  # type: ignore[arg-type]
        self.loss = 0.0

    def step(self) -> None:
        self.inner.step(self.loss)


@healthy("CNN", "plateau-mode-min", steps=120)
@faulty(
    "CNN",
    "plateau-mode-max",
    "update-too-small",
    {"mode": "max"},
    cure="lr",
    start=15,
    steps=120,
)
def plateau(seed: int, mode: str = "min") -> Run:
    """With mode max each fall of the loss is a bad step: every eleven steps the rate loses a digit."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    scheduler = Plateau(optimizer, mode)

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(output, target)
        scheduler.loss = loss.item()
        return loss

    return Run(model, optimizer, images(seed), loss_fn, scheduler=scheduler)


@healthy("CNN", "epochs-of-20-steps-decayed", steps=150)
@faulty(
    "CNN",
    "epoch-schedule-stepped-by-batch",
    "update-too-small",
    {"by_batch": True},
    cure="lr",
    steps=150,
)
def epochs(seed: int, by_batch: bool = False) -> Run:
    """A rate that is to lose a fifth each epoch loses it each step."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    gamma = 0.8 if by_batch else 0.8 ** (1 / 20)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
    return Run(model, optimizer, images(seed), F.cross_entropy, scheduler=scheduler)


@healthy("CNN", "sgd-at-0.1")
@healthy("CNN", "sgd-nesterov-batchnorm", {"lr": 0.1, "momentum": 0.9, "norm": True})
@faulty("CNN", "sgd-with-the-rate-of-adam", "update-too-small", {"lr": 3e-4}, cure="lr", where="*")
@faulty(
    "CNN",
    "sgd-momentum-0.99-at-0.1",
    "update-too-large",
    {"momentum": 0.99},
    cure="lr",
    also=("dead-units", "exploding-gradient", "exploding-activation"),
)
def sgd(seed: int, lr: float = 0.1, momentum: float = 0.0, norm: bool = False) -> Run:
    model = net(norm=norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, nesterov=norm)
    return Run(model, optimizer, images(seed), F.cross_entropy)


@healthy("CNN", "validation-gradients-cleared", steps=100)
@faulty(
    "CNN",
    "validation-gradients-left-in",
    "gradient-spike",
    {"clear": False},
    cure="structural",
    also=("update-too-large", "exploding-gradient", "dead-units"),
    start=25,
    steps=100,
)
def validation(seed: int, clear: bool = True) -> Run:
    """Every 25 steps the gradient of the validation data is looked at and, here, left behind; zero_grad comes last."""
    model, plain = net(), images(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def loop(run: Run, steps: int, scope: Any) -> list[float]:
        losses = []
        for step in range(steps):
            if step and step % 25 == 0:
                for x, y in map(plain, range(9000, 9020)):
                    run.loss_fn(model(x), y).backward()
                if clear:
                    optimizer.zero_grad()
            x, y = run.batch(step)
            loss = run.loss_fn(model(x), y)
            if scope is not None:
                scope.note(loss=loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    return Run(model, optimizer, plain, F.cross_entropy, loop=loop)


@healthy("CNN", "accumulated-over-8", steps=60)
@faulty(
    "CNN",
    "accumulated-over-8-divided-again-by-64",
    "loss-scale",
    {"again": 64.0},
    cure="loss-scale",
    also=("update-too-small",),
    steps=60,
)
def accumulated(seed: int, again: float = 1.0) -> Run:
    """Small batches; the loss, a mean already, is divided by the size of the batch once more."""
    model = net()

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) / again

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Run(model, optimizer, images(seed, 16), loss_fn, F.cross_entropy, accumulation=8)
