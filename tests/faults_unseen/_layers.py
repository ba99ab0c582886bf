"""Layers under test on the digits: residual branches, depthwise convolutions, norms of weights, and some rarer ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.faults._data import digits
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy


class Branch(nn.Module):
    """A residual block that is left out at random; its branch is scaled so that its mean stays."""

    def __init__(self, width: int, drop: float, mistake: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, width), nn.Mish(), nn.Linear(width, width))
        self.drop, self.mistake = drop, mistake

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.drop and self.training:
            keep = 1 - self.drop
            mask = (torch.rand(len(x), 1) < keep).float()
            y = y * mask / (self.drop if self.mistake == "drop" else keep)
        return 2 * (x + y) if self.mistake == "double" else x + y


@healthy("ResNet", "stochastic-depth-mish")
@healthy("ResNet", "residual-mish-no-norm", {"drop": 0.0})
@faulty(
    "ResNet",
    "stochastic-depth-scaled-by-its-drop",
    "exploding-activation",
    {"mistake": "drop", "drop": 0.02},
    cure="structural",
    also=("exploding-gradient", "init-mismatch"),
    where="blocks*",
)
@faulty(
    "ResNet",
    "residual-sum-doubled",
    "exploding-activation",
    {"mistake": "double", "drop": 0.0},
    cure="structural",
    also=("exploding-gradient", "init-mismatch"),
    where="blocks*",
    twin={"drop": 0.0},
)
def residual(seed: int, drop: float = 0.2, mistake: str = "") -> Run:
    """Twelve residual blocks on the pixels."""
    model = nn.Sequential()
    model.add_module("stem", nn.Sequential(nn.Flatten(), nn.Linear(64, 48)))
    model.add_module("blocks", nn.Sequential(*(Branch(48, drop, mistake) for _ in range(12))))
    model.add_module("head", nn.Linear(48, 10))
    return Run(model, optimizer_of(model, "Adam", 2e-3), digits(seed, 64, 0.3, 0.38), F.cross_entropy)


def depthwise(width: int, act: type[nn.Module], init: str) -> nn.Module:
    """3×3 of each channel alone; PyTorch's `fan_out` does not divide by the groups."""
    conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
    mode: Any = "fan_out" if init == "fan_out" else "fan_in"
    nn.init.kaiming_normal_(conv.weight, mode=mode, nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, act())


@healthy("CNN", "depthwise-hardswish")
@faulty(
    "CNN",
    "depthwise-fan-out-of-all-channels",
    "init-mismatch",
    {"init": "fan_out"},
    cure="init",
    also=("vanishing-activation", "vanishing-gradient"),
)
def depthwise_stack(seed: int, init: str = "fan_in") -> Run:
    """Six depthwise convolutions between a first and a last layer."""
    body = [depthwise(48, nn.Hardswish, init) for _ in range(6)]
    model = nn.Sequential(nn.Conv2d(1, 48, 3, padding=1), *body, nn.AdaptiveAvgPool2d(4), nn.Flatten())
    model.append(nn.Linear(48 * 16, 10))
    return Run(model, optimizer_of(model, "SGD", 0.05), digits(seed, 64, 0.3, 0.38), F.cross_entropy)


class Weighted(nn.Sequential):
    """Linear layers under a parametrization of their weights."""


@healthy("MLP", "weight-norm-celu")
@healthy("MLP", "spectral-norm-4", {"kind": "spectral", "act": nn.LeakyReLU, "lr": 0.01})
@faulty(
    "MLP",
    "weight-norm-all-scales-0",
    "vanishing-activation",
    {"scale": 0.0},
    cure="init",
    also=("no-gradient", "init-mismatch", "vanishing-gradient", "symmetric-units"),
)
@faulty(
    "MLP",
    "spectral-norm-16-relu",
    "vanishing-gradient",
    {"kind": "spectral", "act": nn.ReLU, "depth": 16},
    cure="structural",
    also=("vanishing-activation", "init-mismatch", "collapsed-batch"),
    twin={"kind": "spectral", "act": nn.ReLU},
)
def parametrized(
    seed: int, kind: str = "weight", act: Any = nn.CELU, depth: int = 4, scale: float | None = None, lr: float = 3e-3
) -> Run:
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth):
        linear = nn.Linear(64, 64 if i < depth - 1 else 10)
        if kind == "weight":
            linear = weight_norm(linear)
        elif i < depth - 1:  # the head may be as steep as it likes
            linear = spectral_norm(linear)
        if scale is not None:
            nn.init.constant_(linear.parametrizations.weight.original0, scale)
            nn.init.zeros_(linear.bias)
        layers += [linear, act()] if i < depth - 1 else [linear]
    model = Weighted(*layers)
    return Run(model, optimizer_of(model, "Adam", lr), digits(seed, 64, 0.3, 0.38), F.cross_entropy)


class Sign(torch.autograd.Function):
    """The sign, with the gradient of a hard tanh."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x < 0, -1.0, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class Dense(nn.Module):
    """A layer of DenseNet: what it finds is put beside what it was given."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inside), nn.Conv2d(inside, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Maxout(nn.Module):
    def __init__(self, inside: int, outside: int, pieces: int = 3) -> None:
        super().__init__()
        self.linear, self.pieces = nn.Linear(inside, outside * pieces), pieces

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(-1, (-1, self.pieces)).amax(-1)


class Binarized(nn.Module):
    """Hidden units of −1 and 1, trained through a straight-through estimator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, 10)
        self.norm = nn.BatchNorm1d(96)

    def forward(self, x: Tensor) -> Tensor:
        x = Sign.apply(self.norm(self.first(x.flatten(1))))  # type: ignore[no-untyped-call]
        return self.head(F.hardtanh(self.second(x)))


@healthy("DenseNet", "densenet-digits")
@healthy("MLP", "maxout-digits", {"kind": "maxout"})
@healthy("binary net", "binarized-straight-through", {"kind": "binary"})
@healthy("MLP", "random-features-readout", {"kind": "random"})
def other(seed: int, kind: str = "dense") -> Run:
    """Kinds of net that need no settings."""
    if kind == "dense":
        layers = [nn.Conv2d(1, 12, 3, 2, 1), *(Dense(12 + 8 * i, 8) for i in range(4)), nn.ReLU()]
        model: nn.Module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(176, 10))
    elif kind == "maxout":
        model = nn.Sequential(nn.Flatten(), Maxout(64, 40), Maxout(40, 40), nn.Linear(40, 10))
    elif kind == "binary":
        model = Binarized()
    else:
        fixed = nn.Linear(64, 256).requires_grad_(False)
        model = nn.Sequential(nn.Flatten(), fixed, nn.Tanh(), nn.Linear(256, 10))
    return Run(model, optimizer_of(model, "Adam", 4e-3), digits(seed), F.cross_entropy)
