"""Healthy programs whose losses, inputs or gradients are of odd sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import batches, generator, images, table
from tests.faults_second._registry import healthy


@healthy("MLP", "counts-of-millions-in-logs", steps=100)
def counts(seed: int) -> Run:
    """Poisson losses of large counts are negative and far from 0; the rate's logarithm starts near the answer."""
    model = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 1))
    nn.init.constant_(model[2].bias, 13.0)
    slope = torch.randn(8, generator=generator(4, 5)) / 2

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(128, 8, generator=generator(seed, step))
        return x, torch.poisson((13 + x @ slope).exp(), generator=generator(seed, -step - 1))

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return F.poisson_nll_loss(output.squeeze(1), target, full=False) / 1e6

    def metric(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output.squeeze(1), target.clamp_min(1).log())

    return Run(model, torch.optim.Adam(model.parameters(), lr=1e-2), batch, loss_fn, metric)


@healthy("MLP", "loss-in-billionths", {"factor": 1e-9})
@healthy("MLP", "loss-in-millions", {"factor": 1e6})
def factors(seed: int, factor: float) -> Run:
    """The momentum of RMSprop and its rate do not care for the unit of the loss."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return factor * F.cross_entropy(output, target)

    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, eps=1e-20)
    return Run(model, optimizer, images(seed), loss_fn)


@healthy("MLP", "one-hot-of-3000-columns", steps=100)
def wide_one_hot(seed: int) -> Run:
    """Ten columns of three hundred values each as zeros and ones: 2990 inputs of a row are 0."""
    effects = torch.randn(10, 300, generator=generator(4, 6))
    model = nn.Sequential(nn.Linear(3000, 16), nn.ReLU(), nn.Linear(16, 1))
    values = torch.randint(300, (3000, 10), generator=generator(seed, -1))
    y = (effects[torch.arange(10), values].sum(1) > 0).long()
    x = F.one_hot(values, 300).flatten(1).float()

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output.squeeze(1), target.float())

    return Run(model, torch.optim.Adam(model.parameters(), lr=5e-3), batches(x, y, seed), loss_fn)


@healthy("CNN", "siamese-change-with-shared-weights", steps=100)
def change(seed: int) -> Run:
    """Whether two images show the same digit, by one encoder called twice; half of its ReLUs are off by nature."""
    x, y = table("digits")
    model = Pair()
    plain = batches(x / 8 - 1, y, seed, 128)

    def batch(step: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        rows, kinds = plain(step)
        rows, kinds = rows[kinds < 4], kinds[kinds < 4]
        half = len(rows) // 2
        return (rows[:half], rows[half : 2 * half]), (kinds[:half] == kinds[half : 2 * half]).float()

    return Run(model, torch.optim.Adam(model.parameters(), lr=3e-3), batch, F.binary_cross_entropy_with_logits)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.scale, self.shift = nn.Parameter(torch.tensor(-0.5)), nn.Parameter(torch.tensor(1.0))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        apart = (self.encoder(a) - self.encoder(b)).pow(2).sum(1)
        return self.shift + self.scale * apart
