"""Convolutional networks on the handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import digits, from_step
from tests.faults._parts import ACTIVATIONS, Detach, initialize, optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda n: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "group": lambda n: nn.GroupNorm(4, n),
}


class Standardize(nn.Module):
    """Each image by its own mean and standard deviation, as many write it."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + self.epsilon)


class Plain(nn.Module):
    """Convolutions, one pooling, global average pooling, a linear head."""

    def __init__(self, depth: int, width: int, act: str, norm: str, pool: str = "avg") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Conv2d(1 if i == 0 else width, width, 3, padding=1)]
            layers += [] if norm == "none" else [NORMS[norm](width)]
            layers += [ACTIVATIONS[act]()]
            if i == 0:
                layers += [nn.AvgPool2d(2) if pool == "avg" else nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


MEAN, STD = 0.305, 0.376


@healthy("CNN", "cnn-2-max-pool")
@healthy("CNN", "cnn-3-batchnorm", {"depth": 3, "norm": "batch"})
@healthy("CNN", "cnn-6-batchnorm-sgd", {"depth": 6, "norm": "batch", "kind": "SGD", "lr": 0.02})
@healthy("CNN", "cnn-4-average-pool", {"depth": 4, "pool": "avg"})
@healthy("CNN", "cnn-4-groupnorm-gelu", {"depth": 4, "norm": "group", "act": "gelu"})
@healthy("CNN", "cnn-8-he", {"depth": 8, "init": "he", "lr": 1e-3})
@healthy("CNN", "cnn-4-elu-raw-0-to-1", {"depth": 4, "act": "elu", "mean": 0.0, "std": 1.0})
@healthy("CNN", "cnn-batchnorm-batch-of-4", {"depth": 3, "norm": "batch", "size": 4, "lr": 2e-3}, steps=150)
@healthy("CNN", "cnn-2-orthogonal-silu", {"depth": 2, "act": "silu", "init": "orthogonal"})
@faulty(
    "CNN",
    "cnn-14-default",
    "default-init",
    {"depth": 14, "lr": 1e-3},
    cure="init",
    also=("vanishing-gradient", "init-mismatch"),
    twin={"depth": 14, "lr": 1e-3, "init": "he"},
)
@faulty(
    "CNN",
    "cnn-6-sigmoid",
    "vanishing-gradient",
    {"depth": 6, "act": "sigmoid"},
    cure="activation or norm",
    also=("init-mismatch", "default-init", "collapsed-batch"),
    twin={"depth": 6, "act": "tanh", "init": "glorot"},
)
@faulty(
    "CNN",
    "cnn-8-std-1",
    "exploding-activation",
    {"depth": 8, "init": 1.0, "lr": 1e-3},
    cure="init",
    also=("exploding-gradient", "init-mismatch"),
    where="features.[0-6]",
    twin={"depth": 8, "init": "he", "lr": 1e-3},
)
@faulty(
    "CNN",
    "cnn-10-std-tiny",
    "vanishing-activation",
    {"depth": 10, "init": 0.02, "lr": 1e-3},
    cure="init",
    also=("vanishing-gradient", "init-mismatch"),
    twin={"depth": 10, "init": "he", "lr": 1e-3},
)
@faulty(
    "CNN",
    "cnn-pixels-0-to-255",
    "input-scale",
    {"mean": 0.0, "std": 1 / 255, "kind": "SGD", "lr": 0.02},
    cure="normalisation",
    where="<input>|features.0",
    also=("exploding-activation", "dead-units"),
    twin={"kind": "SGD", "lr": 0.02},
)
@faulty(
    "CNN",
    "cnn-bias-minus-4",
    "dead-units",
    {"bias": -4.0, "init": "he"},
    cure="init",
    where="features.1|features.2|features.0",
)
@faulty(
    "CNN",
    "cnn-lr-half",
    "update-too-large",
    {"lr": 0.5},
    cure="learning rate",
    also=("dead-units", "exploding-activation"),
)
@faulty(
    "CNN",
    "cnn-detached-features",
    "no-gradient",
    {"cut": 6, "depth": 3, "lr": 1e-3},
    cure="structural",
    where="features.*",
    twin={"depth": 3, "lr": 1e-3},
)
@faulty(
    "CNN",
    "cnn-constant-image",
    "non-finite",
    {"epsilon": 0.0, "constant_at": 20},
    start=20,
    cure="structural",
    where="0",
    twin={"epsilon": 0.0},
    steps=50,
)
@faulty(
    "CNN",
    "cnn-late-not-normalized",
    "input-scale",
    {"raw_at": 25},
    start=25,
    cure="normalisation",
    where="<input>|features.0",
    also=("gradient-spike", "exploding-activation"),
)
@faulty(
    "CNN", "cnn-filters-alike", "symmetric-units", {"alike": True}, cure="init", where="features.0|features.0.weight"
)
@faulty(
    "CNN",
    "cnn-one-bad-batch",
    "gradient-spike",
    {"raw_at": 30, "raw_until": 31, "kind": "SGD", "lr": 0.02},
    start=30,
    cure="clipping",
    also=("input-scale",),
    where="<input>|features.0",
    twin={"kind": "SGD", "lr": 0.02},
)
@faulty(
    "CNN",
    "cnn-features-slow",
    "uneven-learning",
    {"kind": "SGD", "lr": 0.02, "slow": 1e-5, "depth": 4},
    cure="learning rate",
    also=("update-too-small",),
    where="features.*",
    twin={"kind": "SGD", "lr": 0.02, "depth": 4},
)
def convolutional(
    seed: int,
    depth: int = 2,
    width: int = 16,
    act: str = "relu",
    norm: str = "none",
    pool: str = "max",
    init: Any = "default",
    bias: float = 0.0,
    kind: str = "Adam",
    lr: float = 4e-3,
    size: int = 32,
    mean: float = MEAN,
    std: float = STD,
    cut: int | None = None,
    epsilon: float | None = None,
    constant_at: int | None = None,
    raw_at: int | None = None,
    raw_until: int = 1 << 30,
    slow: float | None = None,
    alike: bool = False,
) -> Run:
    """Ten digits."""
    model: nn.Module = initialize(Plain(depth, width, act, norm, pool), init, bias)
    assert isinstance(model, Plain)
    if alike:
        for p in model.features.parameters():
            nn.init.constant_(p, 0.05)
    if cut is not None:
        model.features.insert(cut, Detach())
    if epsilon is not None:
        model = nn.Sequential(Standardize(epsilon), model)
    batch = digits(seed, size, mean, std)
    if constant_at is not None:  # one image of the batch is blank

        def blank(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cat([torch.zeros_like(x[:1]), x[1:]]), y

        batch = from_step(batch, constant_at, blank, constant_at + 1)
    if raw_at is not None:
        batch = from_step(batch, raw_at, lambda x, y: ((x * std + mean) * 255, y), raw_until)
    groups: Any = model
    if slow is not None:
        groups = [
            {"params": list(model.features.parameters()), "lr": lr * slow},
            {"params": list(model.head.parameters())},
        ]
    return Run(model, optimizer_of(groups, kind, lr), batch, F.cross_entropy)
