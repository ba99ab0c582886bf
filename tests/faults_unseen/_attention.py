"""Attention: Perceiver, seq2seq with a GRU, ViT and T5 of `transformers`, ReZero."""

from __future__ import annotations

from collections.abc import Sequence

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


class Logits(nn.Module):
    """A model of `transformers`, of which only the logits matter."""

    def __init__(self, body: nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.body, self.twice = body, twice

    def forward(self, x: Tensor) -> Tensor:
        return self.body(input_ids=x, decoder_input_ids=x).logits if self.twice else self.body(x).logits


def layers_of(model: nn.Module, decay: float, lr: float) -> Sequence[dict[str, object]]:
    """Layer-wise rates, as for fine-tuning: each layer's is smaller than that of the layer above it."""
    order = ["embeddings", *(f".{i}." for i in range(4)), ""]
    groups: list[dict[str, object]] = [{"params": [], "lr": lr * decay ** (len(order) - 1 - i)} for i in range(6)]
    for name, p in model.named_parameters():
        place = next(i for i, part in enumerate(order) if part in name)
        groups[place]["params"].append(p)  # type: ignore[attr-defined]
    return groups


@healthy("ViT", "hf-vit-digits", steps=90)
@healthy("ViT", "hf-vit-layer-wise-rates", {"decay": 0.8}, steps=90)
@faulty(
    "ViT",
    "hf-vit-initializer-range-2",
    "init-mismatch",
    {"std": 2.0},
    cure="init",
    also=("exploding-activation", "exploding-gradient", "saturated-units", "update-too-small"),
)
@faulty(
    "ViT",
    "hf-vit-layer-wise-rates-too-steep",
    "uneven-learning",
    {"decay": 0.02},
    cure="learning rate",
    also=("update-too-small",),
    where="*embeddings*|*layer.[0-2]*|*attention*",
    twin={"decay": 0.8},
    steps=90,
)
def vision_transformer(seed: int, std: float = 0.1, decay: float = 1.0) -> Run:
    """Four layers on patches of two by two, small."""
    from transformers import ViTConfig, ViTForImageClassification

    settings = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10, "initializer_range": std}
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    model = Logits(ViTForImageClassification(ViTConfig(**settings, **sizes)))
    optimizer = torch.optim.AdamW(layers_of(model, decay, 3e-3), 3e-3)
    return Run(model, optimizer, digits(seed, 32, 0.3, 0.38), F.cross_entropy)


@healthy("T5", "hf-t5-language", steps=40)
def text_to_text(seed: int) -> Run:
    """T5 does not divide its scores by the root of the width, and does not need to."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 24, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0)
    model = Logits(T5ForConditionalGeneration(config), twice=True)
    return Run(model, optimizer_of(model, "AdamW", 5e-3), language(seed, 12, 10), tokens_loss, clip=1.0)
