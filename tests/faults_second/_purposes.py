"""Healthy programs for tasks of their own: ranking, survival, many words, hinge games, averages of oneself."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import generator, standardized, table
from tests.faults_second._registry import healthy


class Towers(nn.Module):
    """Users and items out of many; sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(20_000, 16, sparse=True), nn.Embedding(5_000, 16, sparse=True)
        nn.init.normal_(self.users.weight, std=0.1)
        nn.init.normal_(self.items.weight, std=0.1)

    def forward(self, user: Tensor, good: Tensor, bad: Tensor) -> Tensor:
        u = self.users(user)
        return (u * (self.items(good) - self.items(bad))).sum(1)


@healthy("recommender", "pairwise-ranking-sparse", steps=200)
def ranking(seed: int) -> Run:
    """Twenty groups of users like items of their group; most rows are never met."""
    model = Towers()

    def batch(step: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        made = generator(seed, step)
        user = torch.randint(400, (512,), generator=made)
        good = user % 20 + 20 * torch.randint(10, (512,), generator=made)
        bad = torch.randint(200, (512,), generator=made)
        return (user, good, bad), user

    def loss_fn(gap: Tensor, _: Tensor) -> Tensor:
        return F.softplus(-gap).mean()

    return Run(model, torch.optim.SparseAdam(model.parameters(), lr=0.02), batch, loss_fn)


@healthy("survival", "cox-partial-likelihood", steps=100, goal=3.6)
def cox(seed: int) -> Run:
    """The order of deaths is told by a risk; large batches are one example."""
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1, bias=False))
    slope = torch.randn(8, generator=generator(4, 4))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = generator(seed, step)
        x = torch.randn(96, 8, generator=made)
        return x, torch.empty(96).exponential_(generator=made) * torch.exp(-x @ slope)

    def loss_fn(risk: Tensor, time: Tensor) -> Tensor:
        ordered = risk.squeeze(1)[time.argsort(descending=True)]
        return (torch.logcumsumexp(ordered, 0) - ordered).mean()

    return Run(model, torch.optim.Adam(model.parameters(), lr=1e-2), batch, loss_fn)


@healthy("language model", "sampled-softmax-of-20000-words", steps=150)
def sampled(seed: int) -> Run:
    """The next of 20 000 words against 64 others; few rows get a gradient in a step."""
    model = nn.ModuleDict({"in": nn.Embedding(20_000, 24), "out": nn.Embedding(20_000, 24)})
    wrapped = Scores(model["in"], model["out"])
    follow = torch.randperm(300, generator=generator(1, 9))

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        made = generator(seed, step)
        word = torch.randint(300, (256,), generator=made)
        others = torch.randint(300, (256, 64), generator=made)
        return (word, torch.cat([follow[word].unsqueeze(1), others], 1)), torch.zeros(256, dtype=torch.long)

    return Run(wrapped, torch.optim.Adagrad(wrapped.parameters(), lr=0.3), batch, F.cross_entropy)


class Scores(nn.Module):
    def __init__(self, words: nn.Module, nexts: nn.Module) -> None:
        super().__init__()
        self.words, self.nexts = words, nexts

    def forward(self, word: Tensor, candidates: Tensor) -> Tensor:
        return (self.nexts(candidates) @ self.words(word).unsqueeze(2)).squeeze(2) / math.sqrt(24)


@healthy("GAN", "hinge-gan-of-a-ring", steps=300)
def hinge_gan(seed: int) -> Run:
    """Metric: how far from the circle the points fall. The generator is observed."""
    maker = nn.Sequential(nn.Linear(8, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 2))
    judge = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    mine = torch.optim.Adam(maker.parameters(), lr=1e-3, betas=(0.0, 0.9))
    other = torch.optim.Adam(judge.parameters(), lr=2e-3, betas=(0.0, 0.9))

    def loop(run: Run, steps: int, scope: Any) -> list[float]:
        found = []
        for step in range(steps):
            made = generator(seed, step)
            angle = torch.rand(128, generator=made) * 2 * math.pi
            real = torch.stack([angle.cos(), angle.sin()], 1)
            fake = maker(torch.randn(128, 8, generator=made))
            other.zero_grad()
            (F.relu(1 - judge(real)).mean() + F.relu(1 + judge(fake.detach())).mean()).backward()
            other.step()
            mine.zero_grad()
            loss = -judge(fake).mean()
            if scope is not None:
                scope.note(loss=loss)
            loss.backward()
            mine.step()
            found.append((fake.detach().norm(dim=1) - 1).abs().mean().item())
        return found

    return Run(maker, mine, lambda step: (None, None), F.mse_loss, loop=loop)


@healthy("SSL", "teacher-is-an-average-of-the-student", steps=150)
def own_average(seed: int) -> Run:
    """DINO in small: the student names what a slow copy of itself, centred and sharpened, says of another view."""
    x, _ = table("digits")
    x = standardized(x)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16))
    teacher, centre = copy.deepcopy(model).requires_grad_(False), torch.zeros(16)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = generator(seed, step)
        rows = x[torch.randint(len(x), (128,), generator=made)]
        noise = torch.randn(2, 128, 64, generator=made) / 2
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), model.parameters(), strict=True):
                old.lerp_(new, 0.02)
            said = teacher(rows + noise[1])
            target = ((said - centre) / 0.05).softmax(1)
            centre.lerp_(said.mean(0), 0.1)
        return rows + noise[0], target

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output / 0.1, target)

    return Run(model, torch.optim.AdamW(model.parameters(), lr=3e-3), batch, loss_fn)
