"""What goes in and what comes out: a dataset that shows one image, scores without logarithms, steps without a slope."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import images
from tests.faults_second._registry import faulty, healthy


@healthy("CNN", "dataset-of-all-images")
@faulty(
    "CNN",
    "dataset-returns-one-image",
    "collapsed-batch",
    {"stuck": True},
    cure="structural",
    where="<input>|0",
)
@faulty(
    "CNN",
    "pixels-over-255-thrice",
    "input-scale",
    {"shrink": 255.0**2},
    cure="normalisation",
    also=("vanishing-activation", "vanishing-gradient"),
    where="<input>|0",
)
def dataset(seed: int, stuck: bool = False, shrink: float = 1.0) -> Run:
    """`__getitem__` that ignores its index gives one image with every label."""
    plain = images(seed, mean=0.0, std=1.0)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        return (x[:1].expand_as(x) if stuck else x) / shrink, y

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )
    return Run(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), batch, F.cross_entropy)


@healthy("MLP", "nll-of-log-probabilities")
@faulty(
    "MLP",
    "nll-of-raw-scores",
    "output-pairing",
    {"log": False},
    cure="structural",
    also=("exploding-activation", "exploding-gradient"),
    steps=150,
)
def nll(seed: int, log: bool = True) -> Run:
    """`nn.NLLLoss` of what no log_softmax bounds falls for ever."""
    ends = [nn.LogSoftmax(1)] if log else []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), *ends)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Run(model, optimizer, images(seed), nn.NLLLoss(), F.cross_entropy)


@healthy("MLP", "step-function-straight-through")
@faulty(
    "MLP",
    "step-function-compared-with-0",
    "no-gradient",
    {"through": False},
    cure="structural",
    also=("uneven-learning",),
    where="hidden*|step*",
)
def steps(seed: int, through: bool = True) -> Run:
    """Hidden units of 0 or 1."""
    model = StepNet(through)
    return Run(model, torch.optim.Adam(model.parameters(), lr=3e-3), images(seed), F.cross_entropy)


class StepNet(nn.Module):
    def __init__(self, through: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 128)
        self.again = nn.Linear(128, 128)
        self.head = nn.Linear(128, 10)
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.hidden, self.again):
            x = layer(x.flatten(1))
            hard = (x > 0).float()
            x = hard + x.clamp(-1, 1) - x.clamp(-1, 1).detach() if self.through else hard
        return self.head(x) / math.sqrt(128)
