"""Norms, exponentials, gradients in half precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import batches, generator, images, standardized, table
from tests.faults_second._registry import faulty, healthy


class HalfNorm(nn.Module):
    """Root mean square in half precision, of the features as they are or in float32."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        self.half_ = half

    def forward(self, x: Tensor) -> Tensor:
        y = x.half() if self.half_ else x
        return (y * (y.pow(2).mean(-1, keepdim=True) + 1e-10).rsqrt()).float()


@healthy("MLP", "rms-norm-of-small-features-in-float32")
@faulty(
    "MLP",
    "rms-norm-of-small-features-in-half",
    "dtype-underflow",
    {"half": True},
    cure="structural",
    where="1",
    also=("non-finite", "exploding-activation", "exploding-gradient", "dtype-overflow"),
)
def half_norm(seed: int, half: bool = False) -> Run:
    """Squares of 1e-4 are 0 in half precision, and so is the 1e-10 added to them."""
    x, y = table("digits")
    lift = nn.Linear(64, 64)
    nn.init.normal_(lift.weight, std=1e-5)
    nn.init.zeros_(lift.bias)
    model = nn.Sequential(lift, HalfNorm(half), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD([{"params": lift.parameters(), "lr": 0.0}, {"params": model[2:].parameters()}], lr=0.1)
    return Run(model, optimizer, batches(standardized(x), y, seed), F.cross_entropy)


class Rates(nn.Module):
    """Counts per hour: exp of a linear layer, in half precision or not."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        self.half_ = half

    def forward(self, x: Tensor) -> Tensor:
        found = self.body(x).squeeze(1)
        return found.half().exp().float() if self.half_ else found.exp()


@healthy("MLP", "rates-in-float32", steps=150)
@faulty(
    "MLP",
    "rates-in-half",
    "dtype-overflow",
    {"half": True},
    cure="structural",
    also=("non-finite",),
    steps=150,
)
def rates(seed: int, half: bool = False) -> Run:
    """Counts of up to 100 000, which half precision ends below; they grow into it while they are learned."""
    slope = torch.randn(8, generator=generator(2, 2))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(128, 8, generator=generator(seed, step))
        return x, (7 + 4 * torch.tanh(x @ slope / 2)).exp()

    model = Rates(half)

    def loss_fn(rate: Tensor, count: Tensor) -> Tensor:
        return (rate / count - (rate / count).log() - 1).clamp_max(1e6).mean()

    return Run(model, torch.optim.Adam(model.parameters(), lr=1e-2), batch, loss_fn)


@healthy("CNN", "float64-all-the-way", {"dtype": torch.float64})
@healthy("CNN", "fp16-autocast-with-scaler", {"scale": 2.0**12}, steps=40)
@faulty(
    "CNN",
    "fp16-static-scale-of-one",
    "dtype-underflow",
    {"scale": 1.0},
    twin={"scale": 2.0**12},
    cure="loss-scale",
    also=("vanishing-gradient", "loss-scale", "no-gradient", "update-too-small", "uneven-learning"),
    steps=40,
)
def segments(seed: int, scale: float = 0.0, dtype: torch.dtype = torch.float32) -> Run:
    """A loss that a million pixels share: it is divided by their number, and its gradient is below half precision."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    plain = images(seed)
    model = model.to(dtype)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        return x.to(dtype), y

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) / (1e6 if scale else 1)

    optimizer = torch.optim.SGD(model.parameters(), lr=1e5 if scale else 0.1, momentum=0.0 if scale else 0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6) if scale else None
    return Run(model, optimizer, batch, loss_fn, scaler=scaler, autocast=torch.float16 if scale else None)
