"""Losses of numbers: counts, variances, quantiles; and units that are of no use for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import mixture, seeded, teacher
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults_unseen._losses import Loss, net
from tests.faults_unseen._registry import faulty, healthy


@healthy("MLP", "loss-poisson-counts", steps=80)
@faulty(
    "MLP",
    "loss-poisson-exposure-in-seconds",
    "input-scale",
    {"exposure": 3600.0},
    cure="normalisation",
    also=("non-finite", "exploding-activation", "exploding-gradient"),
    where="<input>|0",
    steps=80,
)
def counts(seed: int, exposure: float = 1.0) -> Run:
    """Counts, and the logarithm of their rate; one of the inputs is a duration."""
    model, plain = net(16, 1), teacher(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        hours = 1 + torch.rand(64, 1, generator=seeded(seed, step + 7_000_000))
        count = torch.poisson(torch.exp(1 + y) * hours, generator=seeded(seed, step))
        return torch.cat([x[:, 1:], exposure * hours], 1), count

    return Run(model, optimizer_of(model, "Adam", 5e-3), batch, F.poisson_nll_loss)


class MeanAndSpread(nn.Module):
    """A mean, and a variance that has to be positive."""

    def __init__(self, positive: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = net(16, 2)
        self.positive = positive

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.body(x).chunk(2, 1)
        return mean, self.positive(raw)


def gaussian(output: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    return F.gaussian_nll_loss(output[0], y, output[1])


def quantiles(p: Tensor, y: Tensor) -> Tensor:
    level = torch.tensor([0.1, 0.5, 0.9])
    return torch.maximum(level * (y - p), (level - 1) * (y - p)).mean()


def log_cosh(p: Tensor, y: Tensor) -> Tensor:
    return (y - p + F.softplus(-2 * (y - p)) - 0.6931).mean()


@healthy("MLP", "loss-gaussian-variance", {"model": lambda: MeanAndSpread(F.softplus), "loss": gaussian}, steps=100)
@healthy("MLP", "loss-quantiles", {"model": lambda: net(16, 3), "loss": quantiles}, steps=100)
@healthy("MLP", "loss-log-cosh-softsign", {"loss": log_cosh, "act": nn.Softsign}, steps=100)
@faulty(
    "MLP",
    "loss-variance-by-relu",
    "output-pairing",
    {"model": lambda: MeanAndSpread(F.relu), "loss": gaussian},
    cure="structural",
    also=("exploding-gradient", "gradient-spike", "dead-units", "update-too-small", "loss-scale"),
    steps=100,
    where="<root>|body|body.4*",
    twin={"model": lambda: MeanAndSpread(F.softplus), "loss": gaussian},
)
@faulty(
    "MLP",
    "softsign-std-3",
    "saturated-units",
    {"act": nn.Softsign, "std": 3.0},
    cure="init",
    also=("init-mismatch", "exploding-activation", "exploding-gradient"),
    where="[0-5]",
    twin={"act": nn.Softsign},
    steps=100,
)
@faulty(
    "MLP",
    "norm-shift-minus-6",
    "dead-units",
    {"shift": -6.0},
    cure="init",
    also=("vanishing-activation", "vanishing-gradient", "no-gradient", "collapsed-batch"),
    where="[124]",
    twin={"shift": 0.0},
    steps=80,
)
def regression(
    seed: int,
    model: Callable[[], nn.Module] | None = None,
    loss: Loss = F.mse_loss,
    act: Callable[[], nn.Module] = nn.LeakyReLU,
    std: float | None = None,
    shift: float | None = None,
) -> Run:
    """One number from sixteen."""
    found = net(16, 1) if model is None else model()
    if model is None:
        assert isinstance(found, nn.Sequential)
        found[1], found[3] = act(), act()
        if std is not None:
            for p in found.parameters():
                nn.init.normal_(p, std=std)
        if shift is not None:
            norms = [nn.BatchNorm1d(48), nn.BatchNorm1d(48)]
            for norm in norms:
                nn.init.constant_(norm.bias, shift)
            found = nn.Sequential(found[0], norms[0], nn.ReLU(), found[2], norms[1], nn.ReLU(), found[4])
    return Run(found, optimizer_of(found, "Adam", 4e-3), teacher(seed), loss)


@healthy("MLP", "multi-label-soft-margin", steps=80)
def several(seed: int) -> Run:
    """Each of ten labels holds or not, alone."""
    model, plain = net(64, 10), mixture(seed)
    turn = torch.randn(64, 10, generator=seeded(seed, -11)) / 8

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, _ = plain(step)
        return x, (x @ turn > 0.5).float()

    return Run(model, optimizer_of(model, "Adam", 5e-3), batch, F.multilabel_soft_margin_loss)
