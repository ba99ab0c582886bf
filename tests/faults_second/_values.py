"""DDPG, SAC, values of actions, old experience."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from tests.faults._program import Run
from tests.faults_second._control import RULE, observations
from tests.faults_second._data import generator
from tests.faults_second._registry import faulty, healthy


class Actor(nn.Module):
    """Squashed to -1…1 as DDPG does."""

    def __init__(self, last: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 2))
        nn.init.uniform_(self.body[2].weight, -last, last)
        self.squash = nn.Tanh()

    def forward(self, s: Tensor) -> Tensor:
        return self.squash(self.body(s))


@healthy("DDPG", "ddpg-last-layer-3e-3", steps=120)
@faulty(
    "DDPG",
    "ddpg-last-layer-of-3",
    "saturated-units",
    {"last": 3.0},
    cure="init",
    also=("init-mismatch", "vanishing-gradient"),
    where="*squash*|body*",
    steps=120,
)
def ddpg(seed: int, last: float = 3e-3) -> Run:
    """The critic is known: the squared distance to the best action, which is within -0.8…0.8."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        s = torch.randn(128, 6, generator=generator(seed, step))
        return s, 0.8 * torch.sin(s @ RULE[:, :2] / 2)

    model = Actor(last)
    return Run(model, torch.optim.Adam(model.parameters(), lr=3e-3), batch, F.mse_loss)


@healthy("SAC", "sac-log-prob-of-clipped-actions", steps=100, goal=1.0)
@faulty(
    "SAC",
    "sac-atanh-of-1",
    "non-finite",
    {"limit": 1.0},
    cure="structural",
    start=40,
    steps=100,
)
def sac(seed: int, limit: float = 1 - 1e-4) -> Run:
    """A squashed normal learns from recorded actions, which from step 40 on touch the bounds. Also offline RL's way."""
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 4))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = generator(seed, step)
        s = torch.randn(64, 6, generator=made)
        a = torch.tanh(s @ RULE[:, :2] / 4 + 0.3 * torch.randn(64, 2, generator=made))
        if step >= 40:
            a[0] = 1.0
        return s, a

    def loss_fn(output: Tensor, a: Tensor) -> Tensor:
        mean, log_std = output.chunk(2, 1)
        raw = torch.atanh(a.clamp(-limit, limit))
        found = -(Normal(mean, log_std.clamp(-5, 2).exp(), validate_args=False).log_prob(raw))
        return found.clamp_max(20).mean()

    return Run(model, torch.optim.Adam(model.parameters(), lr=5e-3), batch, loss_fn)


class Q(nn.Module):
    def __init__(self, end: bool, fill: float | None) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)]
        self.body = nn.Sequential(*layers, *([nn.ReLU()] if end else []))
        if fill is not None:
            for layer in (layers[0], layers[2]):
                nn.init.constant_(layer.weight, fill)  # type: ignore[arg-type]
                nn.init.constant_(layer.bias, fill)  # type: ignore[arg-type]

    def forward(self, s: Tensor) -> Tensor:
        return self.body(s)


@healthy("DQN", "q-of-costs")
@faulty(
    "DQN",
    "q-of-costs-through-relu",
    "output-pairing",
    {"end": True},
    cure="structural",
    also=("dead-units", "no-gradient", "vanishing-gradient"),
)
@faulty(
    "DQN",
    "q-weights-filled-with-0.01",
    "symmetric-units",
    {"fill": 0.01},
    cure="init",
    also=("init-mismatch", "collapsed-batch"),
    where="body*",
)
def q_learning(seed: int, end: bool = False, fill: float | None = None) -> Run:
    """Each step costs 1, a wrong one 2 more; the values of the actions taken are fitted."""
    model = Q(end, fill)

    def batch(step: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        s, right = observations(seed, step)
        return s, (torch.randint(4, (128,), generator=generator(seed, -step - 1)), right)

    def loss_fn(q: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        a, right = target
        return F.mse_loss(q.gather(1, a.unsqueeze(1)).squeeze(1), -1 - 2 * (a != right).float())

    def metric(q: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        return (q.argmax(1) != target[1]).float().mean()

    return Run(model, torch.optim.Adam(model.parameters(), lr=3e-3), batch, loss_fn, metric)


@healthy("policy gradient", "off-policy-ratios-clipped", steps=120, goal=0.45)
@faulty(
    "policy gradient",
    "off-policy-ratios-explode",
    "gradient-spike",
    {"cap": 1e9},
    cure="clip",
    also=("exploding-gradient", "update-too-large", "saturated-units", "non-finite", "loss-scale"),
    steps=120,
)
def off_policy(seed: int, cap: float = 2.0) -> Run:
    """Old experience of an actor that hardly ever did what is now thought right: 1 over its probability is a weight."""
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 4))
    behave = torch.tensor([0.9, 0.0999, 1e-4, 1e-7])

    def batch(step: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        s, right = observations(seed, step)
        probable = behave.clamp_min(0.02)
        a = torch.multinomial(probable, 128, replacement=True, generator=generator(seed, -step - 1))
        return s, (a, right)

    def loss_fn(logits: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        a, right = target
        log = Categorical(logits=logits).log_prob(a)
        ratio = (log.exp() / behave[a]).clamp_max(cap).detach()
        reward = (a == right).float() - 0.25
        return -(ratio * reward * log).mean()

    def metric(logits: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        return (logits.argmax(1) != target[1]).float().mean()

    return Run(model, torch.optim.SGD(model.parameters(), lr=0.3), batch, loss_fn, metric)
