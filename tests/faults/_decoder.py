"""A small GPT as in a tutorial: norms before and after, masks, tied embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.faults._data import language
from tests.faults._parts import optimizer_of, tokens_loss
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


class Attention(nn.Module):
    """Self-attention as in a tutorial."""

    def __init__(self, width: int, heads: int, scale: float | None = None) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.softmax = nn.Softmax(-1)
        self.out = nn.Linear(width, width)
        self.heads = heads
        self.scale = (width // heads) ** -0.5 if scale is None else scale

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * self.scale
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return self.out((self.softmax(scores) @ v).transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, pre: bool, skip: bool, norm: bool, drop: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm1 = nn.LayerNorm(width) if norm else nn.Identity()
        self.norm2 = nn.LayerNorm(width) if norm else nn.Identity()
        self.drop = nn.Dropout(drop)
        self.pre, self.skip = pre, float(skip)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.pre:
            x = self.skip * x + self.drop(self.attention(self.norm1(x), mask))
            return self.skip * x + self.drop(self.mlp(self.norm2(x)))
        x = self.norm1(self.skip * x + self.drop(self.attention(x, mask)))
        return self.norm2(self.skip * x + self.drop(self.mlp(x)))


class Decoder(nn.Module):
    """A small GPT."""

    def __init__(
        self,
        layers: int,
        width: int,
        pre: bool,
        skip: bool = True,
        norm: bool = True,
        tie: bool = False,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(24, width)
        self.positions = nn.Embedding(64, width)
        self.layers = nn.ModuleList(Layer(width, 2, pre, skip, norm, drop) for _ in range(layers))
        self.final = nn.LayerNorm(width) if pre and norm else nn.Identity()
        self.head = nn.Linear(width, 24, bias=False)
        if tie:
            nn.init.normal_(self.tokens.weight, std=0.2)
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        length = tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        x = self.tokens(tokens) + self.positions(torch.arange(length))
        for layer in self.layers:
            x = layer(x, causal if mask is None else mask)
        return self.head(self.final(x))


@healthy("transformer", "gpt-2-layers")
@healthy("transformer", "gpt-4-layers-pre-norm", {"layers": 4}, steps=50)
@healthy("transformer", "gpt-4-layers-post-norm-warmup", {"layers": 4, "pre": False, "warmup": 20}, steps=60)
@healthy("transformer", "gpt-tied-adamw-clipped", {"tie": True, "lr": 0.01, "kind": "AdamW", "clip": 1.0}, steps=100)
@healthy("transformer", "gpt-dropout", {"drop": 0.1}, steps=60)
@healthy("transformer", "gpt-12-layers-pre-norm-warmup", {"layers": 12, "width": 16, "warmup": 10}, steps=40)
@faulty(
    "transformer",
    "gpt-lr-1",
    "update-too-large",
    {"lr": 1.0},
    cure="learning rate",
    also=("exploding-activation", "collapsed-batch"),
    steps=40,
)
@faulty(
    "transformer",
    "gpt-16-post-norm-no-warmup",
    "update-too-large",
    {"layers": 16, "width": 16, "pre": False, "lr": 0.02},
    cure="learning rate",
    also=("vanishing-gradient", "collapsed-batch", "uneven-learning"),
    steps=40,
    twin={"layers": 16, "width": 16, "pre": True, "lr": 0.005, "warmup": 10},
)
@faulty(
    "transformer",
    "gpt-8-without-skips",
    "vanishing-gradient",
    {"layers": 8, "skip": False, "norm": False},
    cure="structural",
    also=("collapsed-batch", "vanishing-activation", "default-init", "init-mismatch"),
    steps=40,
    twin={"layers": 8},
)
@faulty(
    "transformer",
    "gpt-masked-row",
    "non-finite",
    {"masked": 0},
    cure="structural",
    where="layers.0.attention.softmax|layers.0.attention",
    steps=20,
)
@faulty(
    "transformer",
    "gpt-masked-row-late",
    "non-finite",
    {"masked": 20},
    start=20,
    cure="structural",
    where="layers.0.attention.softmax|layers.0.attention",
    steps=40,
)
@faulty(
    "transformer",
    "gpt-positions-unused",
    "no-gradient",
    {"positions": False},
    cure="structural",
    where="positions|positions.*",
    steps=40,
    static=lambda run: run.model.positions.weight.grad is None,
)  # type: ignore[union-attr]
@faulty(
    "transformer",
    "gpt-lr-jump",
    "update-too-large",
    {"jump": 20},
    start=20,
    cure="learning rate",
    also=("gradient-spike", "exploding-activation"),
    steps=50,
)
@faulty(
    "transformer",
    "gpt-clip-1e-3-sgd",
    "clipping-always",
    {"kind": "SGD", "lr": 0.1, "clip": 1e-3},
    cure="clipping",
    also=("update-too-small",),
    twin={"kind": "SGD", "lr": 0.1},
    steps=60,
)
@faulty(
    "transformer",
    "gpt-frozen-by-no-grad",
    "no-gradient",
    {"cut": True, "lr": 2e-3},
    cure="structural",
    where="tokens*|positions*|layers.*",
    twin={"lr": 2e-3},
    steps=60,
)
def decoder(
    seed: int,
    layers: int = 2,
    width: int = 32,
    pre: bool = True,
    skip: bool = True,
    norm: bool = True,
    tie: bool = False,
    drop: float = 0.0,
    kind: str = "Adam",
    lr: float = 5e-3,
    warmup: int = 0,
    clip: float | None = None,
    masked: int | None = None,
    positions: bool = True,
    jump: int | None = None,
    cut: bool = False,
) -> Run:
    """The next token of a Markov chain."""
    model: Any = Decoder(layers, width, pre, skip, norm, tie, drop)
    optimizer = optimizer_of(model, kind, lr)
    if not positions:
        model.forward = _without_positions(model)
    if cut:
        model.final.register_forward_hook(lambda module, args, output: output.detach())
    batch: Any = language(seed)
    if masked is not None:  # the first of the batch is all padding, and its mask has nothing to look at
        causal = torch.ones(16, 16, dtype=torch.bool).tril().expand(16, 1, 16, 16)
        with_mask = causal.clone()
        with_mask[0] = False
        plain = batch

        def batch(step: int) -> tuple[Any, Tensor]:
            x, y = plain(step)
            return (x, with_mask if step >= masked else causal), y

    def before_step(step: int) -> None:
        if step == jump:
            for group in optimizer.param_groups:
                group["lr"] *= 200

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / warmup)) if warmup else None
    return Run(model, optimizer, batch, tokens_loss, clip=clip, scheduler=scheduler, before_step=before_step)


def _without_positions(model: Any) -> Callable[[Tensor], Tensor]:
    def forward(tokens: Tensor) -> Tensor:
        x = model.tokens(tokens)
        for layer in model.layers:
            x = layer(x, torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril())
        return model.head(model.final(x))

    return forward
