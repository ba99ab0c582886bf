"""torch's recurrent modules: gates, cells in a loop, language."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import language, oscillations, patterns
from tests.faults._parts import optimizer_of, tokens_loss
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


class Gated(nn.Module):
    def __init__(self, kind: str, dim: int, width: int, layers: int, both: bool, classes: int = 4) -> None:
        super().__init__()
        make = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}[kind]
        self.rnn = make(dim, width, num_layers=layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(width * (2 if both else 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


@healthy("LSTM", "lstm-oscillations")
@healthy("LSTM", "lstm-2-layers-clipped", {"layers": 2, "clip": 1.0}, steps=100)
@healthy("GRU", "gru-oscillations", {"kind": "GRU"})
@healthy("GRU", "gru-bidirectional", {"kind": "GRU", "both": True})
@healthy("RNN", "nn-rnn-tanh", {"kind": "RNN"}, steps=80)
@faulty(
    "LSTM",
    "lstm-lr-2",
    "update-too-large",
    {"lr": 2.0},
    cure="learning rate",
    also=("saturated-units", "exploding-activation"),
)
@faulty(
    "LSTM",
    "lstm-inputs-1e3",
    "input-scale",
    {"scale": 1e3},
    cure="normalisation",
    where="<input>|rnn",
    also=("saturated-units",),
)
@faulty(
    "GRU", "gru-lr-1e-8", "update-too-small", {"kind": "GRU", "lr": 1e-8}, cure="learning rate", twin={"kind": "GRU"}
)
@faulty(
    "LSTM",
    "lstm-clip-1e-5",
    "clipping-always",
    {"clip": 1e-5, "optimizer": "SGD", "lr": 0.3},
    cure="clipping",
    also=("update-too-small",),
    twin={"optimizer": "SGD", "lr": 0.3},
    steps=120,
)
@faulty(
    "LSTM",
    "lstm-zero-weights",
    "symmetric-units",
    {"fill": 0.0},
    cure="init",
    also=("no-gradient", "vanishing-activation", "collapsed-batch"),
)
@faulty("LSTM", "lstm-constant-weights", "symmetric-units", {"fill": 0.1}, cure="init", where="rnn|rnn.*")
def gated(
    seed: int,
    kind: str = "LSTM",
    layers: int = 1,
    both: bool = False,
    lr: float = 0.01,
    clip: float | None = None,
    scale: float = 1.0,
    optimizer: str = "Adam",
    fill: float | None = None,
) -> Run:
    """The frequency of a wave by torch's own recurrent modules."""
    model = Gated(kind, 3, 24, layers, both)
    if fill is not None:
        for p in model.rnn.parameters():
            nn.init.constant_(p, fill)
    plain = oscillations(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        return x * scale, y

    return Run(model, optimizer_of(model, optimizer, lr), batch, F.cross_entropy, clip=clip)


class Cells(nn.Module):
    """An LSTM cell in a loop: each step is a site."""

    def __init__(self, forget: float) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, 32)
        self.head = nn.Linear(32, 4)
        with torch.no_grad():
            self.cell.bias_ih[32:64] = forget
            self.cell.bias_hh[32:64] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        state = (torch.zeros(len(x), 32), torch.zeros(len(x), 32))
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0])


@healthy("LSTM", "lstm-cell-forget-bias-1", {"length": 20}, steps=80)
@faulty(
    "LSTM",
    "lstm-cell-forgets",
    "vanishing-gradient",
    {"forget": -4.0},
    cure="init",
    where="cell|cell.*",
    also=("init-mismatch",),
    twin={"forget": 3.0},
)
def cells(seed: int, length: int = 30, forget: float = 1.0) -> Run:
    """What the first steps showed has to be remembered."""
    model = Cells(forget)
    return Run(model, optimizer_of(model, "Adam", 0.01), patterns(seed, length=length), F.cross_entropy)


class LanguageModel(nn.Module):
    def __init__(self, tie: bool, std: float, drop: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(24, 32)
        self.rnn = nn.LSTM(32, 32, batch_first=True)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(32, 24)
        nn.init.normal_(self.embedding.weight, std=std)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.drop(self.rnn(self.embedding(tokens))[0]))


@healthy("LSTM", "lstm-language-tied", {"tie": True, "std": 0.1}, steps=80)
@healthy("LSTM", "lstm-language-dropout", {"drop": 0.3}, steps=80)
@healthy("LSTM", "lstm-language-sgd", {"kind": "SGD", "lr": 0.5, "clip": 1.0}, steps=80)
@faulty(
    "LSTM",
    "lstm-embedding-std-100",
    "saturated-units",
    {"std": 100.0},
    cure="init",
    also=("init-mismatch", "input-scale", "exploding-activation"),
    where="embedding|embedding.*|rnn",
)
def language_model(
    seed: int,
    tie: bool = False,
    std: float = 1.0,
    drop: float = 0.0,
    kind: str = "Adam",
    lr: float = 0.01,
    clip: float | None = None,
) -> Run:
    """The next token."""
    model = LanguageModel(tie, std, drop)
    return Run(model, optimizer_of(model, kind, lr), language(seed), tokens_loss, clip=clip)
