"""Densities and codes: planar flows, score matching, VQ-VAE, Gumbel softmax, capsules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import digits, seeded
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy


class Planar(nn.Module):
    """x + u tanh(w·x + b); the logarithm of its volume needs an absolute value, or u kept where it is invertible."""

    def __init__(self, free: bool) -> None:
        super().__init__()
        self.u, self.w, self.b = (nn.Parameter(0.8 * torch.randn(n)) for n in (2, 2, 1))
        self.free = free

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u = self.u
        if not self.free:
            product = self.w @ self.u
            u = u + (F.softplus(product) - 1 - product) * self.w / self.w.square().sum()
        h = torch.tanh(x @ self.w + self.b)
        return x + u * h[:, None], torch.log(1 + (1 - h**2) * (self.w @ u))


class Flows(nn.Module):
    def __init__(self, free: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Planar(free) for _ in range(8))
        self.shift, self.log_scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, volume = (x - self.shift) * torch.exp(-self.log_scale), -self.log_scale.sum()
        for layer in self.layers:
            x, more = layer(x)
            volume = volume + more
        return x, volume


@healthy("flow", "planar-flow", steps=80)
@faulty(
    "flow",
    "planar-flow-not-invertible",
    "non-finite",
    {"free": True},
    cure="structural",
    where="layers*|<root>",
    steps=80,
)
def planar(seed: int, free: bool = False) -> Run:
    """The density of two moons, or nearly."""
    model = Flows(free)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        side = torch.randint(2, (128, 1), generator=source) * 2 - 1.0
        angle = 3.14 * torch.rand(128, 1, generator=source)
        x = torch.cat([angle.cos() + 0.5 * side, side * (angle.sin() - 0.2)], 1) * 2
        return x + 0.1 * torch.randn(128, 2, generator=source), side

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        z, volume = output
        return (0.5 * z.square().sum(1) + 1.84 - volume).mean()

    return Run(model, optimizer_of(model, "Adam", 0.02), batch, loss)


@healthy("energy model", "denoising-score-matching", steps=80)
def score_matching(seed: int) -> Run:
    """The gradient of an energy, learned from noise added: a backward pass within the forward one."""
    model = Score()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        centre = torch.tensor([[2.0, 0.0], [-1.0, 1.5]])[torch.randint(2, (128,), generator=source)]
        noise = torch.randn(128, 2, generator=source)
        return centre + 0.7 * noise, -noise

    return Run(model, optimizer_of(model, "Adam", 0.01), batch, F.mse_loss)


class Score(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(2, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return slope


class Quantized(nn.Module):
    """VQ-VAE: the nearest code in place of what the encoder gave."""

    def __init__(self, spread: float, straight: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32))
        self.codes = nn.Parameter(spread * torch.randn(32, 8))
        self.decoder = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 64))
        self.straight = straight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x).view(-1, 8)
        code = self.codes[torch.cdist(z, self.codes).argmin(1)]
        if not self.straight:
            return self.decoder(code.view(len(x), -1)), F.mse_loss(code, z.detach())
        beside = F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(z, code.detach())
        return self.decoder((z + (code - z).detach()).view(len(x), -1)), beside


class Gumbel(nn.Module):
    """Discrete codes by the Gumbel softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 40))
        self.decoder = nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = F.gumbel_softmax(self.encoder(x).view(-1, 5, 8), tau=0.8, hard=True)
        return self.decoder(code.flatten(1)), torch.zeros(())


def encoder_without_gradient(run: Run) -> bool:
    return all(p.grad is None for p in run.model.get_submodule("encoder").parameters())


@healthy("VQ-VAE", "vq-vae-straight-through", steps=80)
@healthy("VQ-VAE", "gumbel-softmax-codes", {"kind": "gumbel"}, steps=80)
@faulty(
    "VQ-VAE",
    "vq-vae-without-straight-through",
    "no-gradient",
    {"straight": False},
    cure="structural",
    where="encoder*",
    steps=80,
    static=encoder_without_gradient,
)
@faulty(
    "VQ-VAE",
    "vq-vae-codes-far-away",
    "collapsed-batch",
    {"spread": 300.0},
    cure="init",
    also=("init-mismatch", "exploding-activation", "exploding-gradient"),
    where="decoder*|codes|<root>",
    steps=80,
)
def quantized(seed: int, kind: str = "vq", spread: float = 0.3, straight: bool = True) -> Run:
    """The digits by four discrete codes."""
    model = Gumbel() if kind == "gumbel" else Quantized(spread, straight)
    plain = digits(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, _ = plain(step)
        return x, x.flatten(1)

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(output[0], target) + output[1]

    def metric(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(output[0], target)

    return Run(model, optimizer_of(model, "Adam", 5e-3), batch, loss, metric=metric)


class Capsules(nn.Module):
    """Vectors squashed to lengths below 1; two rounds of routing; the lengths are the classes."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 4, 2)
        self.votes = nn.Parameter(0.3 * torch.randn(36, 10, 8, 8))
        self.epsilon = epsilon

    def squash(self, s: Tensor) -> Tensor:
        square = s.square().sum(-1, keepdim=True)
        return square / (1 + square) * s / (square + self.epsilon).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        u = self.squash(F.relu(self.conv(x)).flatten(2).transpose(1, 2).reshape(len(x), 36, 8))
        vote = torch.einsum("bid,ijde->bije", u, self.votes)
        logits = torch.zeros(vote.shape[:3])
        for _ in range(2):
            v = self.squash((torch.softmax(logits, 2)[..., None] * vote).sum(1))
            logits = logits + (vote * v[:, None]).sum(-1)
        return (v.square().sum(-1) + 1e-8).sqrt()


def margins(lengths: Tensor, y: Tensor) -> Tensor:
    right = F.one_hot(y, 10).float()
    return (right * F.relu(0.9 - lengths) ** 2 + 0.5 * (1 - right) * F.relu(lengths - 0.1) ** 2).sum(1).mean()


@healthy("capsules", "capsules-routing")
@faulty(
    "capsules",
    "capsules-length-of-0",
    "non-finite",
    {"epsilon": 0.0},
    cure="structural",
    where="<root>|conv*|votes",
    steps=40,
)
def capsules(seed: int, epsilon: float = 1e-7) -> Run:
    """A capsule of which all parts are 0 has no direction."""
    model = Capsules(epsilon)
    return Run(model, optimizer_of(model, "Adam", 5e-3), digits(seed, 32), margins)
