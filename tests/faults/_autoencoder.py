"""Autoencoders, plain and variational, on the digits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import digits, seeded
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


class Autoencoder(nn.Module):
    def __init__(
        self, bottleneck: int, act: Callable[[], nn.Module], code: Callable[[], nn.Module], end: nn.Module
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), act(), nn.Linear(64, bottleneck), code())
        self.decoder = nn.Sequential(nn.Linear(bottleneck, 64), act(), nn.Linear(64, 64), end)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@healthy("autoencoder", "ae-sigmoid-bce", steps=80)
@healthy(
    "autoencoder",
    "ae-tanh-images-in-minus-1-to-1",
    {"end": nn.Tanh, "loss": F.mse_loss, "mean": 0.5, "std": 0.5},
    steps=80,
)
@healthy(
    "autoencoder",
    "ae-linear-mse-sum",
    {"end": nn.Identity, "loss": lambda p, y: F.mse_loss(p, y, reduction="sum"), "lr": 3e-3},
    steps=80,
)
@healthy("autoencoder", "ae-denoising", {"noise": 0.3}, steps=80, goal=0.5)
@faulty(
    "autoencoder",
    "ae-dead-code",
    "dead-units",
    {"shift": -6.0, "code": nn.ReLU},
    cure="init",
    where="encoder.4|encoder.3|encoder.3.*",
    twin={"code": nn.ReLU},
    also=("collapsed-batch",),
    steps=160,
)
@faulty(
    "autoencoder",
    "ae-sigmoid-0-to-255",
    "output-pairing",
    {"loss": F.mse_loss, "std": 1 / 255},
    cure="normalisation",
    where="decoder.3|<input>",
    also=("input-scale", "saturated-units"),
    twin={"loss": F.mse_loss},
    steps=80,
)
@faulty(
    "autoencoder",
    "ae-relu-output-of-standardized",
    "output-pairing",
    {"end": nn.ReLU, "loss": F.mse_loss, "mean": 0.3, "std": 0.37},
    cure="structural",
    where="decoder.3",
    also=("dead-units",),
    twin={"end": nn.Identity, "loss": F.mse_loss, "mean": 0.3, "std": 0.37},
    steps=80,
)
@faulty(
    "autoencoder",
    "ae-detached-code",
    "no-gradient",
    {"cut": True, "bottleneck": 4},
    cure="structural",
    where="encoder.*",
    twin={"bottleneck": 4},
    steps=200,
)
@faulty(
    "autoencoder",
    "ae-decoder-not-in-optimizer",
    "no-gradient",
    {"forget": True},
    cure="structural",
    where="decoder.*",
    steps=80,
)
def autoencoder(
    seed: int,
    bottleneck: int = 12,
    code: Callable[[], nn.Module] = nn.Identity,
    end: Callable[[], nn.Module] = nn.Sigmoid,
    loss: Callable[[Tensor, Tensor], Tensor] = F.binary_cross_entropy,
    mean: float = 0.0,
    std: float = 1.0,
    lr: float = 5e-3,
    noise: float = 0.0,
    shift: float = 0.0,
    cut: bool = False,
    forget: bool = False,
) -> Run:
    """The digits through a bottleneck."""
    model = Autoencoder(bottleneck, nn.ReLU, code, end())
    with torch.no_grad():
        model.encoder[3].bias += shift  # type: ignore[operator]
    if cut:
        model.encoder.register_forward_hook(lambda module, args, output: output.detach())
    plain = digits(seed, 64, mean, std)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, _ = plain(step)
        return x + noise * torch.randn(x.shape, generator=seeded(seed, step)), x.flatten(1)

    unit = 1.0 if std > 0.1 else 255.0**2  # squared errors of pixels to 255, as of pixels to 1
    chosen = list((model.encoder if forget else model).parameters())
    return Run(
        model,
        optimizer_of(chosen, "Adam", lr),
        batch,
        loss,
        metric=lambda p, y: loss(p, y) / unit if unit != 1 else loss(p, y),
    )


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 24, 4, 2, 1), nn.LeakyReLU(0.2)
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(24, 16, 4, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


@healthy("autoencoder", "ae-transposed-convolutions", steps=60)
def transposed(seed: int) -> Run:
    """Images in [−1, 1] down and up again."""
    model, plain = Transposed(), digits(seed, 32, 0.5, 0.5)
    return Run(model, optimizer_of(model, "Adam", 5e-3), lambda step: (plain(step)[0],) * 2, F.mse_loss)


class Variational(nn.Module):
    def __init__(self, latent: int, start: float, form: str) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.mean, self.spread = nn.Linear(64, latent), nn.Linear(64, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, 64), nn.ReLU(), nn.Linear(64, 64))
        nn.init.constant_(self.spread.bias, start)
        self.form = form

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, spread = self.mean(h), self.spread(h)
        std = spread if self.form == "raw" else (0.5 * spread).exp()
        return self.decoder(mean + std * torch.randn_like(mean)), mean, spread


def elbo(weight: float, form: str) -> Callable[[tuple[Tensor, Tensor, Tensor], Tensor], Tensor]:
    def loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        logits, mean, spread = output
        log_variance = 2 * torch.log(spread) if form == "raw" else spread
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(-1).mean()
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(target) + weight * divergence

    return loss


def reconstruction(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output[0], target, reduction="sum") / len(target)


@healthy("VAE", "vae-digits", steps=80)
@healthy("VAE", "vae-small-kl-weight", {"weight": 0.1}, steps=80)
@faulty(
    "VAE", "vae-log-of-negative-std", "non-finite", {"form": "raw"}, cure="structural", where="spread|<root>", steps=40
)
@faulty(
    "VAE",
    "vae-exp-overflows",
    "non-finite",
    {"start": 200.0},
    cure="init",
    where="<root>|decoder.*|spread",
    steps=40,
    also=("exploding-activation",),
)
@faulty(
    "VAE",
    "vae-posterior-collapses",
    "collapsed-batch",
    {"weight": 300.0},
    cure="scale",
    where="mean|decoder.*",
    steps=120,
    also=("vanishing-activation",),
    twin={"weight": 0.1},
)
def variational(
    seed: int, weight: float = 1.0, start: float = 0.0, form: str = "log-variance", lr: float = 5e-3
) -> Run:
    """A Bernoulli VAE of the digits."""
    model, plain = Variational(8, start, form), digits(seed, 64)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = plain(step)[0].flatten(1)
        return x, x

    return Run(model, optimizer_of(model, "Adam", lr), batch, elbo(weight, form), metric=reconstruction)
