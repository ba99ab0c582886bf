"""Reinforcement: PPO and GRPO on bandits and short chains that need no simulator."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

from tests.faults._program import Run
from tests.faults_second._data import generator
from tests.faults_second._registry import faulty, healthy


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4))
        self.critic = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(s), self.critic(s).squeeze(1)


RULE = torch.randn(6, 4, generator=generator(3, 3))  # which action is right in which state


def observations(seed: int, step: int, size: int = 128) -> tuple[Tensor, Tensor]:
    s = torch.randn(size, 6, generator=generator(seed, step))
    return s, (s @ RULE).argmax(1)


@healthy("PPO", "ppo-four-epochs", steps=160, goal=0.4)
@faulty(
    "PPO",
    "ppo-ratio-of-old-to-old",
    "no-gradient",
    {"old": True},
    cure="structural",
    also=("uneven-learning",),
    where="actor*",
    steps=160,
)
@faulty(
    "PPO",
    "ppo-positions-in-millimetres",
    "input-scale",
    {"unit": 1000.0},
    cure="normalisation",
    also=("saturated-units", "vanishing-gradient"),
    where="<input>|actor*|critic*",
    steps=160,
)
def ppo(seed: int, old: bool = False, unit: float = 1.0) -> Run:
    """Metric: the share of wrong actions. One batch of experience serves four steps."""
    model = ActorCritic()
    store: dict[str, Any] = {}

    def seen(s: Tensor) -> Tensor:
        return (s + 5) * unit if unit > 1 else s

    def batch(step: int) -> tuple[Tensor, Tensor]:
        s, right = observations(seed, step // 4)
        if step % 4 == 0:
            with torch.no_grad():
                policy = Categorical(logits=model.actor(seen(s)))
            store["a"] = torch.multinomial(policy.probs, 1, generator=generator(seed, -step - 1)).squeeze(1)
            store["log"] = policy.log_prob(store["a"])
        return seen(s), right

    def loss_fn(output: tuple[Tensor, Tensor], right: Tensor) -> Tensor:
        logits, value = output
        reward = (store["a"] == right).float()
        advantage = (reward - value).detach()
        log = store["log"] if old else Categorical(logits=logits).log_prob(store["a"])
        ratio = (log - store["log"]).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        return F.mse_loss(value, reward) / 2 - gain.mean()

    def metric(output: tuple[Tensor, Tensor], right: Tensor) -> Tensor:
        return (output[0].argmax(1) != right).float().mean()

    return Run(model, torch.optim.Adam(model.parameters(), lr=1e-2), batch, loss_fn, metric, clip=0.5)


@healthy("GRPO", "grpo-deviation-with-a-floor", steps=120, goal=0.4)
@faulty(
    "GRPO",
    "grpo-group-of-equal-rewards",
    "non-finite",
    {"floor": 0.0},
    cure="structural",
    steps=120,
)
def grpo(seed: int, floor: float = 1e-4) -> Run:
    """Rewards of a group of eight answers less their mean over their deviation, which is 0 where all are right."""
    model = nn.Sequential(nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 4))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return observations(seed, step, 64)

    def loss_fn(logits: Tensor, right: Tensor) -> Tensor:
        policy = Categorical(logits=logits, validate_args=False)
        noise = torch.rand(8, len(right), 4, generator=generator(seed, int(right.sum()) + 500))
        answers = (policy.probs.detach() / -noise.log()).argmax(2)
        reward = (answers == right).float()
        advantage = (reward - reward.mean(0)) / (reward.std(0) + floor)
        return -(advantage * policy.log_prob(answers)).mean()

    def metric(logits: Tensor, right: Tensor) -> Tensor:
        return (logits.argmax(1) != right).float().mean() + 0 * logits.sum()

    return Run(model, torch.optim.AdamW(model.parameters(), lr=1e-2), batch, loss_fn, metric, clip=1.0)
