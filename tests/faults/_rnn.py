"""A recurrence written out: time as depth."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import oscillations, patterns
from tests.faults._parts import optimizer_of
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


class Recurrent(nn.Module):
    """h <- act(W h + U x), written as a loop; the class is read from the last state."""

    def __init__(self, dim: int, width: int, act: nn.Module, classes: int = 4, detach: bool = False) -> None:
        super().__init__()
        self.inward = nn.Linear(dim, width)
        self.cell = nn.Linear(width, width, bias=False)
        self.act = act
        self.head = nn.Linear(width, classes)
        self.detach = detach

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), self.cell.in_features)
        for t in range(x.shape[1]):
            h = self.act(self.cell(h.detach() if self.detach else h) + self.inward(x[:, t]))
        return self.head(h)


@healthy("RNN", "rnn-orthogonal-tanh-20", steps=80)
@healthy("RNN", "rnn-irnn-15", {"length": 15, "act": nn.ReLU, "init": "identity", "lr": 1e-3, "clip": 1.0}, steps=100)
@healthy("RNN", "rnn-oscillations", {"task": "oscillations"}, steps=100)
@faulty(
    "RNN",
    "rnn-40-small-recurrence",
    "vanishing-gradient",
    {"length": 40, "init": "normal", "gain": 0.5},
    cure="init",
    where="cell|act|inward",
    also=("init-mismatch", "vanishing-activation"),
    twin={"length": 40},
    steps=100,
)
@faulty(
    "RNN",
    "rnn-20-tiny-recurrence",
    "vanishing-gradient",
    {"length": 20, "init": "normal", "gain": 0.1},
    cure="init",
    where="cell|act|inward",
    also=("init-mismatch", "vanishing-activation"),
    twin={"length": 20},
    steps=100,
)
@faulty(
    "RNN",
    "rnn-40-saturated",
    "saturated-units",
    {"length": 40, "init": "normal", "gain": 8.0},
    cure="init",
    where="act|cell",
    also=("exploding-gradient", "init-mismatch"),
    twin={"length": 40},
    steps=100,
)
@faulty(
    "RNN",
    "rnn-relu-explodes",
    "exploding-activation",
    {"length": 40, "act": nn.ReLU, "init": "normal", "gain": 2.5},
    cure="init",
    where="cell|act",
    also=("exploding-gradient", "init-mismatch", "non-finite"),
    twin={"length": 40, "act": nn.ReLU, "init": "identity", "lr": 1e-3, "clip": 1.0},
)
@faulty(
    "RNN",
    "rnn-linear-explodes",
    "exploding-activation",
    {"length": 50, "act": nn.Identity, "init": "normal", "gain": 1.8},
    cure="init",
    where="cell|act",
    also=("exploding-gradient", "init-mismatch"),
    twin={"length": 50, "act": nn.Identity},
    steps=12,
)
@faulty(
    "RNN", "rnn-state-detached", "no-gradient", {"detach": True}, cure="structural", where="cell|act|inward", steps=80
)
@faulty(
    "RNN",
    "rnn-40-orthogonal-gain-3",
    "exploding-gradient",
    {"length": 40, "gain": 3.0},
    cure="init",
    where="cell|act",
    also=("saturated-units", "init-mismatch"),
    twin={"length": 40},
    steps=60,
)
def recurrent(
    seed: int,
    length: int = 20,
    act: type[nn.Module] = nn.Tanh,
    init: str = "orthogonal",
    gain: float = 1.0,
    task: str = "patterns",
    lr: float = 3e-3,
    clip: float | None = None,
    detach: bool = False,
) -> Run:
    """The class of a sequence by a recurrence written out."""
    dim = 4 if task == "patterns" else 3
    model = Recurrent(dim, 32, act(), detach=detach)
    if init == "orthogonal":
        nn.init.orthogonal_(model.cell.weight, gain)
    elif init == "identity":
        nn.init.eye_(model.cell.weight)
    else:
        nn.init.normal_(model.cell.weight, std=gain / 32**0.5)
    make: Any = patterns if task == "patterns" else oscillations
    return Run(model, optimizer_of(model, "Adam", lr), make(seed, length=length, dim=dim), F.cross_entropy, clip=clip)
