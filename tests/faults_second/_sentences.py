"""Perplexity as a loss; sentences with padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import language
from tests.faults_second._language import Block, cross_entropy
from tests.faults_second._registry import faulty, healthy


@healthy("LSTM", "perplexity-in-logs")
@faulty(
    "LSTM",
    "perplexity-as-the-loss-sgd",
    "loss-scale",
    {"perplexity": True},
    cure="structural",
    also=("update-too-large", "exploding-gradient", "gradient-spike", "exploding-activation", "saturated-units"),
)
def perplexity(seed: int, perplexity: bool = False) -> Run:
    """exp(cross-entropy) multiplies each gradient by itself: 32 at the start, anything later."""
    model = CharLSTM()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.9)

    def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
        found = cross_entropy(logits, target)
        return found.exp() if perplexity else found

    return Run(model, optimizer, language(seed), loss_fn, cross_entropy)


class CharLSTM(nn.Module):
    def __init__(self, vocabulary: int = 32, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0])


@healthy("transformer", "classifier-of-padded-sentences", steps=60)
@faulty(
    "transformer",
    "qkv-of-unit-normals",
    "init-mismatch",
    {"std": 1.0},
    cure="init",
    also=("exploding-activation", "saturated-units", "vanishing-gradient", "exploding-gradient", "uneven-learning"),
    steps=60,
)
def padded(seed: int, std: float = 0.0) -> Run:
    """Which of eight kinds of token is the most frequent, in sentences padded to 24."""
    model = nn.Sequential(nn.Embedding(33, 64, padding_idx=32), Block(64), Block(64), nn.Flatten(), nn.Linear(1536, 8))
    if std:
        for block in (model[1], model[2]):
            nn.init.normal_(block.attention.qkv.weight, std=std)
            nn.init.normal_(block.attention.out.weight, std=std)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = language(seed, 32)(step)[0].clone()
        y = F.one_hot(x[:, :12] % 8, 8).sum(1).argmax(1)
        x[:, 12:] = 32
        return x, y

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return Run(model, optimizer, batch, F.cross_entropy)
