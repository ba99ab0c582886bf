"""Half precision: autocast, pure half weights, loss scaling."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import mixture
from tests.faults._mlp import stack
from tests.faults._parts import initialize, optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy

HALF, BRAIN = torch.float16, torch.bfloat16
SCALED = {"autocast": HALF, "scale": 2.0**14}


class Wide(nn.Module):
    """Sums many products without a factor, as scores of attention do."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(64, 64) for _ in range(3))
        self.head = nn.Linear(64, 10)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).T * self.factor
        return self.head(x + torch.softmax(scores, -1) @ self.value(x))


class Rms(nn.Module):
    """The root mean square of a residual stream with outliers, written out in whatever type comes."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(64, 64)
        nn.init.normal_(self.inward.weight, std=20.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        return x / ((x * x).sum(-1, keepdim=True) / 64).sqrt()


class To(nn.Module):
    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.to(self.dtype))


@healthy("mixed precision", "bf16-autocast", {"autocast": BRAIN})
@healthy("mixed precision", "fp16-autocast-scaled", SCALED)
@healthy("mixed precision", "fp16-autocast-scaled-clipped", {**SCALED, "clip": 1.0})
@healthy("mixed precision", "fp16-first-steps-skipped", {"autocast": HALF, "scale": 2.0**30}, steps=80)
@healthy("mixed precision", "bf16-weights-sgd", {"pure": BRAIN, "kind": "SGD", "lr": 0.1})
@faulty(
    "mixed precision",
    "fp16-autocast-no-scaler",
    "dtype-underflow",
    {"autocast": HALF, "small": 1e-8, "kind": "SGD", "lr": 1e7},
    cure="scale",
    also=("no-gradient", "vanishing-gradient", "loss-scale"),
    twin={**SCALED, "small": 1e-3, "kind": "SGD", "lr": 1e2},
)
@faulty(
    "mixed precision",
    "fp16-gradients-mostly-underflow",
    "dtype-underflow",
    {"autocast": HALF, "small": 2e-6, "kind": "SGD", "lr": 5e4},
    cure="scale",
    also=("loss-scale", "vanishing-gradient", "no-gradient"),
    twin={**SCALED, "small": 1e-3, "kind": "SGD", "lr": 1e2},
    steps=80,
    static=lambda run: zero_share(run) > 0.5,
)
@faulty(
    "mixed precision",
    "fp16-scores-overflow",
    "dtype-overflow",
    {"autocast": HALF, "factor": 3e4},
    cure="scale",
    where="head|<root>",
    also=("non-finite",),
    twin={"factor": 0.125},
)
@faulty(
    "mixed precision",
    "fp16-activations-overflow",
    "dtype-overflow",
    {"autocast": HALF, "init": 3.0},
    cure="init",
    where="[0-6]|<root>",
    also=("non-finite", "exploding-activation", "init-mismatch"),
)
@faulty(
    "mixed precision",
    "fp16-scale-2-100",
    "loss-scale",
    {"autocast": HALF, "scale": 2.0**100},
    cure="scale",
    twin=SCALED,
    also=("dtype-overflow",),
)
@faulty(
    "mixed precision",
    "fp16-scale-keeps-growing",
    "loss-scale",
    {"autocast": HALF, "scale": 2.0**24, "grow": True},
    cure="scale",
    also=("dtype-overflow",),
    twin=SCALED,
)
@faulty(
    "mixed precision",
    "fp16-clipped-before-unscale",
    "clipping-always",
    {**SCALED, "clip": 1.0, "unscale": False, "kind": "SGD", "lr": 0.1},
    cure="structural",
    also=("update-too-small", "loss-scale"),
    twin={**SCALED, "clip": 1.0, "kind": "SGD", "lr": 0.1},
)
@faulty(
    "mixed precision",
    "fp16-weights-adam-eps",
    "non-finite",
    {"pure": HALF, "kind": "Adam", "lr": 1e-3},
    cure="structural",
    also=("dtype-underflow", "update-too-large"),
    twin={"kind": "Adam", "lr": 1e-3},
)
@faulty(
    "mixed precision",
    "bf16-weights-update-lost",
    "update-too-small",
    {"pure": BRAIN, "kind": "SGD", "lr": 2e-4, "momentum": 0.0},
    cure="learning rate",
    also=("dtype-underflow",),
    twin={"pure": BRAIN, "kind": "SGD", "lr": 0.1},
)
@faulty(
    "mixed precision",
    "fp16-sum-of-squares-overflows",
    "dtype-overflow",
    {"autocast": HALF, "norm": True},
    cure="structural",
    where="0|0.*",
    also=("non-finite",),
    twin={"autocast": BRAIN, "norm": True},
)
@faulty(
    "mixed precision",
    "fp16-weights-update-lost",
    "update-too-small",
    {"pure": HALF, "kind": "SGD", "lr": 3e-5, "momentum": 0.0},
    cure="learning rate",
    also=("dtype-underflow",),
    twin={"pure": HALF, "kind": "SGD", "lr": 0.1},
)
def precision(
    seed: int,
    autocast: torch.dtype | None = None,
    pure: torch.dtype | None = None,
    scale: float | None = None,
    grow: bool = False,
    clip: float | None = None,
    unscale: bool = True,
    small: float = 1.0,
    factor: float | None = None,
    init: Any = "default",
    kind: str = "Adam",
    lr: float = 3e-3,
    momentum: float = 0.9,
    norm: bool = False,
) -> Run:
    """Ten classes in half precision."""
    model: nn.Module = Wide(factor) if factor is not None else initialize(stack(4, 64, "relu"), init)
    if norm:
        model = nn.Sequential(Rms(), model)
    if pure is not None:
        model = To(model, pure)
    more = {"momentum": momentum} if kind == "SGD" else {}
    optimizer = optimizer_of(model, kind, lr, **more)
    scaler = None
    if scale is not None:
        pace = {"backoff_factor": 0.999, "growth_factor": 2.0, "growth_interval": 1} if grow else {}
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, **pace)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return small * F.cross_entropy(output if pure is not None else output.float(), target)

    return Run(
        model,
        optimizer,
        mixture(seed),
        loss,
        metric=lambda output, target: F.cross_entropy(output.float(), target),
        clip=clip,
        scaler=scaler,
        unscale=unscale,
        autocast=autocast,
    )


def zero_share(run: Run) -> float:
    """Share of the gradients' entries that are exactly zero, of layers before the last."""
    found = torch.cat(
        [p.grad.flatten() for name, p in run.model.named_parameters() if p.grad is not None and name[0] in "024"]
    )
    return float((found == 0).float().mean())
