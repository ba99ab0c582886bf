"""Discriminator and generator in turn."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradscope.hooks import GradScope
from tests.faults._data import seeded
from tests.faults._program import Run, update
from tests.faults._registry import faulty, healthy


def discriminator(act: Callable[[], nn.Module], end: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, 1), end)


def adversarial_loop(
    saturating: bool, clamp: float | None, logs: bool
) -> Callable[[Run, int, GradScope | None], list[float]]:
    """Discriminator and generator in turn; the metric is how far the fakes' mean and spread are from the real ones'."""

    def loop(run: Run, steps: int, scope: GradScope | None) -> list[float]:
        generator, judge = run.model.generator, run.model.discriminator  # type: ignore[union-attr]
        other: torch.optim.Optimizer = run.model.generator_optimizer  # type: ignore[assignment, union-attr]
        metrics = []
        for step in range(steps):
            z, real = run.batch(step)
            fake = generator(z)
            judge.zero_grad()
            scores = judge(torch.cat([real, fake.detach()]))
            label = torch.cat([torch.ones(len(real), 1), torch.zeros(len(real), 1)])
            if logs:
                loss = -(label * torch.log(scores) + (1 - label) * torch.log(1 - scores)).mean()
            elif clamp is not None:
                loss = -(scores * (2 * label - 1)).mean()
            else:
                loss = F.binary_cross_entropy_with_logits(scores, label)
            if scope is not None:
                scope.note(loss=loss)
            loss.backward()
            update(run)
            if clamp is not None:
                with torch.no_grad():
                    for p in judge.parameters():
                        p.clamp_(-clamp, clamp)
            generator.zero_grad()
            with torch.no_grad():
                metrics.append(float((fake.mean(0) - real.mean(0)).norm() + (fake.std(0) - real.std(0)).norm()))
            if scope is not None and step == steps - 1:
                break
            for p in judge.parameters():
                p.requires_grad_(False)
            judged = judge(generator(z))
            if logs:
                (-torch.log(judged)).mean().backward()
            elif clamp is not None:
                (-judged).mean().backward()
            elif saturating:
                (-F.softplus(judged)).mean().backward()
            else:
                F.softplus(-judged).mean().backward()
            for p in judge.parameters():
                p.requires_grad_(True)
            other.step()
        return metrics

    return loop


class Adversaries(nn.Module):
    def __init__(self, judge: nn.Sequential, lr: float) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        self.discriminator = judge
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), lr, betas=(0.5, 0.9))


@healthy("GAN", "gan-non-saturating", steps=100)
@healthy("GAN", "wgan-clipped-weights", {"clamp": 0.1}, steps=100)
@faulty(
    "GAN",
    "gan-discriminator-lr-50",
    "update-too-large",
    {"lr": 50.0},
    cure="learning rate",
    also=("exploding-activation", "dead-units"),
    steps=160,
)
@faulty(
    "GAN",
    "gan-log-of-0",
    "non-finite",
    {"logs": True, "lr": 0.5},
    cure="structural",
    where="5|<root>",
    also=("saturated-units", "update-too-large"),
    steps=100,
)
@faulty(
    "GAN",
    "gan-real-data-not-normalized",
    "input-scale",
    {"scale": 1e4},
    cure="normalisation",
    where="<input>|0",
    also=("exploding-activation",),
    steps=100,
)
def adversarial(
    seed: int,
    lr: float = 0.01,
    saturating: bool = False,
    clamp: float | None = None,
    logs: bool = False,
    scale: float = 1.0,
) -> Run:
    """A GAN of points on a plane, watched at the discriminator."""
    judge = discriminator(lambda: nn.LeakyReLU(0.2), nn.Sigmoid() if logs else nn.Identity())
    model = Adversaries(judge, 0.01)
    optimizer = torch.optim.Adam(judge.parameters(), lr, betas=(0.5, 0.9))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        real = torch.tensor([2.0, -1.0]) + torch.randn(64, 2, generator=source) * torch.tensor([0.5, 1.0])
        return torch.randn(64, 4, generator=source), scale * real

    return Run(
        model,
        optimizer,
        batch,
        F.mse_loss,
        loop=adversarial_loop(saturating, clamp, logs),
        watched=judge,
        watched_optimizer=optimizer,
    )
