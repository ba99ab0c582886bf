"""Small language models, written as nanoGPT, Llama, Gemma write theirs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._program import Run
from tests.faults_second._data import language
from tests.faults_second._registry import faulty, healthy


class Attention(nn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class RMSNorm(nn.Module):
    """Gemma's, whose weight is what is added to 1."""

    def __init__(self, width: int, plus: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.plus = plus

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * (self.plus + self.weight)


class Block(nn.Module):
    def __init__(self, width: int, plus: float | None = None) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm1 = nn.LayerNorm(width) if plus is None else RMSNorm(width, plus)
        self.norm2 = nn.LayerNorm(width) if plus is None else RMSNorm(width, plus)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    """Token and position embeddings, blocks, and a head which may be the token embedding again."""

    def __init__(self, width: int = 64, depth: int = 2, vocabulary: int = 32, std: float | None = 0.02, **parts: float):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(64, width)
        self.blocks = nn.Sequential(*(Block(width, parts.get("plus")) for _ in range(depth)))
        self.norm = nn.LayerNorm(width) if "plus" not in parts else RMSNorm(width, parts["plus"])
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        if std is not None:
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    nn.init.normal_(module.weight, std=std)
                    if isinstance(module, nn.Linear) and module.bias is not None:
                        nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.places.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


@healthy("transformer", "nanogpt-tied", steps=60)
@faulty(
    "transformer",
    "nanogpt-tied-to-default-embeddings",
    "default-init",
    {"std": None, "lr": 1e-3},
    twin={"lr": 1e-3},
    cure="init",
    also=("init-mismatch", "exploding-activation"),
    where="tokens*|places*|head*|norm",
    steps=60,
)
@faulty(
    "transformer",
    "nanogpt-from-scratch-at-2e-5",
    "update-too-small",
    {"lr": 2e-5},
    cure="lr",
    steps=60,
)
@faulty(
    "transformer",
    "nanogpt-at-0.1",
    "update-too-large",
    {"lr": 0.1},
    cure="lr",
    also=("exploding-activation", "saturated-units", "exploding-gradient", "dead-units"),
    steps=60,
)
def nanogpt(seed: int, std: float | None = 0.02, lr: float = 3e-3) -> Run:
    model = LanguageModel(std=std)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    return Run(model, optimizer, language(seed), cross_entropy, clip=1.0)


@healthy("transformer", "gemma-norms-of-one-plus", steps=60)
@faulty(
    "transformer",
    "gemma-norms-without-the-one",
    "vanishing-activation",
    {"plus": 0.0},
    cure="init",
    also=("init-mismatch", "vanishing-gradient", "no-gradient"),
    where="*norm*|<root>|head*",
    steps=60,
)
def gemma(seed: int, plus: float = 1.0) -> Run:
    """Norm weights that mean "more than 1" in one library are the whole factor in another; the norms are frozen."""
    model = LanguageModel(plus=plus)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" not in name)
    free = [p for p in model.parameters() if p.requires_grad]
    return Run(model, torch.optim.AdamW(free, lr=3e-3), language(seed), cross_entropy)


@healthy("transformer", "tokens-averaged-clip-1", {"reduction": "mean", "lr": 1.0}, steps=80)
@healthy("transformer", "tokens-summed-clip-1-adam", {"reduction": "sum", "lr": 3e-3, "adam": True})
@faulty(
    "transformer",
    "tokens-summed-clip-1-sgd",
    "clipping-always",
    {"reduction": "sum", "lr": 1.0 / 384},
    twin={"reduction": "mean", "lr": 1.0},
    cure="clip",
    also=("loss-scale", "update-too-small"),
)
def summed(seed: int, reduction: str = "mean", lr: float = 1.0, adam: bool = False) -> Run:
    """The clipping at 1 that a trainer does unasked, under a loss summed over 384 tokens and a rate adapted to it."""
    model = LanguageModel(std=None)
    for embedding in (model.tokens, model.places):
        nn.init.normal_(embedding.weight, std=0.1)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    if adam:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)

    def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction=reduction)

    return Run(model, optimizer, language(seed), loss_fn, cross_entropy, clip=1.0)


@healthy("transformer", "prompts-ignored-in-the-loss", steps=60)
@faulty(
    "transformer",
    "answers-cut-off-all-ignored",
    "non-finite",
    {"truncated": 25},
    cure="structural",
    start=25,
    steps=60,
)
def instructions(seed: int, truncated: int = 10_000) -> Run:
    """Only answers count; a prompt that fills the window leaves a batch in which nothing does."""
    model, plain = LanguageModel(), language(seed, 4)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        y = y.clone()
        y[:, : 24 if step >= truncated else 12] = -100
        return x, y

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Run(model, optimizer, batch, cross_entropy, clip=1.0)
