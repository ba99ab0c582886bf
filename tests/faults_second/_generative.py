"""Variational autoencoders, and a GAN of texts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import batches, generator, standardized, table
from tests.faults_second._registry import faulty, healthy


class VAE(nn.Module):
    def __init__(self, sample: bool, act: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), act(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 64), act(), nn.Linear(64, 64))
        self.sample = sample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, 1)
        normal = torch.distributions.Normal(mean, (0.5 * log_var).exp())
        return self.decoder(normal.sample() if self.sample else normal.rsample()), mean, log_var


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL to the unit normal, of each row."""
    return (mean.pow(2) + log_var.exp() - 1 - log_var).sum(1) / 2


@healthy("VAE", "vae-both-summed", steps=250)
@healthy("VAE", "vae-beta-in-warm-up", {"warm": 100}, steps=250)
@faulty(
    "VAE",
    "vae-kl-summed-pixels-averaged",
    "loss-scale",
    {"pixels": "mean"},
    cure="structural",
    also=("collapsed-batch", "vanishing-gradient", "uneven-learning", "vanishing-activation"),
    steps=250,
)
@faulty(
    "VAE",
    "vae-sample-instead-of-rsample",
    "no-gradient",
    {"sample": True},
    cure="structural",
    also=("uneven-learning", "collapsed-batch", "vanishing-gradient"),
    where="encoder*",
    steps=250,
)
@faulty(
    "VAE",
    "vae-bce-of-standardized-pixels",
    "output-pairing",
    {"standard": True, "bce": True},
    twin={"standard": True},
    cure="structural",
    also=("exploding-activation", "exploding-gradient", "non-finite", "input-scale", "saturated-units"),
    steps=250,
)
def vae(
    seed: int, pixels: str = "sum", sample: bool = False, standard: bool = False, bce: bool = False, warm: int = 0
) -> Run:
    """The metric is the squared error of a pixel."""
    x, y = table("digits")
    x = standardized(x) if standard else x / 16
    plain, now = batches(x, y, seed), [0]
    model = VAE(sample)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        now[0] = step
        rows = plain(step)[0]
        return rows, rows

    def loss_fn(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        found, mean, log_var = output
        each = F.binary_cross_entropy_with_logits if bce or not standard else F.mse_loss
        error = each(found, target, reduction="none")
        beta = min(1.0, now[0] / warm) if warm else 1.0
        return (error.sum(1) if pixels == "sum" else error.mean(1)).mean() + beta * divergence(mean, log_var).mean()

    def metric(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        found = output[0].sigmoid() if not standard else output[0]
        return F.mse_loss(found, target) * (20 if not standard else 1)

    return Run(model, torch.optim.Adam(model.parameters(), lr=5e-3), batch, loss_fn, metric)


class Generator(nn.Module):
    """Eight tokens of twelve, each a choice; the discriminator gets a soft choice, or the index of the largest."""

    def __init__(self, hard: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 96))
        self.hard = hard

    def forward(self, z: Tensor) -> Tensor:
        scores = self.body(z).view(-1, 8, 12)
        return F.one_hot(scores.argmax(2), 12).float() if self.hard else scores.softmax(2)


@healthy("GAN", "text-gan-soft-choices", steps=120, goal=0.5)
@faulty(
    "GAN",
    "text-gan-argmax",
    "no-gradient",
    {"hard": True},
    cure="structural",
    where="*body*|<root>",
    steps=120,
)
def text_gan(seed: int, hard: bool = False) -> Run:
    """Real texts have rising tokens; metric: the share of neighbours that do not rise. The generator is observed."""
    generator_ = Generator(hard)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(96, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    mine = torch.optim.Adam(generator_.parameters(), lr=5e-3, betas=(0.5, 0.9))
    other = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.9))
    model = nn.ModuleDict({"generator": generator_, "critic": critic})

    def loop(run: Run, steps: int, scope: Any) -> list[float]:
        found = []
        for step in range(steps):
            made = generator(seed, step)
            real = F.one_hot(torch.rand(64, 12, generator=made).topk(8).indices.sort(1).values, 12).float()
            fake = generator_(torch.randn(64, 8, generator=made))
            other.zero_grad()
            (F.softplus(-critic(real)).mean() + F.softplus(critic(fake.detach())).mean()).backward()
            other.step()
            mine.zero_grad()
            loss = F.softplus(-critic(fake)).mean()
            if scope is not None:
                scope.note(loss=loss)
            loss.backward()
            mine.step()
            places = (fake.detach() * torch.arange(12)).sum(2)
            found.append((places[:, 1:] <= places[:, :-1]).float().mean().item())
        return found

    return Run(
        model, mine, lambda step: (None, None), F.mse_loss, loop=loop, watched=generator_, watched_optimizer=mine
    )
