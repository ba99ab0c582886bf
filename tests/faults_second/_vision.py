"""Images: detection heads, pruning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import generator, images
from tests.faults_second._registry import faulty, healthy


def small(width: int = 16, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        act(),
        nn.Conv2d(width, width, 3, 2, 1),
        act(),
        nn.Conv2d(width, width, 3, 2, 1),
        act(),
        nn.Flatten(),
        nn.Linear(4 * width, 64),
        act(),
    )


class Detector(nn.Module):
    """Which of three shapes there is, and where its corner lies."""

    def __init__(self, squash: bool) -> None:
        super().__init__()
        self.trunk, self.kind, self.box = small(), nn.Linear(64, 3), nn.Linear(64, 2)
        self.squash = squash

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.trunk(x)
        box = self.box(found)
        return self.kind(found), box.sigmoid() if self.squash else box


@healthy("detector", "boxes-in-fractions", {"pixels": False}, steps=150)
@healthy("detector", "boxes-in-fractions-of-a-sigmoid", {"pixels": False, "squash": True}, steps=150)
@faulty(
    "detector",
    "boxes-in-pixels-starve-the-class",
    "uneven-learning",
    {"pixels": True, "clip": 1.0},
    twin={"pixels": False, "clip": 1.0},
    cure="structural",
    also=("loss-scale", "clipping-always", "output-pairing"),
    steps=150,
)
@faulty(
    "detector",
    "boxes-in-pixels-of-a-sigmoid",
    "output-pairing",
    {"pixels": True, "squash": True},
    twin={"pixels": False, "squash": True},
    cure="structural",
    also=("saturated-units", "loss-scale", "uneven-learning"),
    where="box*|<root>|trunk*",
    steps=150,
)
def detector(seed: int, pixels: bool, squash: bool = False, clip: float | None = None) -> Run:
    """Corners of 0 to 1, or squared errors in pixels of 640; the metric has the corner's error in fractions."""
    model, unit = Detector(squash), 640.0 if pixels else 1.0
    shapes = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 1], [1, 1, 0, 0]]).view(3, 2, 2)

    def batch(step: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        made = generator(seed, step)
        y, corner = torch.randint(3, (48,), generator=made), torch.randint(7, (48, 2), generator=made)
        x = 0.1 * torch.randn(48, 1, 8, 8, generator=made)
        for place in range(48):
            row, column = corner[place]
            x[place, 0, row : row + 2, column : column + 2] += shapes[y[place]]
        return x, (y, corner / 6)

    def loss_fn(output: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        box = output[1] if squash else output[1] * unit
        return F.cross_entropy(output[0], target[0]) + F.mse_loss(box, target[1] * unit)

    def metric(output: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(output[0], target[0]) + F.mse_loss(output[1], target[1])

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Run(model, optimizer, batch, loss_fn, metric, clip=clip)


@healthy("CNN", "pruned-half-of-each-layer", {"keep": 0.5}, steps=120)
@faulty(
    "CNN",
    "pruned-by-one-threshold-a-layer-gone",
    "dead-units",
    {"threshold": 0.12},
    twin={"keep": 0.5},
    cure="structural",
    also=("vanishing-activation", "no-gradient", "collapsed-batch", "vanishing-gradient", "uneven-learning"),
    where="[0-9]",
    start=60,
    steps=120,
)
def pruned(seed: int, keep: float = 1.0, threshold: float = 0.0) -> Run:
    """At step 60 the small weights go for good; one threshold for all layers empties the widest convolution."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    layers = [model[0], model[2], model[5]]
    masks = [torch.ones_like(layer.weight) for layer in layers]

    def before_step(step: int) -> None:
        for place, layer in enumerate(layers):
            if step == 60:
                size = layer.weight.detach().abs()
                masks[place] = (size > (threshold or size.quantile(1 - keep))).float()
                if threshold:
                    with torch.no_grad():
                        layer.bias.zero_()
            with torch.no_grad():
                layer.weight.mul_(masks[place])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    return Run(model, optimizer, images(seed), F.cross_entropy, before_step=before_step)
