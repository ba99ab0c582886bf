"""Eight bits, plain convolutions, masks."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import generator, images
from tests.faults_second._registry import faulty, healthy


class Quantized(torch.autograd.Function):
    """Round to multiples of `scale`; backward, the gradient passes through, or over the scale as if it were x/scale."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: float, divide: bool) -> Tensor:
        ctx.factor = 1 / scale if divide else 1.0  # type: ignore[attr-defined]
        return (x / scale).round() * scale

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.factor, None, None  # type: ignore[attr-defined]


class QuantizedLinear(nn.Linear):
    def __init__(self, inside: int, outside: int, divide: bool) -> None:
        super().__init__(inside, outside)
        self.divide = divide

    def forward(self, x: Tensor) -> Tensor:
        weight = Quantized.apply(self.weight, 1 / 64, False)
        return F.linear(Quantized.apply(x, 1 / 16, self.divide), weight, self.bias)


@healthy("quantized", "eight-bits-straight-through")
@faulty(
    "quantized",
    "eight-bits-scale-left-in-the-gradient",
    "exploding-gradient",
    {"divide": True},
    cure="structural",
    also=("update-too-large", "dead-units", "exploding-activation"),
)
def quantized(seed: int, divide: bool = False) -> Run:
    sizes = (64, 48, 48, 48, 10)
    layers: list[nn.Module] = [nn.Flatten()]
    for inside, outside in itertools.pairwise(sizes):
        layers += [QuantizedLinear(inside, outside, divide), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    return Run(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), images(seed), F.cross_entropy)


@healthy("CNN", "plain-12-he", {"he": True}, steps=60)
@faulty(
    "CNN",
    "plain-12-default-sgd",
    "default-init",
    {},
    twin={"he": True},
    cure="init",
    also=("vanishing-gradient", "vanishing-activation", "init-mismatch"),
    steps=60,
)
def plain(seed: int, he: bool = False) -> Run:
    """VGG without norms, as `nn.Conv2d` comes."""
    layers: list[nn.Module] = []
    for place in range(12):
        layers += [nn.Conv2d(1 if place == 0 else 12, 12, 3, 2 if place == 4 else 1, 1), nn.LeakyReLU(0.01)]
        if he:
            nn.init.kaiming_normal_(layers[-2].weight, a=0.01)
            nn.init.zeros_(layers[-2].bias)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 10))
    return Run(model, torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9), images(seed, 32), F.cross_entropy)


@healthy("segmentation", "masks-of-few-pixels-focal", goal=0.02)
@healthy("segmentation", "masks-of-few-pixels-prior-bias", {"prior": -3.0, "gamma": 0.0})
@faulty(
    "segmentation",
    "focal-power-of-a-half",
    "non-finite",
    {"gamma": 0.5, "lr": 0.1},
    twin={"lr": 0.1},
    cure="structural",
    also=("gradient-spike", "exploding-gradient"),
)
def segmentation(seed: int, prior: float = 0.0, gamma: float = 2.0, lr: float = 1e-2) -> Run:
    """Bright pixels; a power below 1 of (1 - p) has no slope where p reaches 1."""
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 1))
    nn.init.constant_(model[2].bias, prior)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(16, 1, 12, 12, generator=generator(seed, step))
        return x * 3, (F.avg_pool2d(x, 3, 1, 1) > 0.6).float()

    def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
        p = logits.sigmoid()
        right = p * target + (1 - p) * (1 - target)
        found = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return ((1 - right) ** gamma * found).mean() if gamma else found.mean()

    return Run(model, torch.optim.Adam(model.parameters(), lr=lr), batch, loss_fn)
