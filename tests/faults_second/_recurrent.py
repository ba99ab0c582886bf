"""Sequences: what an RNN, a GRU, an LSTM, a state space remember of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import Batch, generator, recall
from tests.faults_second._registry import faulty, healthy


class Last(nn.Module):
    """A recurrent network, and what a linear layer reads off its last state."""

    def __init__(self, kind: str, inside: int, width: int, outside: int, layers: int = 1) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(inside, width, layers, batch_first=True)
        self.head = nn.Linear(width, outside)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@healthy("RNN", "recall-orthogonal", {"kind": "orthogonal"}, steps=120)
@healthy("GRU", "recall-gru", {"kind": "GRU"}, steps=150)
@faulty(
    "RNN",
    "recall-elman-default",
    "vanishing-gradient",
    {"kind": "RNN"},
    twin={"kind": "orthogonal"},
    cure="init",
    also=("default-init", "init-mismatch"),
    where="rnn*",
    steps=120,
)
def recall_rnn(seed: int, kind: str) -> Run:
    """What came first is asked for after thirty steps of noise."""
    model = Last("GRU" if kind == "GRU" else "RNN", 6, 48, 4)
    if kind == "orthogonal":
        nn.init.orthogonal_(model.rnn.weight_hh_l0)
        nn.init.normal_(model.rnn.weight_ih_l0, std=0.1)
        nn.init.zeros_(model.rnn.bias_hh_l0)
        nn.init.zeros_(model.rnn.bias_ih_l0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2 if kind == "GRU" else 3e-3)
    length = 12 if kind == "GRU" else 30
    return Run(model, optimizer, recall(seed, length=length), F.cross_entropy, clip=1.0)


def prices(seed: int, raw: bool, size: int = 64, length: int = 20) -> Batch:
    """Windows of a price about 1500; the target is the next day's return, which swings, in standard deviations."""
    made = generator(seed, -1)
    days = torch.arange(3000.0)
    swing = torch.sin(days / 3) + 0.2 * torch.randn(3000, generator=made)
    price = 1500 + 30 * torch.cumsum(swing, 0).sub(torch.cumsum(swing, 0).mean())

    def batch(step: int) -> tuple[Tensor, Tensor]:
        starts = torch.randint(2900, (size, 1), generator=generator(seed, step))
        window = price[starts + torch.arange(length)].unsqueeze(2)
        scaled = (window - window.mean(1, keepdim=True)) / 60
        return window if raw else scaled, swing[starts + length]

    return batch


@healthy("LSTM", "prices-relative-to-the-window", steps=100)
@faulty(
    "LSTM",
    "prices-as-quoted",
    "input-scale",
    {"raw": True},
    cure="normalisation",
    also=("saturated-units", "vanishing-gradient", "collapsed-batch"),
    where="<input>|rnn*",
    steps=100,
)
def stocks(seed: int, raw: bool = False) -> Run:
    model = Last("LSTM", 1, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Run(model, optimizer, prices(seed, raw), F.mse_loss, clip=1.0)


class StateSpace(nn.Module):
    """States that decay at rates of their own, h = exp(-dt) h + dt B x, read out at the end."""

    def __init__(self, dt: float, width: int = 32) -> None:
        super().__init__()
        self.inward = nn.Linear(6, width)
        spread = torch.logspace(0, 1, width) / 10
        self.log_dt = nn.Parameter((dt * spread).log())
        self.head = nn.Sequential(nn.Linear(width, 32), nn.SiLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        driven, dt = self.inward(x), self.log_dt.exp()
        kept = torch.exp(-dt)
        h = torch.zeros_like(driven[:, 0])
        for step in range(x.shape[1]):
            h = kept * h + dt * driven[:, step]
        return self.head(h)


@healthy("state space", "state-space-slow-decay", steps=150)
@faulty(
    "state space",
    "state-space-forgets-at-once",
    "vanishing-gradient",
    {"dt": 20.0},
    cure="init",
    where="<root>|log_dt|inward*|head*",
    also=("init-mismatch", "uneven-learning"),
    steps=150,
)
def state_space(seed: int, dt: float = 0.1) -> Run:
    model = StateSpace(dt)
    return Run(model, torch.optim.Adam(model.parameters(), lr=1e-2), recall(seed), F.cross_entropy)
