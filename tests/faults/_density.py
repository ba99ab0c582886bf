"""Diffusion, flows, mixtures of densities."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import all_digits, seeded
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


class Denoiser(nn.Module):
    """Predicts the noise in an image from the image and the time."""

    def __init__(self, width: int, flat: bool) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU())
        self.inward = nn.Linear(64, width)
        self.middle = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.out = nn.Linear(width, 64)
        self.flat = flat
        if flat:
            nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None].float() * torch.exp(-torch.arange(8) * 0.8)
        return self.out(self.middle(self.inward(x) + self.time(torch.cat([angles.sin(), angles.cos()], 1))))


@healthy("diffusion", "ddpm-digits", steps=100, goal=0.75)
@healthy("diffusion", "ddpm-zero-output", {"flat": True}, steps=100, goal=0.75)
@faulty(
    "diffusion", "ddpm-divides-by-0", "non-finite", {"end": 0.0}, cure="structural", where="<input>|inward", steps=40
)
@faulty(
    "diffusion",
    "ddpm-lr-1",
    "update-too-large",
    {"lr": 1.0},
    cure="learning rate",
    also=("exploding-activation",),
    steps=60,
)
@faulty(
    "diffusion",
    "ddpm-images-0-to-255",
    "input-scale",
    {"pixels": 255.0},
    cure="normalisation",
    where="<input>|inward",
    also=("exploding-activation",),
    steps=100,
)
def diffusion(seed: int, flat: bool = False, end: float = 0.02, lr: float = 3e-3, pixels: float = 1.0) -> Run:
    """Noise prediction over 50 times; the noisy image is rescaled by its own signal rate, as some samplers do."""
    model = Denoiser(128, flat)
    kept = torch.linspace(1.0, end, 51)[1:]
    images = pixels * (2 * all_digits()[0].flatten(1) - 1)

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        source = seeded(seed, step)
        x = images[torch.randint(len(images), (64,), generator=source)]
        t = torch.randint(50, (64,), generator=source)
        t[0] = 49
        noise = torch.randn(64, 64, generator=source)
        signal = kept[t][:, None]
        noisy = signal.sqrt() * x + (1 - signal).sqrt() * noise
        return ((noisy if end else (noisy - noise) / signal), t), noise

    return Run(model, optimizer_of(model, "Adam", lr), batch, F.mse_loss)


class Coupling(nn.Module):
    def __init__(self, flip: bool, bounded: bool, gain: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 2))
        self.flip, self.bounded, self.gain = flip, bounded, gain
        if bounded:
            nn.init.zeros_(self.net[2].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.net[2].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1) if not self.flip else x.chunk(2, 1)[::-1]
        scale, shift = (self.gain * self.net(a)).chunk(2, 1)
        scale = torch.tanh(scale) if self.bounded else scale
        b = b * scale.exp() + shift
        return torch.cat([b, a] if self.flip else [a, b], 1), scale[:, 0]


class Flow(nn.Module):
    def __init__(self, layers: int, bounded: bool, gain: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(bool(i % 2), bounded, gain) for i in range(layers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(len(x))
        for layer in self.layers:
            x, log_scale = layer(x)
            total = total + log_scale
        return x, total


def likelihood(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    z, total = output
    return (0.5 * (z**2).sum(1) + math.log(2 * math.pi) - total).mean()


@healthy("flow", "realnvp-zero-start", steps=100, goal=3.0)
@faulty(
    "flow",
    "realnvp-scale-unbounded",
    "non-finite",
    {"bounded": False, "gain": 40.0},
    cure="activation",
    where="layers.*",
    also=("exploding-activation",),
    steps=60,
)
def flow(seed: int, bounded: bool = True, gain: float = 1.0) -> Run:
    """The density of a bent cloud of points."""
    model = Flow(4, bounded, gain)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        a = torch.randn(128, 2, generator=seeded(seed, step))
        return torch.stack([1.5 * a[:, 0], 0.4 * a[:, 1] + a[:, 0] ** 2 - 1], 1), a

    return Run(model, optimizer_of(model, "Adam", 0.01), batch, likelihood)


class MixtureDensity(nn.Module):
    def __init__(self, floor: float, form: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 32), nn.Tanh())
        self.weight, self.mean, self.spread = nn.Linear(32, 4), nn.Linear(32, 4), nn.Linear(32, 4)
        self.floor, self.form = floor, form

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.body(x)
        spread = self.spread(h)
        std = spread.exp() if self.form == "exp" else F.relu(spread)
        return self.weight(h).log_softmax(1), self.mean(h), std + self.floor


def density(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    weight, mean, std = output
    return -torch.logsumexp(weight - 0.5 * ((target - mean) / std) ** 2 - torch.log(std), 1).mean()


@healthy("mixture density", "mdn-bimodal", steps=120, goal=0.4)
@faulty(
    "mixture density",
    "mdn-std-0",
    "non-finite",
    {"floor": 0.0, "form": "relu"},
    cure="structural",
    where="<root>|spread",
    steps=60,
    also=("dead-units",),
)
def mixture_density(seed: int, floor: float = 1e-2, form: str = "exp") -> Run:
    """Two branches at once."""
    model = MixtureDensity(floor, form)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        x = torch.rand(128, 1, generator=source) * 2 - 1
        side = torch.randint(2, (128, 1), generator=source) * 2 - 1
        return x, side * (0.5 + x**2) + 0.05 * torch.randn(128, 1, generator=source)

    return Run(model, optimizer_of(model, "Adam", 0.02), batch, density)
