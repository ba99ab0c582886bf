"""Residual and depthwise separable networks on the handwritten digits."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._cnn import MEAN, NORMS, STD
from tests.faults._data import digits
from tests.faults._parts import error_rate, initialize, optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


class Block(nn.Module):
    def __init__(self, width: int, norm: str, pre: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=norm == "none")
        self.norm1 = NORMS[norm](width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=norm == "none")
        self.norm2 = NORMS[norm](width)
        self.pre = pre

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self, blocks: int, width: int, norm: str, pre: bool, residual_scale: float = 1.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Block(width, norm, pre) for _ in range(blocks)))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


@healthy("ResNet", "resnet-3-batchnorm")
@healthy("ResNet", "resnet-8-preactivation", {"blocks": 8, "pre": True}, steps=40)
@healthy("ResNet", "resnet-8-zero-gamma", {"blocks": 8, "zero": "gamma"}, steps=40)
@healthy(
    "ResNet", "resnet-16-fixup-like", {"blocks": 16, "norm": "none", "zero": "conv", "pre": True, "lr": 1e-3}, steps=30
)
@healthy("ResNet", "resnet-3-groupnorm-sgd", {"norm": "group", "kind": "SGD", "lr": 0.03})
@faulty(
    "ResNet",
    "resnet-24-without-norm",
    "exploding-activation",
    {"blocks": 24, "norm": "none", "init": "he", "pre": True},
    cure="norm",
    also=("exploding-gradient", "init-mismatch"),
    where="blocks.*",
    steps=20,
    twin={"blocks": 24, "pre": True},
)
@faulty(
    "ResNet",
    "resnet-lr-huge",
    "update-too-large",
    {"kind": "SGD", "lr": 20.0},
    cure="learning rate",
    also=("exploding-activation",),
    twin={"kind": "SGD", "lr": 0.05},
)
@faulty(
    "ResNet",
    "resnet-head-not-in-optimizer",
    "no-gradient",
    {"forget": True, "lr": 1e-3, "constant_head": True},
    cure="structural",
    where="head|head.*",
    twin={"lr": 1e-3, "constant_head": True},
    also=("symmetric-units",),
)
@faulty(
    "ResNet",
    "resnet-clip-tiny",
    "clipping-always",
    {"clip": 1e-3, "kind": "SGD", "lr": 0.03},
    cure="clipping",
    also=("update-too-small",),
    twin={"kind": "SGD", "lr": 0.03},
)
def residual(
    seed: int,
    blocks: int = 3,
    norm: str = "batch",
    pre: bool = False,
    init: Any = "he",
    zero: str = "",
    kind: str = "Adam",
    lr: float = 3e-3,
    forget: bool = False,
    constant_head: bool = False,
    clip: float | None = None,
) -> Run:
    """A residual network on the digits."""
    model = ResNet(blocks, 12, norm, pre)
    initialize(model, init)
    for block in model.blocks:
        if zero == "gamma":
            nn.init.zeros_(block.norm2.weight)  # type: ignore[union-attr, arg-type]
        elif zero == "conv":
            nn.init.zeros_(block.conv2.weight)  # type: ignore[union-attr, arg-type]
    chosen = [p for name, p in model.named_parameters() if not (forget and name.startswith("head"))]
    if constant_head:
        nn.init.zeros_(model.head.weight)
    optimizer = optimizer_of(chosen, kind, lr)
    return Run(model, optimizer, digits(seed, 32, MEAN, STD), F.cross_entropy, clip=clip)


@healthy("CNN", "depthwise-separable")
@faulty(
    "CNN",
    "cnn-logits-relu",
    "output-pairing",
    {"relu": True},
    cure="structural",
    also=("dead-units",),
    where="end|head|<root>",
)
@faulty("CNN", "cnn-softmax-cross-entropy", "output-pairing", {"softmax": True}, cure="structural", where="end|<root>")
def separable(seed: int, relu: bool = False, softmax: bool = False) -> Run:
    """Depthwise and pointwise convolutions."""
    end: nn.Module = nn.ReLU() if relu else nn.Softmax(1) if softmax else nn.Identity()
    layers: list[tuple[str, nn.Module]] = [("stem", nn.Conv2d(1, 16, 3, padding=1)), ("act", nn.ReLU())]
    for i in range(3):
        layers += [
            (f"depth{i}", nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)),
            (f"point{i}", nn.Conv2d(16, 16, 1, bias=False)),
        ]
        layers += [(f"norm{i}", nn.BatchNorm2d(16)), (f"act{i}", nn.ReLU())]
    layers += [("pool", nn.AdaptiveAvgPool2d(2)), ("flat", nn.Flatten()), ("head", nn.Linear(64, 10)), ("end", end)]
    model = nn.Sequential(OrderedDict(layers))
    return Run(
        model, optimizer_of(model, "Adam", 5e-3), digits(seed, 32, MEAN, STD), F.cross_entropy, metric=error_rate
    )
