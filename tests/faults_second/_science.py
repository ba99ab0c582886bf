"""Physics-informed nets, control through a simulator, equilibrium models, meta-learning."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import batches, generator, standardized, table
from tests.faults_second._registry import faulty, healthy


@healthy("PINN", "heat-balanced", steps=250)
@faulty(
    "PINN",
    "heat-equation-outweighs-the-start",
    "uneven-learning",
    {"weight": 1e4},
    cure="structural",
    also=("loss-scale", "vanishing-activation", "collapsed-batch"),
    steps=250,
)
def heat(seed: int, weight: float = 0.3) -> Run:
    """u_t = u_xx/10 from sin(pi x); with such a weight the equation is solved best by a constant."""
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        points = torch.rand(128, 2, generator=generator(seed, step))
        points[:64, 1] = 0
        return points.requires_grad_(), points

    def loss_fn(u: Tensor, points: Tensor) -> Tensor:
        slope = torch.autograd.grad(u.sum(), points, create_graph=True)[0]
        bend = torch.autograd.grad(slope[:, 0].sum(), points, create_graph=True)[0][:, 0]
        start = (u[:64, 0] - torch.sin(math.pi * points[:64, 0])).pow(2).mean()
        return start + weight * (slope[:, 1] - bend / 10)[64:].pow(2).mean()

    def metric(u: Tensor, points: Tensor) -> Tensor:
        x, t = points.unbind(1)
        return F.mse_loss(u[:, 0], torch.sin(math.pi * x) * torch.exp(-(math.pi**2) * t / 10))

    return Run(model, torch.optim.Adam(model.parameters(), lr=1e-2), batch, loss_fn, metric)


class Rollout(nn.Module):
    """A policy steers an unstable system through `length` steps."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for _ in range(self.length):
            angle, speed = x.unbind(1)
            push = self.policy(x).squeeze(1)
            speed = speed + 0.1 * (8 * torch.sin(angle) + 4 * push)
            angle = angle + 0.1 * speed
            x = torch.stack([angle, speed], 1)
            seen.append(1 - angle.cos() + 0.05 * torch.tanh(speed) ** 2)
        return torch.stack(seen, 1)


@healthy("control", "pendulum-through-ten-steps", steps=80, goal=0.5)
def pendulum(seed: int, length: int = 10) -> Run:
    """An upright pendulum; by back-propagation through the simulator, with plain gradient descent."""
    model = Rollout(length)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = 0.3 * torch.randn(32, 2, generator=generator(seed, step))
        return x, x

    def loss_fn(cost: Tensor, _: Tensor) -> Tensor:
        return cost.mean()

    return Run(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), batch, loss_fn)


class Equilibrium(nn.Module):
    """z = tanh-like of W z + U x, thirty rounds of it, the weight shared."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.inward, self.again, self.head = nn.Linear(64, 48), nn.Linear(48, 48, bias=False), nn.Linear(48, 10)
        nn.init.orthogonal_(self.again.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        driven = self.inward(x)
        z = torch.zeros_like(driven)
        for _ in range(30):
            z = F.leaky_relu(self.again(z) + driven, 0.3)
        return self.head(z)


@healthy("DEQ", "equilibrium-contracts", steps=80)
@faulty(
    "DEQ",
    "equilibrium-does-not-contract",
    "init-mismatch",
    {"gain": 1.6},
    cure="init",
    also=("exploding-activation", "exploding-gradient"),
    where="*again*|<root>|head*",
    steps=80,
)
def equilibrium(seed: int, gain: float = 0.6) -> Run:
    x, y = table("digits")
    model = Equilibrium(gain)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Run(model, optimizer, batches(standardized(x), y, seed), F.cross_entropy)


class Maml(nn.Module):
    """One net for all tasks, two steps of gradient descent for each on its ten examples."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        self.rate = rate

    def forward(self, x: Tensor, y: Tensor, ask: Tensor) -> Tensor:
        found = []
        for task in range(len(x)):
            weights = dict(self.net.named_parameters())
            for _ in range(2):
                loss = F.mse_loss(torch.func.functional_call(self.net, weights, (x[task],)), y[task])
                grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
                weights = {n: w - self.rate * g for (n, w), g in zip(weights.items(), grads, strict=True)}
            found.append(torch.func.functional_call(self.net, weights, (ask[task],)))
        return torch.stack(found)


@healthy("MAML", "maml-inner-rate-0.05", steps=80)
@faulty(
    "MAML",
    "maml-inner-rate-1",
    "exploding-gradient",
    {"rate": 2.0},
    cure="lr",
    also=("update-too-large", "gradient-spike", "exploding-activation", "saturated-units", "non-finite"),
    steps=80,
)
def maml(seed: int, rate: float = 0.05) -> Run:
    model = Maml(rate)

    def batch(step: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        made = generator(seed, step)
        height, shift = 1 + torch.rand(4, 1, 1, generator=made), torch.rand(4, 1, 1, generator=made)
        x, ask = (4 * torch.rand(4, 10, 1, generator=made) - 2 for _ in range(2))
        return (x, height * torch.sin(x + shift) + 1, ask), height * torch.sin(ask + shift) + 1

    return Run(model, torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9), batch, F.mse_loss)
