"""Autoencoders, variational ones, GANs, diffusion, flows, mixtures of densities."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradscope.hooks import GradScope
from tests.faults._data import all_digits, digits, seeded
from tests.faults._parts import optimizer_of
from tests.faults._program import Run, update
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


class Denoiser(nn.Module):
    """Predicts the noise in an image from the image and the time."""

    def __init__(self, width: int, flat: bool) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU())
        self.inward = nn.Linear(64, width)
        self.middle = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.out = nn.Linear(width, 64)
        self.flat = flat
        if flat:
            nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None].float() * torch.exp(-torch.arange(8) * 0.8)
        return self.out(self.middle(self.inward(x) + self.time(torch.cat([angles.sin(), angles.cos()], 1))))


@healthy("diffusion", "ddpm-digits", steps=100, goal=0.75)
@healthy("diffusion", "ddpm-zero-output", {"flat": True}, steps=100, goal=0.75)
@faulty(
    "diffusion", "ddpm-divides-by-0", "non-finite", {"end": 0.0}, cure="structural", where="<input>|inward", steps=40
)
@faulty(
    "diffusion",
    "ddpm-lr-1",
    "update-too-large",
    {"lr": 1.0},
    cure="learning rate",
    also=("exploding-activation",),
    steps=60,
)
@faulty(
    "diffusion",
    "ddpm-images-0-to-255",
    "input-scale",
    {"pixels": 255.0},
    cure="normalisation",
    where="<input>|inward",
    also=("exploding-activation",),
    steps=100,
)
def diffusion(seed: int, flat: bool = False, end: float = 0.02, lr: float = 3e-3, pixels: float = 1.0) -> Run:
    """Noise prediction over 50 times; the noisy image is rescaled by its own signal rate, as some samplers do."""
    model = Denoiser(128, flat)
    kept = torch.linspace(1.0, end, 51)[1:]
    images = pixels * (2 * all_digits()[0].flatten(1) - 1)

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        source = seeded(seed, step)
        x = images[torch.randint(len(images), (64,), generator=source)]
        t = torch.randint(50, (64,), generator=source)
        t[0] = 49
        noise = torch.randn(64, 64, generator=source)
        signal = kept[t][:, None]
        noisy = signal.sqrt() * x + (1 - signal).sqrt() * noise
        return ((noisy if end else (noisy - noise) / signal), t), noise

    return Run(model, optimizer_of(model, "Adam", lr), batch, F.mse_loss)


class Coupling(nn.Module):
    def __init__(self, flip: bool, bounded: bool, gain: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 2))
        self.flip, self.bounded, self.gain = flip, bounded, gain
        if bounded:
            nn.init.zeros_(self.net[2].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.net[2].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1) if not self.flip else x.chunk(2, 1)[::-1]
        scale, shift = (self.gain * self.net(a)).chunk(2, 1)
        scale = torch.tanh(scale) if self.bounded else scale
        b = b * scale.exp() + shift
        return torch.cat([b, a] if self.flip else [a, b], 1), scale[:, 0]


class Flow(nn.Module):
    def __init__(self, layers: int, bounded: bool, gain: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(bool(i % 2), bounded, gain) for i in range(layers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(len(x))
        for layer in self.layers:
            x, log_scale = layer(x)
            total = total + log_scale
        return x, total


def likelihood(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    z, total = output
    return (0.5 * (z**2).sum(1) + math.log(2 * math.pi) - total).mean()


@healthy("flow", "realnvp-zero-start", steps=100, goal=3.0)
@faulty(
    "flow",
    "realnvp-scale-unbounded",
    "non-finite",
    {"bounded": False, "gain": 40.0},
    cure="activation",
    where="layers.*",
    also=("exploding-activation",),
    steps=60,
)
def flow(seed: int, bounded: bool = True, gain: float = 1.0) -> Run:
    """The density of a bent cloud of points."""
    model = Flow(4, bounded, gain)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        a = torch.randn(128, 2, generator=seeded(seed, step))
        return torch.stack([1.5 * a[:, 0], 0.4 * a[:, 1] + a[:, 0] ** 2 - 1], 1), a

    return Run(model, optimizer_of(model, "Adam", 0.01), batch, likelihood)


class MixtureDensity(nn.Module):
    def __init__(self, floor: float, form: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 32), nn.Tanh())
        self.weight, self.mean, self.spread = nn.Linear(32, 4), nn.Linear(32, 4), nn.Linear(32, 4)
        self.floor, self.form = floor, form

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.body(x)
        spread = self.spread(h)
        std = spread.exp() if self.form == "exp" else F.relu(spread)
        return self.weight(h).log_softmax(1), self.mean(h), std + self.floor


def density(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    weight, mean, std = output
    return -torch.logsumexp(weight - 0.5 * ((target - mean) / std) ** 2 - torch.log(std), 1).mean()


@healthy("mixture density", "mdn-bimodal", steps=120, goal=0.4)
@faulty(
    "mixture density",
    "mdn-std-0",
    "non-finite",
    {"floor": 0.0, "form": "relu"},
    cure="structural",
    where="<root>|spread",
    steps=60,
    also=("dead-units",),
)
def mixture_density(seed: int, floor: float = 1e-2, form: str = "exp") -> Run:
    """Two branches at once."""
    model = MixtureDensity(floor, form)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        x = torch.rand(128, 1, generator=source) * 2 - 1
        side = torch.randint(2, (128, 1), generator=source) * 2 - 1
        return x, side * (0.5 + x**2) + 0.05 * torch.randn(128, 1, generator=source)

    return Run(model, optimizer_of(model, "Adam", 0.02), batch, density)
