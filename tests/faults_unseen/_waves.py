"""Sequences without attention: WaveNet, temporal convolutions, CTC, a linear state space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import language, oscillations, seeded
from tests.faults._parts import optimizer_of, tokens_loss
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy


class Gated(nn.Module):
    """A causal dilated convolution with a gate, a residual and a skip, as in WaveNet."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, 2 * width, 2, dilation=dilation)
        self.residual, self.skip = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)
        self.dilation = dilation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gate = self.conv(F.pad(x, (self.dilation, 0))).chunk(2, 1)
        y = torch.tanh(value) * torch.sigmoid(gate)
        return x + self.residual(y), self.skip(y)


class WaveNet(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, width, 1)
        self.layers = nn.ModuleList(Gated(width, 2**i) for i in (0, 1, 2, 3))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first(x.transpose(1, 2)), []
        for layer in self.layers:
            x, skip = layer(x)
            skips.append(skip)
        return self.head(torch.stack(skips).sum(0)).mean(2)


class StateSpace(nn.Module):
    """A diagonal linear recurrence, its eigenvalues learned, then a gated linear unit."""

    def __init__(self, low: float, high: float, width: int = 32) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(low, high, width))
        self.inputs, self.outputs, self.head = nn.Linear(3, width), nn.Linear(width, 2 * width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        u, state, states = self.inputs(x), torch.zeros(len(x), len(self.decay)), []
        for t in range(x.shape[1]):
            state = self.decay * state + u[:, t]
            states.append(state)
        return self.head(F.glu(self.outputs(torch.stack(states, 1)), -1).mean(1))


def deep_convolutions(depth: int = 16, init: str = "default", width: int = 32) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        conv = nn.Conv1d(3 if i == 0 else width, width, 3, padding=2 ** (i % 3), dilation=2 ** (i % 3))
        if init == "he":
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 4))


@healthy("WaveNet", "wavenet-oscillations")
@healthy("state space", "diagonal-state-space", {"kind": "state", "lr": 0.01}, steps=80)
@faulty(
    "state space",
    "diagonal-state-space-unstable",
    "exploding-activation",
    {"kind": "state", "high": 2.0, "lr": 0.01},
    cure="init",
    also=("exploding-gradient", "init-mismatch", "non-finite"),
    where="outputs*|decay|inputs*|<root>",
    twin={"kind": "state", "lr": 0.01},
)
@faulty(
    "TCN",
    "tcn-16-default",
    "default-init",
    {"kind": "tcn", "lr": 1e-3},
    cure="init",
    also=("vanishing-gradient", "vanishing-activation", "init-mismatch", "collapsed-batch"),
    twin={"kind": "tcn", "init": "he", "lr": 1e-3},
    steps=80,
)
def waves(seed: int, kind: str = "wavenet", high: float = 0.98, init: str = "default", lr: float = 4e-3) -> Run:
    """Which of four frequencies."""
    model: nn.Module
    if kind == "wavenet":
        model = WaveNet()
    elif kind == "state":
        model = StateSpace(-0.9 * high, high)
    else:
        model = Turned(deep_convolutions(init=init))
    return Run(model, optimizer_of(model, "Adam", lr), oscillations(seed, length=32), F.cross_entropy)


class Turned(nn.Module):
    """Time goes last."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.transpose(1, 2))


class GatedLanguage(nn.Module):
    """Gated convolutions over tokens (Dauphin et al.)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.tokens = nn.Embedding(24, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, 2 * width, 3) for _ in range(3))
        self.head = nn.Linear(width, 24)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids).transpose(1, 2)
        for conv in self.convs:
            x = x + F.glu(conv(F.pad(x, (2, 0))), 1)
        return self.head(x.transpose(1, 2))


@healthy("gated CNN", "gated-convolutions-language")
@faulty(
    "gated CNN",
    "embedding-max-norm-tiny",
    "vanishing-activation",
    {"max_norm": 1e-4},
    cure="structural",
    also=("input-scale", "collapsed-batch", "init-mismatch"),
    where="tokens*|convs*",
)
def gated_language(seed: int, max_norm: float | None = None) -> Run:
    """The next token of a Markov chain."""
    model = GatedLanguage()
    model.tokens.max_norm = max_norm
    return Run(model, optimizer_of(model, "Adam", 4e-3), language(seed), tokens_loss)


@healthy("CTC", "ctc-tones", steps=80)
@faulty(
    "CTC",
    "ctc-targets-longer-than-inputs",
    "non-finite",
    {"long": 15},
    start=15,
    cure="structural",
    where="<root>|end*|head*",
    steps=50,
)
def connectionist(seed: int, long: int | None = None) -> Run:
    """Three symbols in twelve frames; an utterance of too few frames has an infinite loss."""
    model = Spelling()

    def batch(step: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        source = seeded(seed, step)
        symbols = torch.randint(1, 5, (16, 3), generator=source)
        x = F.one_hot(symbols.repeat_interleave(4, 1), 6).float()
        frames = torch.full((16,), 12)
        if long is not None and step >= long:
            frames[3] = 2
        return x + 0.3 * torch.randn(x.shape, generator=source), (symbols, frames)

    def loss(output: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        symbols, frames = target
        return F.ctc_loss(output.transpose(0, 1), symbols, frames, torch.full((16,), 3))

    return Run(model, optimizer_of(model, "Adam", 0.01), batch, loss)


class Spelling(nn.Module):
    """A GRU and log-probabilities of symbols; 0 is the blank."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head, self.end = nn.GRU(6, 32, batch_first=True), nn.Linear(32, 5), nn.LogSoftmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(self.gru(x)[0]))
