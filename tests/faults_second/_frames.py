"""Frames of sound: linear attention, pooled deviations, decibels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import generator
from tests.faults_second._recurrent import Last
from tests.faults_second._registry import faulty, healthy


class LinearAttention(nn.Module):
    """Causal attention with positive features; the running sum of values over the running sum of weights."""

    def __init__(self, width: int, divide: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.divide = divide

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        state = torch.cumsum(k.unsqueeze(3) * v.unsqueeze(2), 1)
        y = (q.unsqueeze(2) @ state).squeeze(2)
        if self.divide:
            y = y / (q * torch.cumsum(k, 1)).sum(-1, keepdim=True)
        return x + self.out(y)


@healthy("linear attention", "linear-attention-with-denominator", steps=70)
@faulty(
    "linear attention",
    "linear-attention-without-denominator",
    "exploding-activation",
    {"divide": False},
    cure="structural",
    also=("exploding-gradient", "non-finite", "update-too-large"),
    steps=70,
)
def linear_attention(seed: int, divide: bool = True) -> Run:
    """Which of three tones is in the noise; three layers over 64 samples."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = generator(seed, step)
        y = torch.randint(3, (16,), generator=made)
        phase = torch.rand(16, 1, generator=made) * 2 * math.pi
        tone = torch.sin(phase + torch.arange(64) * (0.2 + 0.25 * y.unsqueeze(1)))
        lags = (tone + 0.3 * torch.randn(16, 64, generator=made)).unfold(1, 4, 1)
        return lags, y

    blocks = [LinearAttention(16, divide) for _ in range(3)]
    model = nn.Sequential(nn.Linear(4, 16), *blocks, Mean(), nn.Linear(16, 3))
    return Run(model, torch.optim.AdamW(model.parameters(), lr=5e-3), batch, F.cross_entropy)


class Mean(nn.Module):
    """Over the second dimension, or its standard deviation beside it."""

    def __init__(self, std: str = "") -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        if not self.std:
            return x.mean(1)
        spread = x.var(1, unbiased=False)
        if self.std == "guarded":
            some = spread > 0
            return torch.cat([x.mean(1), torch.where(some, spread, 1.0).sqrt() * some], 1)
        return torch.cat([x.mean(1), spread.sqrt()], 1)


@healthy("x-vector", "speakers-pooled")
@healthy("x-vector", "speakers-silence-guarded", {"silent": 30})
@faulty(
    "x-vector",
    "speakers-deviation-of-silence",
    "non-finite",
    {"std": "plain", "silent": 30},
    twin={"silent": 30},
    cure="structural",
    where="[234]",
    start=30,
)
def speakers(seed: int, std: str = "guarded", silent: int = 10_000) -> Run:
    """Mean and deviation over the frames; from some step on each batch has one clip of digital silence."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = generator(seed, step)
        y = torch.randint(4, (32,), generator=made)
        x = torch.randn(32, 20, 8, generator=made) * (0.5 + y.view(-1, 1, 1) / 2)
        if step >= silent:
            x[0] = 0
        return x, y

    model = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), Mean(std), nn.Linear(64, 4))
    return Run(model, torch.optim.Adam(model.parameters(), lr=3e-3), batch, F.cross_entropy)


@healthy("GRU", "mel-in-decibels-normalized")
@faulty(
    "GRU",
    "mel-in-decibels",
    "input-scale",
    {"raw": True},
    cure="normalisation",
    also=("saturated-units", "dead-units"),
    where="<input>|rnn*",
)
@faulty(
    "GRU",
    "gru-filled-with-0.1",
    "symmetric-units",
    {"fill": 0.1},
    cure="init",
    also=("init-mismatch", "collapsed-batch"),
)
def mel(seed: int, raw: bool = False, fill: float | None = None) -> Run:
    """Sixteen bands of a log-spectrogram at -80 to -20 dB, in which a band of the class rises over time."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = generator(seed, step)
        y = torch.randint(8, (48,), generator=made)
        x = torch.randn(48, 12, 16, generator=made)
        x[torch.arange(48), :, 2 * y] += torch.linspace(-2, 2, 12)
        x[torch.arange(48), :, 2 * y + 1] -= torch.linspace(-2, 2, 12)
        return (x * 10 - 50) if raw else x, y

    model = Last("GRU", 16, 32, 8)
    if fill is not None:
        for parameter in model.parameters():
            nn.init.constant_(parameter, fill)
    return Run(model, torch.optim.Adam(model.parameters(), lr=1e-2), batch, F.cross_entropy)
