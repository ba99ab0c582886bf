"""Classes: outputs and losses that go together or do not."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import Batch, mixture
from tests.faults._parts import error_rate, optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross": F.cross_entropy,
    "nll": F.nll_loss,
    "log-nll": lambda p, y: F.nll_loss(torch.log(p + 1e-8), y),
    "one-hot-mse": lambda p, y: F.mse_loss(p, F.one_hot(y, p.shape[-1]).float()),
}
ENDS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "softmax": lambda: nn.Softmax(-1),
    "log-softmax": lambda: nn.LogSoftmax(-1),
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}


def net(
    inside: int, outside: int, end: str = "none", width: int = 64, act: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    layers = [nn.Linear(inside, width), act(), nn.Linear(width, width), act(), nn.Linear(width, outside)]
    return nn.Sequential(*layers, *([] if end == "none" else [ENDS[end]()]))


@healthy("MLP", "out-log-softmax-nll", {"end": "log-softmax", "loss": "nll"})
@healthy("MLP", "out-softmax-nll-of-log", {"end": "softmax", "loss": "log-nll"})
@faulty("MLP", "out-softmax-cross-entropy", "output-pairing", {"end": "softmax"}, cure="structural", where="5")
@faulty(
    "MLP",
    "out-softmax-cross-entropy-sgd",
    "output-pairing",
    {"end": "softmax", "kind": "SGD", "lr": 0.1},
    cure="structural",
    where="5",
    twin={"kind": "SGD", "lr": 0.1},
)
@faulty(
    "MLP",
    "out-softmax-nll",
    "output-pairing",
    {"end": "softmax", "loss": "nll", "rate": True, "kind": "SGD", "lr": 0.05},
    cure="structural",
    where="5",
    twin={"end": "log-softmax", "loss": "nll", "rate": True, "kind": "SGD", "lr": 0.05},
)
@faulty(
    "MLP",
    "out-softmax-mse",
    "output-pairing",
    {"end": "softmax", "loss": "one-hot-mse", "rate": True, "kind": "SGD", "lr": 0.05},
    cure="structural",
    where="5",
    also=("update-too-small",),
    twin={"rate": True, "kind": "SGD", "lr": 0.05},
)
@faulty(
    "MLP",
    "out-relu-logits",
    "output-pairing",
    {"end": "relu", "lr": 0.01},
    cure="structural",
    also=("dead-units",),
    where="5|4",
    twin={"lr": 0.01},
)
@faulty("MLP", "out-sigmoid-logits", "output-pairing", {"end": "sigmoid"}, cure="structural", where="5")
def classes(
    seed: int, end: str = "none", loss: str = "cross", kind: str = "Adam", lr: float = 3e-3, rate: bool = False
) -> Run:
    """Ten classes, with an end and a loss that fit each other or not."""
    model = net(64, 10, end)
    return Run(
        model,
        optimizer_of(model, kind, lr),
        mixture(seed),
        LOSSES[loss],
        metric=error_rate if loss in ("nll", "one-hot-mse") else None,
    )


def in_two(batch: Batch) -> Batch:
    def halves(step: int) -> tuple[Tensor, Tensor]:
        x, y = batch(step)
        return x, (y < 5).float()[:, None]

    return halves


@healthy("MLP", "out-bce-with-logits")
@healthy("MLP", "out-sigmoid-bce", {"end": "sigmoid", "loss": F.binary_cross_entropy})
@faulty("MLP", "out-sigmoid-bce-with-logits", "output-pairing", {"end": "sigmoid"}, cure="structural", where="5")
@faulty(
    "MLP",
    "out-softmax-of-one",
    "output-pairing",
    {"end": "softmax", "loss": F.binary_cross_entropy},
    cure="structural",
    also=("no-gradient",),
    where="5",
)
@faulty("MLP", "out-relu-bce", "output-pairing", {"end": "relu"}, cure="structural", also=("dead-units",), where="5")
def two_classes(
    seed: int, end: str = "none", loss: Callable[[Tensor, Tensor], Tensor] = F.binary_cross_entropy_with_logits
) -> Run:
    """Two classes, one output."""
    model = net(64, 1, end)
    return Run(
        model,
        optimizer_of(model, "Adam", 3e-3),
        in_two(mixture(seed)),
        loss,
    )
