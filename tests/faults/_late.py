"""Faults that start in the middle of training: a rate, a batch, weights, labels, data that change."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.faults._data import from_step, mixture
from tests.faults._mlp import stack
from tests.faults._parts import initialize, optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


@healthy("MLP", "late-long-and-converged", {"lr": 3e-3}, steps=150)
@healthy("MLP", "late-sgd-converged", {"kind": "SGD", "lr": 0.1}, steps=150)
@healthy("MLP", "late-step-decay", {"event": "decay"}, steps=80)
@healthy("MLP", "late-rate-doubled", {"event": "double"}, steps=80)
@healthy("MLP", "late-tanh-converged", {"act": "tanh"}, steps=120)
@faulty(
    "MLP",
    "late-lr-jump",
    "update-too-large",
    {"event": "lr", "at": 25},
    start=25,
    steps=60,
    cure="learning rate",
    also=("gradient-spike", "exploding-activation", "non-finite"),
)
@faulty(
    "MLP",
    "late-lr-jump-sgd",
    "update-too-large",
    {"event": "lr", "at": 35, "kind": "SGD", "lr": 0.1},
    start=35,
    cure="learning rate",
    also=("gradient-spike", "exploding-activation", "non-finite"),
    twin={"kind": "SGD", "lr": 0.1},
)
@faulty(
    "MLP",
    "late-bad-batch",
    "gradient-spike",
    {"event": "batch", "at": 30, "kind": "SGD", "lr": 0.05},
    start=30,
    cure="clipping",
    also=("input-scale",),
    where="<input>|0",
    twin={"kind": "SGD", "lr": 0.05},
)
@faulty(
    "MLP",
    "late-weights-large",
    "exploding-activation",
    {"event": "weights", "at": 30},
    start=30,
    cure="structural",
    also=("gradient-spike", "update-too-large"),
    where="2|2.weight",
)
@faulty(
    "MLP",
    "late-weights-constant",
    "symmetric-units",
    {"event": "constant", "at": 30},
    start=30,
    cure="structural",
    where="2|2.weight|3",
)
@faulty(
    "MLP",
    "late-head-detached",
    "no-gradient",
    {"event": "frozen", "at": 8, "lr": 1e-3},
    start=8,
    cure="structural",
    where="[0-3]|[0-3].*",
    twin={"lr": 1e-3},
)
@faulty(
    "MLP", "late-labels-random", "gradient-spike", {"event": "labels", "at": 50}, start=50, steps=80, cure="structural"
)
@faulty(
    "MLP",
    "late-not-normalized",
    "input-scale",
    {"event": "data", "at": 30},
    start=30,
    cure="normalisation",
    also=("gradient-spike", "exploding-activation"),
    where="<input>|0",
)
@faulty(
    "MLP", "late-nan-input", "non-finite", {"event": "nan", "at": 20}, start=20, cure="structural", where="<input>|0"
)
@faulty(
    "MLP", "late-inf-input", "non-finite", {"event": "inf", "at": 20}, start=20, cure="structural", where="<input>|0"
)
@faulty(
    "MLP",
    "late-bias-killed",
    "dead-units",
    {"event": "bias", "at": 30},
    start=30,
    steps=60,
    cure="structural",
    where="3|2|2.bias|5|4|4.bias",
)
@faulty(
    "MLP",
    "late-lr-zero",
    "update-too-small",
    {"event": "stop", "at": 10, "kind": "SGD", "lr": 0.03},
    start=10,
    cure="learning rate",
    twin={"kind": "SGD", "lr": 0.03},
)
def training(seed: int, event: str = "", at: int = 30, kind: str = "Adam", lr: float = 3e-3, act: str = "relu") -> Run:
    """Ten classes, four layers; something happens at a step."""
    model = initialize(stack(4, 64, act), "he" if act == "relu" else "glorot")
    optimizer = optimizer_of(model, kind, lr)
    batch = mixture(seed)

    def times(factor: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= factor

    @torch.no_grad()
    def before_step(step: int) -> None:
        middle = model[2]
        assert isinstance(middle, nn.Linear)
        if step != at:
            return
        if event in ("lr", "stop", "decay", "double"):
            times({"lr": 1000 if kind == "Adam" else 100, "stop": 1e-7, "decay": 0.1, "double": 2}[event])
        elif event == "weights":
            middle.weight *= 300
        elif event == "constant":
            middle.weight.fill_(0.02)
            middle.bias.fill_(0.0)
        elif event == "bias":
            middle.bias.fill_(-30.0)
        elif event == "frozen":
            for p in model[:4].parameters():
                p.requires_grad_(False)

    changes = {
        "batch": lambda x, y: (x * 200, y),
        "data": lambda x, y: (x * 40 + 100, y),
        "nan": lambda x, y: (x.masked_fill(x > 2.5, float("nan")), y),
        "inf": lambda x, y: (x.index_fill(1, torch.tensor([3]), float("inf")), y),
        "labels": lambda x, y: (x, y.roll(1)),
    }
    if event in changes:
        until = at + 1 if event in ("batch", "inf") else 1 << 30
        batch = from_step(batch, at, changes[event], until)
    return Run(model, optimizer, batch, F.cross_entropy, before_step=before_step)
