"""Arithmetic that breaks at one value: an empty mask, the logarithm of 0, half precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import mixture, oscillations, teacher
from tests.faults._parts import Call, optimizer_of
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy


class Masked(nn.Module):
    """The mean over the frames that are there."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.body, self.head, self.floor = nn.Sequential(nn.Linear(9, 32), nn.SiLU()), nn.Linear(32, 4), floor

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.body(x) * mask[..., None]
        return self.head(h.sum(1) / mask.sum(1, keepdim=True).clamp(min=self.floor))


@healthy("masked pooling", "masked-mean")
@faulty(
    "masked pooling",
    "masked-mean-of-nothing",
    "non-finite",
    {"floor": 0.0, "empty": 12},
    start=12,
    cure="structural",
    where="head*|<root>",
    twin={"floor": 0.0},
)
def pooled(seed: int, floor: float = 1.0, empty: int | None = None) -> Run:
    """Frames of three samples each, of which a third is missing; from a step on one sequence has none at all."""
    model, plain = Masked(floor), oscillations(seed)

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        x, y = plain(step)
        frames = x.unfold(1, 3, 1).flatten(2)
        mask = (torch.rand(frames.shape[:2], generator=torch.Generator().manual_seed(step)) < 0.67).float()
        if empty is not None and step >= empty:
            mask[5] = 0
        return (frames, mask), y

    return Run(model, optimizer_of(model, "Adam", 0.01), batch, F.cross_entropy)


@healthy("MLP", "log-of-returns")
@faulty(
    "MLP",
    "log1p-of-minus-1",
    "non-finite",
    {"loss_of_all": 20},
    start=20,
    cure="structural",
    where="0|1|1.*",
)
def returns(seed: int, loss_of_all: int | None = None) -> Run:
    """The first layer takes the logarithm of 1 + a return; one return is −100 %."""
    body = [nn.Linear(16, 48), nn.Tanh(), nn.Linear(48, 1)]
    model, plain = nn.Sequential(Call(lambda x: 3 * torch.log1p(x)), *body), teacher(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        x = torch.expm1(x / 3)
        if step == loss_of_all:
            x[4, 2] = -1.0
        return x, y

    return Run(model, optimizer_of(model, "Adam", 5e-3), batch, F.mse_loss)


class UnitLength(nn.Module):
    """Divides by the length, and by a small number where that is 0: in half precision the small number is 0 too."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.norm(dim=1, keepdim=True) + torch.tensor(self.epsilon, dtype=x.dtype))


class Half(nn.Module):
    """Half precision inside, single outside."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.half()).float()


@healthy("MLP", "half-unit-length")
@faulty(
    "MLP",
    "half-epsilon-1e-8",
    "non-finite",
    {"epsilon": 1e-8, "silent": 10},
    start=10,
    cure="structural",
    also=("dtype-underflow",),
    where="body|body.[01]*|<root>",
    twin={"epsilon": 1e-8},
)
@faulty(
    "MLP",
    "half-squared-error-summed",
    "dtype-overflow",
    {"summed": True},
    cure="structural",
    also=("non-finite", "exploding-gradient", "loss-scale"),
)
def half(seed: int, epsilon: float = 1e-3, silent: int | None = None, summed: bool = False) -> Run:
    """Weights of half precision; a silent recording has no length."""
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
    model, plain = Half(nn.Sequential(UnitLength(epsilon), *layers)), mixture(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        if silent is not None and step >= silent:
            x[3] = 0
        return x, y

    def loss(p: Tensor, y: Tensor) -> Tensor:
        if summed:  # of scores that go up to 300, in half precision
            goal = 300 * F.one_hot(y, 10).half()
            return (p.half() - goal).square().sum().float()
        return F.cross_entropy(8 * p, y)

    metric = (lambda p, y: F.cross_entropy(8 * p, y)) if summed else None
    return Run(model, optimizer_of(model, "SGD", 0.1), batch, loss, metric=metric)
