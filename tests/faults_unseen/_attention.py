"""Attention: Perceiver, seq2seq with a GRU, ReZero."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import digits, language, seeded
from tests.faults._parts import optimizer_of, tokens_loss
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy


class Attention(nn.Module):
    """Of one head, written out."""

    def __init__(self, width: int, wide: int, scaled: bool = True) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, wide) for _ in range(3))
        self.softmax, self.out = nn.Softmax(-1), nn.Linear(wide, width)
        self.scale = wide**-0.5 if scaled else 1.0

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(memory).transpose(1, 2) * self.scale
        return self.out(self.softmax(scores) @ self.value(memory))


class Perceiver(nn.Module):
    """Learned latents look at the pixels, each with its place."""

    def __init__(self, alike: bool, width: int = 32) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.full((8, width), 0.02) if alike else 0.02 * torch.randn(8, width))
        self.pixels, self.places = nn.Linear(1, width), nn.Parameter(torch.randn(64, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.cross, self.own = Attention(width, width), Attention(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.norms[0](self.pixels(x.flatten(1)[..., None]) + self.places)
        z = self.latents.expand(len(x), -1, -1)
        z = z + self.cross(self.norms[1](z), memory)
        z = z + self.own(self.norms[2](z), self.norms[2](z))
        return self.head((z + self.mlp(self.norms[3](z))).flatten(1))


def latents_alike(run: Run) -> bool:
    z = run.model.get_parameter("latents")
    return bool((z.std(0).max() < 1e-2 * z.std()).item())


@healthy("Perceiver", "perceiver-digits", steps=80)
@faulty(
    "Perceiver",
    "perceiver-latents-alike",
    "symmetric-units",
    {"alike": True},
    cure="init",
    where="latents|cross*|own*",
    also=("collapsed-batch",),
    static=latents_alike,
)
def perceiver(seed: int, alike: bool = False) -> Run:
    """With all latents and all columns of the head alike they all learn the same."""
    model = Perceiver(alike)
    if alike:
        with torch.no_grad():
            model.head.weight.copy_(model.head.weight[:, :32].repeat(1, 8))
    return Run(model, optimizer_of(model, "Adam", 3e-3), digits(seed, 32), F.cross_entropy)


class Block(nn.Module):
    """Pre-norm, or ReZero: no norm, and branches that start at nothing."""

    def __init__(self, width: int, wide: int, scaled: bool, rezero: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.Identity() if rezero else nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, wide, scaled)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.alpha: nn.Parameter | float = nn.Parameter(torch.zeros(1)) if rezero else 1.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.alpha * self.attention(y, y)
        return x + self.alpha * self.mlp(self.norms[1](x))


class Pairs(nn.Module):
    """Tokens and places, some blocks; the answer is read at the last token."""

    def __init__(self, depth: int, wide: int, scaled: bool, rezero: bool, places: float, gain: float) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(10, 32), nn.Embedding(9, 32)
        self.blocks = nn.Sequential(*(Block(32, wide, scaled, rezero) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)
        with torch.no_grad():
            self.places.weight *= places
            for block in self.blocks:
                block.attention.query.weight *= gain  # type: ignore[union-attr, operator]
                block.attention.key.weight *= gain  # type: ignore[union-attr, operator]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x).mean(1)))


@healthy("transformer", "rezero-8-blocks", {"rezero": True, "depth": 8})
@faulty(
    "transformer",
    "positions-times-100",
    "collapsed-batch",
    {"places": 100.0},
    cure="scale",
    also=("init-mismatch", "exploding-activation", "input-scale"),
    where="places*|blocks*|norm*",
)
@faulty(
    "transformer",
    "attention-not-scaled-512-wide",
    "saturated-units",
    {"wide": 512, "scaled": False, "gain": 3.0},
    cure="scale",
    also=("vanishing-gradient", "init-mismatch", "exploding-gradient"),
    where="blocks*",
    twin={"wide": 512, "gain": 3.0},
)
def counting(
    seed: int,
    depth: int = 2,
    wide: int = 32,
    scaled: bool = True,
    rezero: bool = False,
    places: float = 1.0,
    gain: float = 1.0,
) -> Run:
    """The most frequent of nine digits."""
    model = Pairs(depth, wide, scaled, rezero, places, gain)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        source = seeded(seed, step)
        ids = torch.randint(10, (64, 9), generator=source)
        most = torch.randint(10, (64,), generator=source)
        chosen = torch.rand(64, 9, generator=source) < 0.4
        ids = torch.where(chosen, most[:, None], ids)
        return ids, most

    return Run(model, optimizer_of(model, "Adam", 2e-3), batch, F.cross_entropy)


class Translator(nn.Module):
    """GRU encoder and decoder, additive attention of the decoder on all the encoder's states."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(24, width), nn.Embedding(24, width)
        self.encoder, self.decoder = nn.GRU(width, width, batch_first=True), nn.GRU(width, width, batch_first=True)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.score, self.head = nn.Linear(width, 1, bias=False), nn.Linear(2 * width, 24)

    def forward(self, ids: Tensor) -> Tensor:
        states, last = self.encoder(self.source(ids))
        decoded, _ = self.decoder(self.target(ids.roll(1, 1)), last)
        energy = self.score(torch.tanh(self.query(decoded)[:, :, None] + self.key(states)[:, None]))[..., 0]
        return self.head(torch.cat([decoded, torch.softmax(energy, -1) @ states], -1))


@healthy("seq2seq", "seq2seq-additive-attention")
@faulty(
    "seq2seq",
    "seq2seq-clip-1e-5",
    "clipping-always",
    {"clip": 1e-5, "kind": "SGD", "lr": 0.5},
    cure="clipping",
    also=("update-too-small",),
    twin={"clip": 1.0, "kind": "SGD", "lr": 0.5},
)
@healthy("seq2seq", "seq2seq-sgd-clip-1", {"clip": 1.0, "kind": "SGD", "lr": 0.5})
def translator(seed: int, clip: float | None = None, kind: str = "Adam", lr: float = 5e-3) -> Run:
    """The next tokens of a Markov chain, by way of a decoder."""
    model = Translator()
    return Run(model, optimizer_of(model, kind, lr), language(seed, 12, 10), tokens_loss, clip=clip)
