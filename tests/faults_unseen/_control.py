"""Reinforcement learning: a DQN with a target network, an actor with a critic, a Gaussian policy."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import seeded
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy

RIGHT = torch.tensor([[1.0, -1.0, 0.5], [-0.5, 1.0, 0.3], [0.2, 0.4, -1.0], [0.7, -0.2, 0.6]])


class Deep(nn.Module):
    """Online and target network; the value of the action taken, and what the target network makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3))
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, state: Tensor, action: Tensor, reward: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            goal = reward + 0.5 * self.target(after).amax(1)
        return self.online(state).gather(1, action[:, None])[:, 0], goal


@healthy("DQN", "dqn-target-network", steps=100)
@healthy("DQN", "dqn-soft-target-sgd", {"soft": 0.02, "kind": "SGD", "lr": 0.02}, steps=100)
@faulty(
    "DQN",
    "dqn-raw-score-as-reward",
    "output-pairing",
    {"reward": 1e4},
    cure="normalisation",
    also=("loss-scale", "exploding-gradient", "update-too-small", "input-scale"),
    steps=100,
)
@faulty(
    "DQN",
    "dqn-one-wild-reward",
    "gradient-spike",
    {"wild": 60, "kind": "SGD", "lr": 0.05},
    start=60,
    cure="clipping",
    where="online*|<root>",
    steps=100,
    also=("update-too-large", "exploding-gradient"),
    twin={"kind": "SGD", "lr": 0.05},
)
@faulty(
    "DQN",
    "dqn-optimizer-of-the-target",
    "no-gradient",
    {"wrong": True},
    cure="structural",
    also=("update-too-small",),
    where="online*",
    steps=100,
)
def q_learning(
    seed: int,
    reward: float = 1.0,
    wild: int | None = None,
    wrong: bool = False,
    soft: float | None = None,
    kind: str = "Adam",
    lr: float = 3e-3,
) -> Run:
    """A contextual walk with three actions; the metric divides the rewards' own scale out."""
    model = Deep()

    def batch(step: int) -> tuple[tuple[Tensor, ...], Tensor]:
        source = seeded(seed, step)
        state, after = torch.randn(2, 64, 4, generator=source)
        action = torch.randint(3, (64,), generator=source)
        gain = (torch.tanh(state) @ RIGHT).gather(1, action[:, None])[:, 0]
        if step == wild:
            gain[7] = 400
        return (state, action, reward * gain, after), state

    def before_step(step: int) -> None:
        with torch.no_grad():
            for p, q in zip(model.target.parameters(), model.online.parameters(), strict=True):
                if soft is not None:
                    p.lerp_(q, soft)
                elif step % 20 == 0 and not wrong:
                    p.copy_(q)

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(*output)

    def metric(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(*output) / reward**2

    optimizer = optimizer_of(list((model.target if wrong else model.online).parameters()), kind, lr)
    return Run(model, optimizer, batch, loss, metric=metric, before_step=before_step)


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 48), nn.Tanh())
        self.actor, self.critic = nn.Linear(48, 3), nn.Linear(48, 1)

    def forward(self, state: Tensor, pick: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden = self.body(state)
        logs = F.log_softmax(self.actor(hidden), 1)
        chance = logs.detach().exp().cumsum(1)
        action = (pick[:, None] > chance).sum(1).clamp(max=2)
        gain = (torch.tanh(state) @ RIGHT).gather(1, action[:, None])[:, 0]
        return logs, logs.gather(1, action[:, None])[:, 0], self.critic(hidden)[:, 0], gain


@healthy("actor-critic", "advantage-actor-critic", steps=100, goal=-0.4)
@faulty(
    "actor-critic",
    "advantage-of-one-step-normalized",
    "non-finite",
    {"short": 40},
    start=40,
    cure="structural",
    where="<root>|actor*|body*",
    steps=80,
)
@faulty(
    "actor-critic",
    "value-loss-outweighs-the-policy",
    "update-too-large",
    {"weight": 1e4, "kind": "SGD", "lr": 0.05},
    cure="scale",
    also=("loss-scale", "exploding-gradient", "saturated-units", "non-finite", "uneven-learning"),
    twin={"kind": "SGD", "lr": 0.05},
    steps=100,
)
def actor_critic(seed: int, short: int | None = None, weight: float = 0.5, kind: str = "Adam", lr: float = 0.01) -> Run:
    """Advantages of each batch are normalized; one of a single step has no spread. The metric is minus the gain."""
    model = ActorCritic()

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        source = seeded(seed, step)
        size = 1 if step == short else 128
        state = torch.randn(size, 4, generator=source)
        return (state, torch.rand(size, generator=source)), state

    def loss(output: tuple[Tensor, ...], target: Tensor) -> Tensor:
        logs, taken, value, gain = output
        advantage = gain - value.detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        entropy = -(logs.exp() * logs).sum(1).mean()
        return -(taken * advantage).mean() + weight * F.mse_loss(value, gain) - 0.01 * entropy

    def metric(output: tuple[Tensor, ...], target: Tensor) -> Tensor:
        return -output[3].mean() + 0 * output[1].sum()

    return Run(model, optimizer_of(model, kind, lr), batch, loss, metric=metric)


@healthy("behaviour cloning", "gaussian-policy-cloned", steps=80, goal=0.3)
def cloned(seed: int) -> Run:
    """A tanh-squashed mean and a learned spread, from an expert's actions."""
    model = Policy()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        state = torch.randn(64, 4, generator=source)
        return state, torch.tanh(state @ RIGHT) + 0.1 * torch.randn(64, 3, generator=source)

    def loss(output: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        mean, log_std = output
        return (0.5 * ((y - mean) / log_std.exp()) ** 2 + log_std + 0.92).mean()

    return Run(model, optimizer_of(model, "Adam", 0.01), batch, loss)


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 48), nn.Tanh(), nn.Linear(48, 3), nn.Tanh())
        self.log_std = nn.Parameter(torch.zeros(3))

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(state), self.log_std
