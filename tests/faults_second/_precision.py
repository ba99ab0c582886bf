"""Weights in bfloat16, products of probabilities, exponentials by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import batches, generator, images, language, standardized, table
from tests.faults_second._language import LanguageModel, cross_entropy
from tests.faults_second._registry import faulty, healthy


@healthy("transformer", "bf16-autocast-fp32-weights", steps=40)
def bf16_autocast(seed: int) -> Run:
    model = LanguageModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits.float(), target)

    return Run(model, optimizer, language(seed), loss_fn, autocast=torch.bfloat16)


@healthy("MLP", "adamw-at-1e-4-in-float32", steps=200)
@faulty(
    "MLP",
    "adamw-at-1e-4-in-bfloat16",
    "dtype-underflow",
    {"dtype": torch.bfloat16},
    cure="structural",
    also=("update-too-small",),
    steps=200,
)
def pure_bf16(seed: int, dtype: torch.dtype = torch.float32) -> Run:
    """Weights of 0.2 in bfloat16 are 1e-3 apart: most steps of 1e-4 are rounded away."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    for layer in (model[1], model[3], model[5]):
        nn.init.kaiming_normal_(layer.weight)
    model.to(dtype)
    plain = images(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        return x.to(dtype), y

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.float(), target)

    return Run(model, torch.optim.AdamW(model.parameters(), lr=1e-4), batch, loss_fn)


class HiddenMarkov(nn.Module):
    """The probability of a sequence by the forward algorithm, in logarithms or as it is."""

    def __init__(self, logs: bool, states: int = 6, symbols: int = 8) -> None:
        super().__init__()
        self.move = nn.Parameter(torch.randn(states, states))
        self.emit = nn.Parameter(torch.randn(states, symbols))
        self.logs = logs

    def forward(self, x: Tensor) -> Tensor:
        move, emit = self.move.log_softmax(1), self.emit.log_softmax(1)
        states = len(move)
        if self.logs:
            at = emit[:, x[:, 0]].T - torch.tensor(states).log()
            for step in range(1, x.shape[1]):
                at = torch.logsumexp(at.unsqueeze(2) + move, 1) + emit[:, x[:, step]].T
            return torch.logsumexp(at, 1)
        at = emit.exp()[:, x[:, 0]].T / states
        for step in range(1, x.shape[1]):
            at = (at @ move.exp()) * emit.exp()[:, x[:, step]].T
        return at.sum(1).log()


@healthy("HMM", "hmm-forward-in-logs", steps=60, goal=1.75)
@healthy("HMM", "hmm-short-without-logs", {"logs": False, "length": 16}, steps=60, goal=1.75)
@faulty(
    "HMM",
    "hmm-long-without-logs",
    "dtype-underflow",
    {"logs": False},
    cure="structural",
    also=("non-finite", "vanishing-activation"),
    steps=60,
)
def hidden_markov(seed: int, logs: bool = True, length: int = 64) -> Run:
    """Negative log-likelihood per symbol; 64 symbols have a probability below what float32 holds."""
    model = HiddenMarkov(logs)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = generator(seed, step)
        phase = torch.randint(8, (16, 1), generator=made)
        x = (phase + torch.arange(length) // 2 + (torch.rand(16, length, generator=made) < 0.1).long()) % 8
        return x, x

    def loss_fn(found: Tensor, _: Tensor) -> Tensor:
        return -found.mean() / length

    return Run(model, torch.optim.Adam(model.parameters(), lr=0.05), batch, loss_fn)


class Softplus(nn.Module):
    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(1 + torch.exp(x)) if self.by_hand else F.softplus(x)


@healthy("MLP", "softplus-of-torch", steps=100)
@healthy("MLP", "softplus-by-hand-of-small-numbers", {"by_hand": True, "unit": 1.0}, steps=100)
@faulty(
    "MLP",
    "softplus-by-hand",
    "dtype-overflow",
    {"by_hand": True},
    cure="structural",
    also=("non-finite", "input-scale", "exploding-activation"),
    where="[0-9]|<input>",
    steps=100,
)
def softplus(seed: int, by_hand: bool = False, unit: float = 40.0) -> Run:
    """exp(89) is infinite in float32."""
    x, y = table("wine")
    model = nn.Sequential(nn.Linear(13, 64), Softplus(by_hand), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if unit > 1 else 1e-2)
    return Run(model, optimizer, batches(standardized(x) * unit, y, seed), F.cross_entropy)
