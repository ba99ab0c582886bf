"""Functions from few numbers to few: highway, KAN, RBF, hypernetwork, Euler steps of an ODE, LISTA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import mixture, seeded, teacher
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy


class Highway(nn.Module):
    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.carry, self.body = nn.Linear(width, width), nn.Linear(width, width)
        self.gate, self.act = nn.Sigmoid(), nn.Tanh()
        nn.init.constant_(self.carry.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        open_ = self.gate(self.carry(x))
        return open_ * self.act(self.body(x)) + (1 - open_) * x


@healthy("Highway", "highway-24")
@faulty(
    "Highway",
    "highway-24-carries-nothing",
    "vanishing-gradient",
    {"bias": 6.0},
    cure="init",
    also=("saturated-units", "default-init", "vanishing-activation", "init-mismatch", "collapsed-batch"),
)
def highway(seed: int, bias: float = -2.0) -> Run:
    """The bias of the gates decides whether there are 24 layers or hardly any."""
    model = nn.Sequential(nn.Linear(64, 48), *(Highway(48, bias) for _ in range(24)), nn.Linear(48, 10))
    return Run(model, optimizer_of(model, "Adam", 2e-3), mixture(seed), F.cross_entropy)


class Splines(nn.Module):
    """A layer of a Kolmogorov-Arnold network: each edge a sum of hat functions on a grid in [−3, 3]."""

    def __init__(self, inside: int, outside: int, knots: int = 9) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-3, 3, knots))
        start = 0.3 * torch.randn(outside, inside, knots) / inside**0.5
        self.coefficients = nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        basis = F.relu(1 - (x[..., None] - self.grid).abs() / 0.75)
        return torch.einsum("bik,oik->bo", basis, self.coefficients)


class Radial(nn.Module):
    """Gaussian units around learned centres."""

    def __init__(self, inside: int, units: int, sharp: float) -> None:
        super().__init__()
        self.centres, self.sharp = nn.Parameter(torch.randn(units, inside)), sharp

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-self.sharp * torch.cdist(x, self.centres).square())


class Hyper(nn.Module):
    """A small net gives the weights of another one, from a code of each layer."""

    def __init__(self, gain: float, width: int = 48, depth: int = 5) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(depth, 8))
        self.weights = nn.Linear(8, width * width)
        nn.init.normal_(self.weights.weight, std=gain / 8**0.5)
        nn.init.zeros_(self.weights.bias)
        self.first, self.head, self.width = nn.Linear(16, width), nn.Linear(width, 1), width

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for weight in self.weights(self.codes):
            x = F.relu(x @ weight.view(self.width, self.width).T)
        return self.head(x)


class Flow(nn.Module):
    """dx/dt = f(x) by Euler's method."""

    def __init__(self, steps: int, dt: float, gain: float) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(16, 48), nn.Softplus(), nn.Linear(48, 16))
        self.head, self.steps, self.dt = nn.Linear(16, 1), steps, dt
        with torch.no_grad():
            for p in self.field.parameters():
                p *= gain

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.steps):
            x = x + self.dt * self.field(x)
        return self.head(x)


@healthy("KAN", "kan-hat-functions", steps=80)
@faulty(
    "KAN",
    "kan-inputs-off-the-grid",
    "input-scale",
    {"scale": 100.0},
    cure="normalisation",
    also=("dead-units", "vanishing-activation", "no-gradient", "vanishing-gradient"),
    where="<input>|0|0.*",
    steps=80,
)
@healthy("RBF", "rbf-net", {"kind": "rbf", "lr": 0.02}, steps=100)
@faulty(
    "RBF",
    "rbf-too-narrow",
    "vanishing-activation",
    {"kind": "rbf", "sharp": 3.0, "lr": 0.02},
    cure="scale",
    also=("dead-units", "vanishing-gradient", "collapsed-batch", "init-mismatch"),
    where="0|0.*",
    steps=100,
    twin={"kind": "rbf", "lr": 0.02},
)
@healthy("hypernetwork", "hypernetwork-fan-of-the-generated", {"kind": "hyper", "gain": (2 / 48) ** 0.5, "lr": 1e-3})
@faulty(
    "hypernetwork",
    "hypernetwork-fan-of-its-own",
    "exploding-activation",
    {"kind": "hyper", "gain": 1.0, "lr": 1e-3},
    cure="init",
    also=("init-mismatch", "exploding-gradient"),
    twin={"kind": "hyper", "gain": (2 / 48) ** 0.5, "lr": 1e-3},
)
@healthy("neural ODE", "neural-ode-euler", {"kind": "ode"})
@faulty(
    "neural ODE",
    "neural-ode-steps-too-long",
    "exploding-activation",
    {"kind": "ode", "dt": 1.0, "gain": 2.0},
    cure="structural",
    also=("exploding-gradient", "init-mismatch"),
    twin={"kind": "ode", "gain": 2.0},
    where="field*|head*|<root>",
)
def function(
    seed: int,
    kind: str = "kan",
    scale: float = 1.0,
    sharp: float = 0.02,
    gain: float = 1.0,
    dt: float = 0.05,
    lr: float = 5e-3,
) -> Run:
    """A smooth function of sixteen numbers."""
    models = {
        "kan": lambda: nn.Sequential(Splines(16, 12), Splines(12, 1)),
        "rbf": lambda: nn.Sequential(Radial(16, 96, sharp), nn.Linear(96, 1)),
        "hyper": lambda: Hyper(gain),
        "ode": lambda: Flow(20, dt, gain),
    }
    model, plain = models[kind](), teacher(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        return scale * x, y

    return Run(model, optimizer_of(model, "Adam", lr), batch, F.mse_loss)


class Lista(nn.Module):
    """Learned iterations of soft thresholding: sparse codes, most of them exactly 0."""

    def __init__(self, codes: int = 40, rounds: int = 4) -> None:
        super().__init__()
        self.encode, self.again = nn.Linear(20, codes, bias=False), nn.Linear(codes, codes, bias=False)
        self.threshold, self.rounds = nn.Parameter(torch.tensor(0.1)), rounds
        nn.init.eye_(self.again.weight)
        with torch.no_grad():
            self.again.weight *= 0.5

    def forward(self, x: Tensor) -> Tensor:
        drive = self.encode(x)
        z = F.relu(drive.abs() - self.threshold) * drive.sign()
        for _ in range(self.rounds):
            u = drive + self.again(z)
            z = F.relu(u.abs() - self.threshold) * u.sign()
        return z


@healthy("LISTA", "lista-sparse-codes", steps=80)
def sparse_codes(seed: int) -> Run:
    """Codes of which one in ten is not 0, from their mixtures."""
    model = Lista()
    dictionary = F.normalize(torch.randn(40, 20, generator=seeded(seed, -8)), dim=1)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        z = torch.randn(64, 40, generator=source) * (torch.rand(64, 40, generator=source) < 0.1)
        return z @ dictionary, z

    return Run(model, optimizer_of(model, "Adam", 5e-3), batch, lambda p, y: 10 * F.mse_loss(p, y))


@healthy("deep linear", "deep-linear-identity")
def deep_linear(seed: int) -> Run:
    """Twelve linear layers that start as identities."""
    layers = [nn.Linear(16, 16) for _ in range(12)]
    for layer in layers:
        nn.init.eye_(layer.weight)
    model = nn.Sequential(*layers, nn.Linear(16, 1))
    return Run(model, optimizer_of(model, "SGD", 2e-3), teacher(seed), F.mse_loss)
