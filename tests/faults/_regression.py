"""Regressions: outputs, targets and inputs of the right size and the wrong one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import digits, teacher
from tests.faults._outputs import net
from tests.faults._parts import initialize, optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


@healthy("MLP", "reg-mse")
@healthy("MLP", "reg-huber-sgd", {"loss": F.smooth_l1_loss, "kind": "SGD", "lr": 0.03}, steps=150)
@healthy("MLP", "reg-l1-tanh-net", {"loss": F.l1_loss, "act": nn.Tanh}, steps=120)
@healthy("MLP", "reg-heavy-tailed-noise", {"loss": F.smooth_l1_loss, "tails": True}, steps=120, goal=2.0)
@healthy("MLP", "reg-batch-of-one", {"size": 1, "lr": 1e-3}, steps=300, goal=0.6)
@healthy("MLP", "reg-positive-softplus", {"end": "softplus", "offset": 3.0}, steps=60)
@healthy("MLP", "reg-large-offset", {"offset": 5.0}, steps=60)
@healthy("MLP", "reg-constant-and-binary-features", {"features": "constant"}, steps=100)
@faulty(
    "MLP",
    "reg-relu-output",
    "output-pairing",
    {"end": "relu"},
    cure="structural",
    where="5|4",
    also=("dead-units",),
    steps=100,
)
@faulty(
    "MLP",
    "reg-tanh-output",
    "output-pairing",
    {"end": "tanh", "spread": 8.0},
    cure="structural",
    also=("saturated-units",),
    where="5",
    steps=100,
    twin={"spread": 8.0},
)
@faulty(
    "MLP",
    "reg-sigmoid-output",
    "output-pairing",
    {"end": "sigmoid"},
    cure="structural",
    where="5",
    steps=100,
    also=("saturated-units",),
)
@faulty(
    "MLP",
    "reg-target-1e4",
    "output-pairing",
    {"spread": 1e4},
    cure="normalisation",
    also=("input-scale", "loss-scale", "update-too-small", "exploding-gradient"),
    steps=100,
)
@faulty(
    "MLP", "reg-income-and-age", "input-scale", {"features": "raw"}, cure="normalisation", where="<input>|0", steps=100
)
@faulty(
    "MLP",
    "reg-year-and-timestamp",
    "input-scale",
    {"features": "time", "act": nn.Tanh},
    cure="normalisation",
    also=("saturated-units",),
    where="<input>|0|1",
    steps=100,
    twin={"act": nn.Tanh},
)
@faulty(
    "MLP",
    "reg-all-inputs-1e-5",
    "input-scale",
    {"features": "tiny"},
    cure="normalisation",
    where="<input>|0",
    also=("vanishing-activation", "collapsed-batch"),
    steps=100,
)
@faulty(
    "MLP",
    "reg-average-of-constant-std",
    "non-finite",
    {"features": "standardized"},
    cure="structural",
    where="<input>|0|std",
    steps=40,
)
@faulty(
    "MLP",
    "reg-outlier-targets",
    "gradient-spike",
    {"outlier": 60, "kind": "SGD", "lr": 0.02},
    start=60,
    cure="clipping",
    where="4|<root>|4.*",
    steps=100,
    twin={"kind": "SGD", "lr": 0.02},
)
def regression(
    seed: int,
    end: str = "none",
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    kind: str = "Adam",
    lr: float = 3e-3,
    act: Callable[[], nn.Module] = nn.ReLU,
    size: int = 64,
    offset: float = 0.0,
    spread: float = 1.0,
    tails: bool = False,
    features: str = "",
    outlier: int | None = None,
) -> Run:
    """One number from sixteen features."""
    model = net(16, 1, end, act=act)
    plain = teacher(seed, size)
    scales = {"raw": torch.tensor([1.0] * 12 + [15.0, 100.0, 2e4, 3e5]), "tiny": torch.full((16,), 1e-5)}

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        y = spread * (y + offset)
        if tails:
            y = y + 0.5 * torch.distributions.StudentT(1.5).sample(y.shape).clamp(-50, 50)
        if step == outlier:
            y = y.index_fill(0, torch.tensor([5]), 2000.0)
        if features in scales:
            x = x * scales[features]
        elif features == "constant":
            x = torch.cat([x[:, :10], (x[:, 10:14] > 0).float(), torch.ones(size, 2)], 1)
        elif features == "time":
            x = torch.cat([x[:, :12], 2000 + 10 * x[:, 12:14], 1.7e9 + 1e6 * x[:, 14:]], 1)
        elif features == "standardized":
            x = torch.cat([x[:, :15], torch.zeros(size, 1)], 1)
            x = (x - x.mean(0)) / x.std(0)
        return x, y

    # the target's own size is divided out, so that it compares with the twin's
    return Run(model, optimizer_of(model, kind, lr), batch, loss, metric=lambda p, y: loss(p / spread, y / spread))


@healthy("MLP", "in-pixels-0-to-1", {"scale": 1.0})
@healthy("MLP", "in-one-hot-digits", {"scale": "one-hot"}, steps=80)
@faulty(
    "MLP",
    "in-pixels-0-to-255",
    "input-scale",
    {"scale": 255.0, "kind": "SGD", "lr": 0.03},
    cure="normalisation",
    where="<input>|0",
    also=("exploding-activation", "dead-units"),
    twin={"scale": 1.0, "kind": "SGD", "lr": 0.03},
)
@faulty(
    "MLP",
    "in-12-bit-sensor-tanh",
    "input-scale",
    {"scale": 4095.0, "act": nn.Tanh},
    cure="normalisation",
    where="<input>|0|1",
    also=("saturated-units",),
    twin={"scale": 1.0, "act": nn.Tanh},
)
@faulty(
    "MLP",
    "in-uint16-sensor",
    "input-scale",
    {"scale": 65535.0},
    cure="normalisation",
    where="<input>|0",
    also=("exploding-activation",),
    twin={"scale": 1.0},
)
def pixels(
    seed: int, scale: float | str = 1.0, kind: str = "Adam", lr: float = 2e-3, act: Callable[[], nn.Module] = nn.ReLU
) -> Run:
    """The digits as 64 numbers."""
    inside = 64 * 17 if scale == "one-hot" else 64
    model = initialize(net(inside, 10, act=act), "he")
    plain = digits(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        x = x.flatten(1)
        if scale == "one-hot":
            return F.one_hot((x * 16).long(), 17).flatten(1).float(), y
        return x * scale, y

    return Run(model, optimizer_of(model, kind, lr), batch, F.cross_entropy)
