"""Losses of classes the corpus does not have: hinges, orders, divergences, labels smoothed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import digits
from tests.faults._parts import Call, error_rate, optimizer_of
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy

Loss = Callable[[Any, Any], Tensor]


def net(inside: int, outside: int, *end: nn.Module, width: int = 48) -> nn.Sequential:
    layers = [nn.Linear(inside, width), nn.LeakyReLU(), nn.Linear(width, width), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Linear(width, outside), *end)


def squared_hinge(p: Tensor, y: Tensor) -> Tensor:
    sign = 2.0 * F.one_hot(y, 10) - 1
    return F.relu(1 - sign * p).square().mean()


def smoothed(p: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(p, y, label_smoothing=0.1)


def in_order(p: Tensor, y: Tensor) -> Tensor:
    """Ordinal: is the class above each of the nine thresholds?"""
    above = (y[:, None] > torch.arange(9)).float()
    return F.binary_cross_entropy_with_logits(p[:, :9], above)


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, 10).float()


def to_uniform(p: Tensor, y: Tensor) -> Tensor:
    """Kullback-Leibler divergence from softened labels; `kl_div` wants logarithms of probabilities."""
    return F.kl_div(p, 0.9 * one_hot(y) + 0.01, reduction="batchmean")


@healthy("MLP", "loss-label-smoothing", {"loss": smoothed}, goal=1.3)
@healthy("MLP", "loss-squared-hinge", {"loss": squared_hinge}, goal=0.4)
@healthy("MLP", "loss-multi-margin", {"loss": F.multi_margin_loss})
@healthy("MLP", "loss-ordinal-thresholds", {"loss": in_order})
@healthy("MLP", "loss-log-softmax-twice", {"end": [lambda: nn.LogSoftmax(-1)]})
@healthy("MLP", "loss-kl-of-log-softmax", {"end": [lambda: nn.LogSoftmax(-1)], "loss": to_uniform})
@faulty(
    "MLP",
    "loss-kl-of-probabilities",
    "output-pairing",
    {"end": [lambda: nn.Softmax(-1)], "loss": to_uniform, "kind": "SGD", "lr": 0.05},
    cure="structural",
    where="5",
    twin={"end": [lambda: nn.LogSoftmax(-1)], "loss": to_uniform, "kind": "SGD", "lr": 0.05},
)
@faulty(
    "MLP",
    "loss-softmax-over-the-batch",
    "output-pairing",
    {"end": [lambda: nn.Softmax(0), lambda: Call(lambda p: (p + 1e-9).log())], "loss": F.nll_loss},
    cure="structural",
    where="5|6",
    twin={"end": [lambda: nn.LogSoftmax(-1)], "loss": F.nll_loss},
)
@faulty(
    "MLP",
    "loss-clamped-in-place",
    "output-pairing",
    {"end": [lambda: nn.Hardtanh(-0.01, 0.01)], "lr": 0.02},
    cure="structural",
    also=("saturated-units", "vanishing-gradient", "no-gradient", "dead-units"),
    where="5|4|4.*",
    twin={"lr": 0.02},
)
def classifier(
    seed: int,
    loss: Loss = F.cross_entropy,
    end: list[Callable[[], nn.Module]] | None = None,
    kind: str = "Adam",
    lr: float = 5e-3,
) -> Run:
    """The digits; the metric is the error rate where losses do not compare."""
    model = nn.Sequential(*net(64, 10, *(make() for make in end or [])))
    plain = digits(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        return x.flatten(1), y

    metric = error_rate if loss is to_uniform else None
    return Run(model, optimizer_of(model, kind, lr), batch, loss, metric=metric)
