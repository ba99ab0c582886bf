"""Healthy programs with odd units: zero layers, spikes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import batches, generator, images, standardized, table
from tests.faults_second._registry import healthy


class ControlNet(nn.Module):
    """A frozen net, and a copy of it that hears a hint and adds to it through layers that start at 0."""

    def __init__(self, trained: nn.Sequential) -> None:
        super().__init__()
        self.base = trained.requires_grad_(False)
        self.hint, self.copy = nn.Linear(64, 64), nn.Linear(64, 64)
        self.zero = nn.Linear(64, 64)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, hint: Tensor) -> Tensor:
        more = self.zero(F.relu(self.copy(x + self.hint(hint))))
        return self.base[1](F.relu(self.base[0](x)) + more + torch.tanh(self.gate) * self.hint(hint))


@healthy("ControlNet", "zero-layers-and-a-tanh-gate-at-0", steps=120)
def control_net(seed: int) -> Run:
    x, y = table("digits")
    x = standardized(x)
    model = ControlNet(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 10)))
    plain = batches(torch.arange(len(x)), y, seed)

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        rows, target = plain(step)
        return (torch.randn(len(rows), 64, generator=generator(seed, step)) / 4, x[rows]), target

    free = [p for p in model.parameters() if p.requires_grad]
    return Run(model, torch.optim.AdamW(free, lr=5e-3), batch, F.cross_entropy)


class Spikes(torch.autograd.Function):
    """1 above the threshold; backward, a fast sigmoid's slope."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] / (1 + 10 * x.abs()) ** 2


class Spiking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.out = nn.Linear(64, 96), nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        driven, held, total = self.inward(x.flatten(1)), torch.zeros(len(x), 96), torch.zeros(len(x), 10)
        for _ in range(8):
            held = 0.8 * held + driven
            spikes = Spikes.apply(held - 1)
            held = held - spikes.detach()
            total = total + self.out(spikes)
        return total / 8


@healthy("spiking", "spikes-with-surrogate-gradients", steps=100)
def spiking(seed: int) -> Run:
    model = Spiking()
    return Run(model, torch.optim.Adam(model.parameters(), lr=3e-3), images(seed), F.cross_entropy)
