"""What several papers share: plain networks, scikit-learn's digits, and a training loop."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from gradscope import init

DIGITS = "scikit-learn's digits (8 × 8, 1,437 for training)"


class Digits(NamedTuple):
    """Images `(n, 64)` of mean 0 and variance 1 over the set, and their labels `(n,)`."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@functools.cache
def digits() -> Digits:
    """Four fifths of the 1,797 images for training, in an order of their own."""
    from sklearn.datasets import load_digits  # an extra: only the papers that train need it

    found = load_digits()
    images, labels = torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target)
    images = (images - images.mean()) / images.std()
    order = torch.randperm(len(images), generator=generator(0))
    train, test = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    return Digits(images[train], labels[train], images[test], labels[test])


def generator(seed: int) -> torch.Generator:
    """A generator of its own for each thing that is drawn: no global random state is touched."""
    return torch.Generator().manual_seed(seed)


def plain(
    widths: Sequence[int],
    activation: Callable[[], nn.Module],
    *,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Linear layers between these widths with the activation between them; its weights are not set yet."""
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(widths):
        layers += [skip_init(nn.Linear, into, out, bias=bias, dtype=dtype), activation()]
    return nn.Sequential(*layers[:-1])


def linears(model: nn.Module) -> list[nn.Linear]:
    """The linear layers of a model, in the order of definition."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def draw(model: nn.Module, sigma_w2: float, sigma_b2: float = 0.0, *, seed: int, orthogonal: bool = False) -> nn.Module:
    """Weights of variance sigma_w2/fan_in, or √sigma_w2 times orthogonal ones, and biases of sigma_b2."""
    numbers = generator(seed)
    for layer in linears(model):
        if orthogonal:
            init.orthogonal_(layer.weight, math.sqrt(sigma_w2), generator=numbers)
        else:
            init.VarianceScaling(sigma_w2, "fan_in", "normal")(layer.weight, generator=numbers)
        if layer.bias is not None:
            layer.bias.normal_(0.0, math.sqrt(sigma_b2), generator=numbers)
    return model


def sphere(
    count: int, width: int, mean_square: float = 1.0, *, seed: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Inputs `(count, width)` in random directions, each of exactly this mean square."""
    x = torch.randn(count, width, generator=generator(seed), dtype=torch.float64)
    x *= torch.rsqrt(x.square().mean(1, keepdim=True)) * math.sqrt(mean_square)
    return x.to(dtype)


def train(model: nn.Module, *, steps: int, rate: float, momentum: float = 0.9, batch: int = 128) -> list[float]:
    """SGD with cross-entropy on the digits; the loss of each step's batch."""
    data, order, losses = digits(), generator(1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    for _ in range(steps):
        chosen = torch.randint(len(data.images), (batch,), generator=order)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(data.images[chosen]), data.labels[chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def training_accuracy(model: nn.Module) -> float:
    """The share of training images that are told right, in [0, 1]."""
    data = digits()
    return float((model(data.images).argmax(1) == data.labels).double().mean())
