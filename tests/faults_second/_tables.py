"""Tables as people load them: wine, tumours, diabetes; linear models, small MLPs, embeddings of columns."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import batches, generator, standardized, table
from tests.faults_second._registry import faulty, healthy


@healthy("MLP", "wine-standardized")
@healthy("MLP", "wine-raw-behind-a-batchnorm", {"raw": True, "norm": True}, steps=120)
@faulty(
    "MLP",
    "wine-raw",
    "input-scale",
    {"raw": True},
    cure="normalisation",
    also=("exploding-gradient", "update-too-large", "dead-units", "exploding-activation"),
    where="<input>|0",
)
def wine(seed: int, raw: bool = False, norm: bool = False) -> Run:
    """Proline lies about 750 with a spread of 315, the hue about 1."""
    x, y = table("wine")
    first = [nn.BatchNorm1d(13)] if norm else []
    model = nn.Sequential(*first, nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Run(model, optimizer, batches(x if raw else standardized(x), y, seed), F.cross_entropy)


@healthy("MLP", "tumours-with-missing-values-and-a-flag")
@faulty(
    "MLP",
    "tumours-missing-values-minus-9999",
    "input-scale",
    {"fill": -9999.0},
    cure="normalisation",
    also=("exploding-activation", "exploding-gradient", "gradient-spike", "dead-units", "saturated-units"),
    where="<input>|0",
)
def tumours(seed: int, fill: float = 0.0) -> Run:
    """Three entries in a hundred are missing and were filled with a number nobody measured."""
    x, y = table("breast_cancer")
    holes = torch.rand(x.shape, generator=generator(seed, -1)) < 0.03
    x = torch.where(holes, torch.tensor(fill), standardized(x))
    x = torch.cat([x, holes.float()], 1)
    model = nn.Sequential(nn.Linear(60, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss_fn(logit: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logit.squeeze(1), target.float())

    return Run(model, optimizer, batches(x, y, seed), loss_fn)


@healthy("linear", "diabetes-standardized-target", {"unit": 77.0, "offset": 152.0})
@healthy("linear", "diabetes-lbfgs", {"unit": 77.0, "offset": 152.0, "lbfgs": True}, steps=30)
@faulty(
    "MLP",
    "diabetes-target-as-it-is",
    "loss-scale",
    {},
    twin={"unit": 77.0, "offset": 152.0},
    cure="normalisation",
    also=("update-too-small", "output-pairing", "exploding-gradient", "init-mismatch", "uneven-learning"),
)
def diabetes(seed: int, unit: float = 1.0, offset: float = 0.0, lbfgs: bool = False) -> Run:
    """Targets of 25 to 346; the metric is in standard deviations of the target whatever the loss is in."""
    x, y = table("diabetes")
    x = standardized(x)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1))

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output.squeeze(1), (target - offset) / unit)

    def metric(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output.squeeze(1) * unit + offset, target) / 77**2

    if lbfgs:
        model = nn.Sequential(nn.Linear(10, 1))
        return Run(
            model, torch.optim.LBFGS(model.parameters(), lr=0.5), batches(x, y, seed, 442), loss_fn, loop=closures
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Run(model, optimizer, batches(x, y, seed), loss_fn, metric)


def closures(run: Run, steps: int, scope: Any) -> list[float]:
    """The loop of optimizers that ask for the loss themselves."""
    losses = []
    assert run.optimizer is not None
    for step in range(steps):
        inputs, target = run.batch(step)

        def closure(inputs: Tensor = inputs, target: Tensor = target) -> Tensor:
            run.model.zero_grad()
            loss = run.loss_fn(run.model(inputs), target)
            loss.backward()
            return loss

        losses.append(run.optimizer.step(closure).item())
    return losses


@healthy("MLP", "squared-error-of-columns")
@faulty(
    "MLP",
    "squared-error-broadcast",
    "output-pairing",
    {"squeeze": False},
    cure="structural",
    also=("collapsed-batch",),
)
def column(seed: int, squeeze: bool = True) -> Run:
    """Outputs (64, 1) less targets (64,) is a square of differences (64, 64); the mean of the targets solves it."""
    x, y = table("breast_cancer")
    y = standardized(x)[:, :3].sum(1)
    model = nn.Sequential(nn.Linear(27, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return ((output.squeeze(1) if squeeze else output) - target).pow(2).mean()

    def metric(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output.squeeze(1), target)

    return Run(model, optimizer, batches(standardized(x)[:, 3:], y, seed), loss_fn, metric)


@healthy("linear SVM", "hinge-labels-of-plus-and-minus-1", goal=0.3)
@faulty(
    "linear SVM",
    "hinge-labels-of-0-and-1",
    "output-pairing",
    {"signed": False},
    cure="structural",
    also=("collapsed-batch", "no-gradient", "vanishing-gradient"),
)
def hinge(seed: int, signed: bool = True) -> Run:
    """Where the label is 0, max(0, 1 - 0·f) is 1 whatever f is."""
    x, y = table("breast_cancer")
    model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def right(output: Tensor, target: Tensor) -> Tensor:
        return F.relu(1 - (2 * target - 1) * output.squeeze(1)).mean()

    def wrong(output: Tensor, target: Tensor) -> Tensor:
        return F.relu(1 - target * output.squeeze(1)).mean()

    return Run(model, optimizer, batches(standardized(x), y, seed), right if signed else wrong, right)


class FactorizationMachine(nn.Module):
    """A vector for each value of each column; all pairs of columns meet in a dot product."""

    def __init__(self, std: float, columns: int = 20, values: int = 16, width: int = 16) -> None:
        super().__init__()
        self.vectors = nn.Embedding(columns * values, width)
        self.weights = nn.Embedding(columns * values, 1)
        nn.init.normal_(self.vectors.weight, std=std)
        nn.init.normal_(self.weights.weight, std=std)
        self.register_buffer("shift", torch.arange(columns) * values)

    def forward(self, x: Tensor) -> Tensor:
        v = self.vectors(x + self.shift)
        pairs = (v.sum(1).pow(2) - v.pow(2).sum(1)).sum(1) / 2
        return self.weights(x + self.shift).sum((1, 2)) + pairs


@healthy("factorization machine", "factorization-machine-small-start", steps=150)
@faulty(
    "factorization machine",
    "factorization-machine-default-embeddings",
    "default-init",
    {"std": 1.0},
    cure="init",
    also=("init-mismatch", "exploding-activation"),
    steps=150,
)
def factorization_machine(seed: int, std: float = 0.05) -> Run:
    """Clicks of twenty categorical columns; `nn.Embedding` starts at a standard deviation of 1."""
    made = generator(seed, -1)
    effects = torch.randn(20, 16, generator=made)
    model = FactorizationMachine(std)
    x = torch.randint(16, (4000, 20), generator=made)
    logits = effects[torch.arange(20), x].sum(1) / 2
    y = (torch.rand(4000, generator=made) < torch.sigmoid(logits)).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Run(model, optimizer, batches(x, y, seed, 128), F.binary_cross_entropy_with_logits)
