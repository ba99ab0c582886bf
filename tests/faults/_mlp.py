"""Plain networks of linear layers on a mixture of Gaussians: initial weights, activations, rates, outputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.faults._data import mixture
from tests.faults._parts import ACTIVATIONS, Call, Detach, Exp, initialize, optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy

SMALL = ("vanishing-activation", "vanishing-gradient", "init-mismatch")
LARGE = ("exploding-activation", "exploding-gradient", "init-mismatch")


def stack(depth: int, width: int, act: str, norm: str | None = None, dim: int = 64, classes: int = 10) -> nn.Sequential:
    """`depth` linear layers, the last of them without an activation."""
    layers: list[nn.Module] = []
    for i in range(depth - 1):
        layers.append(nn.Linear(dim if i == 0 else width, width))
        if norm is not None:
            layers.append(nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width))
        layers.append(Exp() if act == "exp" else ACTIVATIONS[act]())
    return nn.Sequential(*layers, nn.Linear(width if depth > 1 else dim, classes))


@healthy("MLP", "mlp-relu-4-default")
@healthy("MLP", "mlp-relu-4-he-sgd", {"init": "he", "kind": "SGD", "lr": 0.05})
@healthy("MLP", "mlp-relu-20-he", {"depth": 20, "init": "he", "lr": 1e-3}, steps=100)
@healthy("MLP", "mlp-tanh-10-glorot", {"depth": 10, "act": "tanh", "init": "glorot", "lr": 1e-3})
@healthy("MLP", "mlp-selu-20-lecun", {"depth": 20, "act": "selu", "init": "lecun", "kind": "SGD", "lr": 0.01})
@healthy("MLP", "mlp-gelu-8", {"depth": 8, "act": "gelu", "lr": 2e-3})
@healthy("MLP", "mlp-elu-6", {"depth": 6, "act": "elu"})
@healthy("MLP", "mlp-silu-5-rmsprop", {"depth": 5, "act": "silu", "kind": "RMSprop", "lr": 1e-3})
@healthy("MLP", "mlp-batchnorm-10", {"depth": 10, "norm": "batch"})
@healthy("MLP", "mlp-layernorm-10", {"depth": 10, "norm": "layer"})
@healthy("MLP", "mlp-adagrad", {"kind": "Adagrad", "lr": 0.02})
@healthy("MLP", "mlp-sigmoid-2", {"depth": 2, "act": "sigmoid", "lr": 0.02})
@healthy("MLP", "mlp-adamw-decay", {"kind": "AdamW", "more": {"weight_decay": 0.1}})
@healthy("MLP", "mlp-loss-x-1e-6", {"scale": 1e-6, "kind": "SGD", "lr": 1e5})
@healthy("MLP", "mlp-adam-loss-x-1e-3", {"scale": 1e-3})
@healthy("MLP", "mlp-loss-x-1e4", {"scale": 1e4})
@healthy("MLP", "mlp-sum-reduction", {"reduction": "sum", "kind": "SGD", "lr": 8e-4})
@healthy("MLP", "mlp-dropout", {"drop": 0.5})
@healthy("MLP", "mlp-batch-of-4", {"size": 4, "lr": 2e-3}, steps=150)
@healthy("MLP", "mlp-logistic-regression", {"depth": 1, "lr": 0.03})
@healthy("MLP", "mlp-wide-and-shallow", {"depth": 3, "width": 512, "lr": 1e-3})
@healthy("MLP", "mlp-clip-seldom", {"clip": 5.0, "kind": "SGD", "lr": 0.05})
@healthy("MLP", "mlp-accumulation", {"accumulation": 4, "size": 16})
@healthy("MLP", "mlp-cosine", {"schedule": "cosine", "kind": "SGD", "lr": 0.1})
@healthy("MLP", "mlp-warmup-from-0", {"schedule": "warmup", "lr": 6e-3})
@healthy("MLP", "mlp-orthogonal-tanh", {"depth": 8, "act": "tanh", "init": "orthogonal", "lr": 1e-3})
@faulty(
    "MLP",
    "mlp-sigmoid-12",
    "vanishing-gradient",
    {"depth": 12, "act": "sigmoid", "init": "glorot"},
    cure="activation or norm",
    also=("init-mismatch", "collapsed-batch"),
    twin={"depth": 12, "act": "tanh", "init": "glorot", "lr": 1e-3},
)
@faulty(
    "MLP",
    "mlp-sigmoid-6",
    "vanishing-gradient",
    {"depth": 6, "act": "sigmoid", "init": "glorot", "lr": 1e-3},
    cure="activation or norm",
    also=("init-mismatch", "collapsed-batch"),
    twin={"depth": 6, "act": "tanh", "init": "glorot", "lr": 1e-3},
)
@faulty(
    "MLP",
    "mlp-tanh-30-tiny",
    "vanishing-activation",
    {"depth": 30, "act": "tanh", "init": 0.01, "lr": 1e-3},
    cure="init",
    also=SMALL,
    where="2|1|0",
    twin={"depth": 30, "act": "tanh", "init": "glorot", "lr": 1e-3},
)
@faulty(
    "MLP",
    "mlp-relu-20-tiny",
    "vanishing-activation",
    {"depth": 20, "init": 0.01, "lr": 1e-3},
    cure="init",
    also=SMALL,
    where="2|1|0",
    twin={"depth": 20, "init": "he", "lr": 1e-3},
)
@faulty(
    "MLP",
    "mlp-relu-20-default",
    "default-init",
    {"depth": 20, "lr": 1e-3},
    cure="init",
    also=("vanishing-gradient", "init-mismatch"),
    twin={"depth": 20, "init": "he", "lr": 1e-3},
)
@faulty(
    "MLP",
    "mlp-relu-12-default-sgd",
    "default-init",
    {"depth": 12, "kind": "SGD", "lr": 0.02, "width": 96},
    cure="init",
    also=("vanishing-gradient", "init-mismatch"),
    twin={"depth": 12, "kind": "SGD", "lr": 0.02, "width": 96, "init": "he"},
)
@faulty(
    "MLP",
    "mlp-relu-30-glorot",
    "init-mismatch",
    {"depth": 30, "init": "glorot", "kind": "SGD", "lr": 1e-2, "width": 96},
    cure="init",
    also=("vanishing-activation", "vanishing-gradient"),
    twin={"depth": 30, "init": "he", "kind": "SGD", "lr": 1e-2, "width": 96},
    steps=150,
)
@faulty(
    "MLP",
    "mlp-relu-20-std-half",
    "exploding-activation",
    {"depth": 20, "init": 0.5, "lr": 1e-3},
    cure="init",
    also=LARGE,
    where="0|1|2|3|4",
    twin={"depth": 20, "init": "he", "lr": 1e-3},
)
@faulty(
    "MLP",
    "mlp-relu-10-std-1",
    "exploding-activation",
    {"depth": 10, "init": 1.0, "lr": 1e-3, "act": "leaky"},
    cure="init",
    also=LARGE,
    where="0|1|2|3",
    twin={"depth": 10, "init": "he", "act": "leaky", "lr": 1e-3},
)
@faulty(
    "MLP",
    "mlp-tanh-10-std-1",
    "saturated-units",
    {"depth": 10, "act": "tanh", "init": 1.0, "lr": 1e-3},
    cure="init",
    also=("init-mismatch", "exploding-gradient"),
    where="0|1",
    twin={"depth": 10, "act": "tanh", "init": "glorot", "lr": 1e-3},
)
@faulty(
    "MLP",
    "mlp-sigmoid-4-std-3",
    "saturated-units",
    {"depth": 4, "act": "sigmoid", "init": 3.0, "lr": 1e-3},
    cure="init",
    also=("init-mismatch",),
    where="0|1",
    twin={"depth": 4, "act": "tanh", "init": "glorot", "lr": 1e-3},
)
@faulty("MLP", "mlp-constant-weights", "symmetric-units", {"fill": 0.01}, cure="init")
@faulty(
    "MLP",
    "mlp-all-zero",
    "symmetric-units",
    {"fill": 0.0},
    cure="init",
    also=("no-gradient", "vanishing-activation", "init-mismatch"),
)
@faulty("MLP", "mlp-bias-minus-3", "dead-units", {"init": "he", "bias": -3.0}, cure="init", where="1", steps=40)
@faulty(
    "MLP",
    "mlp-sgd-lr-10",
    "update-too-large",
    {"kind": "SGD", "lr": 10.0},
    cure="learning rate",
    also=("non-finite", "exploding-activation"),
    twin={"kind": "SGD", "lr": 0.1},
)
@faulty("MLP", "mlp-adam-lr-1", "update-too-large", {"lr": 1.0}, cure="learning rate", also=("exploding-activation",))
@faulty(
    "MLP",
    "mlp-adam-lr-half-dead",
    "update-too-large",
    {"lr": 0.3, "depth": 6},
    cure="learning rate",
    also=("dead-units", "exploding-activation"),
)
@faulty(
    "MLP",
    "mlp-sgd-lr-1e-7",
    "update-too-small",
    {"kind": "SGD", "lr": 1e-7},
    cure="learning rate",
    twin={"kind": "SGD", "lr": 0.1},
)
@faulty("MLP", "mlp-adamw-lr-1e-8", "update-too-small", {"kind": "AdamW", "lr": 1e-8}, cure="learning rate")
@faulty(
    "MLP",
    "mlp-adam-loss-1e-12",
    "update-too-small",
    {"scale": 1e-12},
    cure="scale",
    also=("loss-scale",),
    twin={"scale": 1e-6},
)
@faulty(
    "MLP",
    "mlp-exp",
    "non-finite",
    {"act": "exp", "init": "he"},
    cure="activation",
    also=("exploding-activation",),
    where="3|2",
)
@faulty("MLP", "mlp-detach", "no-gradient", {"cut": 3}, cure="structural", where="3|2|0", twin={"depth": 6})
@faulty(
    "MLP",
    "mlp-decay-1",
    "vanishing-activation",
    {"more": {"weight_decay": 3.0}, "lr": 0.01},
    cure="weight decay",
    also=("vanishing-gradient", "collapsed-batch"),
    steps=80,
)
@faulty(
    "MLP",
    "mlp-clip-tiny",
    "clipping-always",
    {"clip": 1e-4, "kind": "SGD", "lr": 0.05},
    cure="clipping",
    also=("update-too-small",),
    twin={"kind": "SGD", "lr": 0.05},
)
@faulty(
    "MLP",
    "mlp-no-zero-grad",
    "update-too-large",
    {"zero_grad": False, "kind": "SGD", "lr": 0.2},
    cure="structural",
    also=("exploding-gradient", "gradient-spike"),
    twin={"kind": "SGD", "lr": 0.2},
    steps=100,
)
@faulty(
    "MLP",
    "mlp-head-lr-only",
    "uneven-learning",
    {"kind": "SGD", "lr": 0.05, "slow": 1e-5},
    cure="learning rate",
    also=("update-too-small",),
    where="[0-5]|[0-5].*",
    twin={"kind": "SGD", "lr": 0.05},
)
@faulty(
    "MLP",
    "mlp-one-layer-fast",
    "update-too-large",
    {"kind": "SGD", "lr": 0.02, "fast": 1e5},
    cure="learning rate",
    also=("uneven-learning", "dead-units", "non-finite"),
    where="2|2.*",
    twin={"kind": "SGD", "lr": 0.02},
)
@faulty(
    "MLP",
    "mlp-shrink",
    "vanishing-gradient",
    {"squeeze": True},
    cure="structural",
    also=("vanishing-activation",),
    where="2|3",
    twin={"depth": 5},
)
@faulty(
    "MLP",
    "mlp-tanh-30-chaotic",
    "exploding-gradient",
    {"depth": 30, "act": "tanh", "init": 0.35, "kind": "SGD", "lr": 0.01},
    cure="init",
    also=("init-mismatch", "saturated-units"),
    twin={"depth": 30, "act": "tanh", "init": "glorot", "kind": "SGD", "lr": 0.01},
)
@faulty(
    "MLP",
    "mlp-batchnorm-60",
    "exploding-gradient",
    {"depth": 60, "norm": "batch", "kind": "SGD", "lr": 0.02},
    cure="structural",
    steps=30,
    twin={"depth": 6, "norm": "batch", "kind": "SGD", "lr": 0.02},
)
@faulty(
    "MLP",
    "mlp-selu-40-gain-2",
    "exploding-activation",
    {"depth": 40, "act": "selu", "init": 0.25, "kind": "SGD", "lr": 1e-3},
    cure="init",
    also=("init-mismatch", "exploding-gradient"),
    twin={"depth": 40, "act": "selu", "init": "lecun", "kind": "SGD", "lr": 5e-3},
)
@faulty(
    "MLP",
    "mlp-gelu-24-default",
    "default-init",
    {"depth": 24, "act": "gelu", "lr": 1e-3},
    cure="init",
    also=("vanishing-gradient", "init-mismatch", "vanishing-activation"),
    twin={"depth": 24, "act": "gelu", "init": "he", "lr": 1e-3},
)
@faulty("MLP", "mlp-mask-inverted", "collapsed-batch", {"bug": "mask"}, cure="structural", where="0|1")
@faulty("MLP", "mlp-mean-over-batch", "collapsed-batch", {"bug": "mean"}, cure="structural", where="4|5")
@faulty(
    "MLP",
    "mlp-norm-of-one-feature",
    "collapsed-batch",
    {"bug": "norm"},
    cure="structural",
    where="4|5|4.*",
    also=("vanishing-gradient", "no-gradient"),
)
@faulty(
    "MLP",
    "mlp-rounded-in-the-middle",
    "no-gradient",
    {"bug": "round"},
    cure="structural",
    where="4|3|[0-3]*",
    also=("vanishing-gradient",),
    twin={"init": "he", "lr": 1e-3},
)
def classifier(
    seed: int,
    depth: int = 4,
    width: int = 64,
    act: str = "relu",
    init: Any = "default",
    bias: float = 0.0,
    norm: str | None = None,
    kind: str = "Adam",
    lr: float = 3e-3,
    more: dict[str, Any] | None = None,
    scale: float = 1.0,
    reduction: str = "mean",
    drop: float = 0.0,
    size: int = 64,
    clip: float | None = None,
    accumulation: int = 1,
    schedule: str | None = None,
    fill: float | None = None,
    cut: int | None = None,
    zero_grad: bool = True,
    slow: float | None = None,
    fast: float | None = None,
    squeeze: bool = False,
    bug: str | None = None,
) -> Run:
    """Ten classes; cross-entropy."""
    model = initialize(stack(depth, width, act, norm), init, bias)
    if drop:
        model.insert(len(model) - 1, nn.Dropout(drop))
    if squeeze:  # a factor written twice by mistake
        model = nn.Sequential(*model[:3], nn.Linear(width, width), Shrink(), *model[3:])
    if bug is not None:
        model.insert(0 if bug == "mask" else 4, mistake(bug, width))
    if fill is not None:
        for p in model.parameters():
            nn.init.constant_(p, fill)
    if cut is not None:
        model.insert(cut, Detach())
    optimizer = optimizer_of(model, kind, lr, **(more or {}))
    head = list(model[-1].parameters())
    rest = [p for p in model.parameters() if all(p is not q for q in head)]
    if slow is not None:
        optimizer = optimizer_of([{"params": rest, "lr": lr * slow}, {"params": head}], kind, lr)
    if fast is not None:
        chosen = list(model[2].parameters())
        others = [p for p in model.parameters() if all(p is not q for q in chosen)]
        optimizer = optimizer_of([{"params": others}, {"params": chosen, "lr": lr * fast}], kind, lr)
    steps = {
        "cosine": lambda t: 0.5 + 0.5 * torch.cos(torch.tensor(3.1416 * t / 60)).item(),
        "warmup": lambda t: min(1.0, t / 20),
    }
    scheduler = None if schedule is None else torch.optim.lr_scheduler.LambdaLR(optimizer, steps[schedule])
    return Run(
        model,
        optimizer,
        mixture(seed, size),
        lambda output, target: scale * F.cross_entropy(output, target, reduction=reduction),
        clip=clip,
        accumulation=accumulation,
        scheduler=scheduler,
        zero_grad=zero_grad,
        metric=lambda output, target: F.cross_entropy(output, target),
    )


class Shrink(nn.Module):
    """Times a temperature that should have been 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1e-5


def mistake(bug: str, width: int) -> nn.Module:
    """A layer that nobody meant to write like this."""
    found: dict[str, nn.Module] = {
        "mask": Call(lambda x: x * (x.abs() < 0).float()),
        "mean": Call(lambda x: x.mean(0, keepdim=True).expand_as(x)),
        "norm": nn.Sequential(nn.Linear(width, 1), nn.LayerNorm(1), nn.Linear(1, width)),
        "round": Call(torch.round),
    }
    return found[bug]
