"""Flow matching, and sparse autoencoders of activations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import generator
from tests.faults_second._registry import faulty, healthy


class Denoiser(nn.Module):
    """A point of the plane and its time, which goes through two tanh layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.point = nn.Linear(2, 64)
        self.body = nn.Sequential(
            nn.SiLU(), nn.Linear(96, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(torch.cat([self.point(x), self.time(t)], 1))


def ring(made: torch.Generator, size: int) -> Tensor:
    """Points on a circle of radius 1.4, a unit of variance in all."""
    angle = torch.rand(size, generator=made) * 2 * math.pi
    return 1.4 * torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(size, 2, generator=made)


@healthy("diffusion", "flow-matching-of-a-ring", steps=150)
@faulty(
    "diffusion",
    "flow-matching-times-of-0-to-1000",
    "input-scale",
    {"unit": 1000.0},
    cure="normalisation",
    also=("saturated-units",),
    where="<input>*|time*",
    steps=150,
)
def flow_matching(seed: int, unit: float = 1.0) -> Run:
    """The velocity from noise to data."""
    model = Denoiser()

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        made = generator(seed, step)
        x, noise, t = ring(made, 256), torch.randn(256, 2, generator=made), torch.rand(256, 1, generator=made)
        return ((1 - t) * noise + t * x, t * unit), x - noise

    return Run(model, torch.optim.Adam(model.parameters(), lr=5e-3), batch, F.mse_loss)


class SparseAutoencoder(nn.Module):
    def __init__(self, width: int = 32, latents: int = 128) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(width, latents), nn.Linear(latents, width)
        with torch.no_grad():
            self.encode.weight.copy_(self.decode.weight.T)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = F.relu(self.encode(x - self.decode.bias))
        return self.decode(found), found


@healthy("sparse autoencoder", "sae-few-of-many-latents", steps=150)
@faulty(
    "sparse autoencoder",
    "sae-penalty-kills-the-latents",
    "dead-units",
    {"penalty": 0.3},
    cure="structural",
    where="encode*|<root>",
    also=("loss-scale", "vanishing-activation", "no-gradient", "vanishing-gradient"),
    steps=150,
)
def sae(seed: int, penalty: float = 0.01) -> Run:
    """Each activation is a sum of three of sixty-four directions; latents that are 0 for all get no gradient again."""
    directions = F.normalize(torch.randn(64, 32, generator=generator(seed, -1)), dim=1)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = generator(seed, step)
        active = torch.rand(256, 64, generator=made).topk(3).indices
        x = (directions[active] * (0.5 + torch.rand(256, 3, 1, generator=made))).sum(1)
        return x, x

    def loss_fn(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(output[0], target) + penalty * output[1].abs().sum(1).mean()

    def metric(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(output[0], target) / target.var()

    model = SparseAutoencoder()
    return Run(model, torch.optim.Adam(model.parameters(), lr=1e-2), batch, loss_fn, metric)
