"""Fields over coordinates: sine networks, Fourier features, equations."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import seeded
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


class Sine(nn.Module):
    def __init__(self, omega: float) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * x)


@healthy("SIREN", "siren-sitzmann", steps=150, goal=0.05)
@healthy("SIREN", "fourier-features", {"omega": None}, steps=150, goal=0.1)
@faulty(
    "SIREN",
    "siren-40-default-init",
    "init-mismatch",
    {"scale": 16.0, "omega": 40.0},
    cure="init",
    where="2|4|0",
    also=("exploding-gradient",),
    twin={"omega": 40.0},
    steps=150,
)
@faulty(
    "SIREN",
    "siren-coordinates-in-pixels",
    "input-scale",
    {"pixels": 128.0},
    cure="normalisation",
    where="<input>|0|1",
    steps=150,
)
def field(seed: int, omega: float | None = 15.0, scale: float = 1.0, pixels: float = 1.0, width: int = 48) -> Run:
    """A wave on a line by its coordinate."""
    layers: list[nn.Module] = []
    for i in range(3):
        layers.append(nn.Linear(1 if i == 0 else width, width))
        layers.append(Sine(omega) if omega else nn.ReLU())
    model = nn.Sequential(*layers, nn.Linear(width, 1))
    if omega:
        for i in range(0, 7, 2):
            bound = 1.0 if i == 0 else scale * math.sqrt(6 / width) / omega
            nn.init.uniform_(model[i].weight, -bound, bound)  # type: ignore[arg-type]
    else:
        model[0] = nn.Linear(16, width)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(256, 1, generator=seeded(seed, step)) * 2 - 1
        y = torch.sin(12 * x) * (0.5 + 0.5 * x) + 0.3 * torch.cos(25 * x)
        if omega is None:
            angles = x * 2.0 ** torch.arange(8) * 1.5
            x = torch.cat([angles.sin(), angles.cos()], 1)
        return pixels * x, y

    return Run(model, optimizer_of(model, "Adam", 1e-3 if omega else 5e-3), batch, F.mse_loss)


class Physics(nn.Module):
    """Gives u and u' at each point: the gradient's gradient is trained."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        self.scale = scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        u = self.net(self.scale * x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return u, slope


@healthy("PINN", "pinn-decay", steps=100)
@faulty(
    "PINN",
    "pinn-time-in-milliseconds",
    "input-scale",
    {"scale": 1000.0},
    cure="normalisation",
    where="<input>|net.0|net.1",
    also=("saturated-units",),
    steps=100,
)
def physics(seed: int, scale: float = 1.0, weight: float = 1.0) -> Run:
    """u' = −u, u(0) = 1."""
    model = Physics(scale)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = 2 * torch.rand(64, 1, generator=seeded(seed, step))
        x[0] = 0
        return x, torch.exp(-x)

    def loss(output: Any, target: Tensor) -> Tensor:
        u, slope = output
        return (slope + u).square().mean() + weight * (u[0] - 1).square().mean()

    return Run(
        model, optimizer_of(model, "Adam", 5e-3), batch, loss, metric=lambda output, y: (output[0] - y).square().mean()
    )
