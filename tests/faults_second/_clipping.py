"""Clipping by oneself, glitches, resumed runs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import generator, images, standardized, table
from tests.faults_second._registry import faulty, healthy


class Private(torch.optim.SGD):
    """Gradient descent on the mean of per-example gradients, each clipped to a norm, and noise."""

    def __init__(self, model: nn.Module, lr: float, norm: float, noise: float) -> None:
        super().__init__(model.parameters(), lr=lr)
        self.norm, self.noise = norm, noise

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        total = torch.stack([p.grad.norm() for group in self.param_groups for p in group["params"]]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_((self.norm / total).clamp_max(1)).add_(torch.randn_like(p) * self.noise * self.norm / 64)
        super().step()


@healthy("MLP", "private-clip-1", steps=100)
@faulty(
    "MLP",
    "private-clip-0.003",
    "clipping-always",
    {"norm": 3e-3},
    cure="clip",
    also=("update-too-small",),
    steps=100,
)
def private(seed: int, norm: float = 1.0) -> Run:
    """The clipping of the whole batch by one's own optimizer; the rate was not raised for the small norm."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
    return Run(model, Private(model, 0.3, norm, 0.02), images(seed), F.cross_entropy)


@healthy("MLP", "clip-by-norm-1-nearly-always", {"clip": 1.0, "lr": 0.1}, steps=100)
@faulty(
    "MLP",
    "clip-1e-3-momentum",
    "clipping-always",
    {"clip": 1e-3, "lr": 0.1},
    twin={"clip": 1.0, "lr": 0.1},
    cure="clip",
    also=("update-too-small",),
    steps=100,
)
@faulty(
    "MLP",
    "glitch-of-a-sensor-no-clip",
    "gradient-spike",
    {"clip": None, "lr": 0.03, "glitch": 40},
    twin={"clip": 10.0, "lr": 0.03, "glitch": 40},
    cure="clip",
    also=("exploding-gradient", "exploding-activation", "update-too-large", "dead-units", "non-finite", "input-scale"),
    start=40,
    steps=100,
)
def clipped(seed: int, clip: float | None, lr: float, glitch: int = -1) -> Run:
    """Squared errors of a machine's load from ten sensors, one of which fails once and shows 1e4."""
    x, _ = table("breast_cancer")
    x = standardized(x)
    model = nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x), (64,), generator=generator(seed, step))
        inputs = x[rows, :20].clone()
        if step == glitch:
            inputs[5, 3] = 1e4
        return inputs, x[rows][:, [20, 22, 23, 27]]

    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return Run(model, optimizer, batch, F.mse_loss, clip=clip)


@healthy("MLP", "resumed-with-the-old-state", steps=120)
@faulty(
    "MLP",
    "resumed-at-the-rate-of-another-config",
    "update-too-large",
    {"after": 0.5},
    cure="lr",
    also=("dead-units", "exploding-activation", "saturated-units", "gradient-spike"),
    start=60,
    steps=120,
)
def resumed(seed: int, after: float | None = None) -> Run:
    """At step 60 the run is resumed from a checkpoint, in which the rate was 2e-3."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def before_step(step: int) -> None:
        if step == 60:
            optimizer.load_state_dict(optimizer.state_dict())
            if after is not None:
                optimizer.param_groups[0]["lr"] = after

    return Run(model, optimizer, images(seed), F.cross_entropy, before_step=before_step)
