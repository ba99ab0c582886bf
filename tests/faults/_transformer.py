"""Transformers: encoders, decoders, before and after norm, masks, tied embeddings, Hugging Face's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import digits, from_step, language, patterns
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


class Encoder(nn.Module):
    """torch's own encoder over a sequence, the class by the mean over time."""

    def __init__(self, dim: int, layers: int, pre: bool, classes: int) -> None:
        super().__init__()
        self.inward = nn.Linear(dim, 32)
        self.position = nn.Parameter(0.02 * torch.randn(1, 64, 32))
        layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=pre)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.inward(x) + self.position[:, : x.shape[1]]).mean(1))


@healthy("transformer", "encoder-torch-post-norm", steps=80)
@healthy("transformer", "encoder-torch-pre-norm", {"pre": True}, steps=80)
@healthy("transformer", "vit-digits", {"task": "digits", "pre": True}, steps=80)
@faulty(
    "transformer",
    "vit-pixels-0-to-255",
    "input-scale",
    {"task": "digits", "pre": True, "scale": 255.0},
    cure="normalisation",
    where="<input>|inward",
    twin={"task": "digits", "pre": True},
    also=("exploding-activation",),
    steps=80,
)
@faulty("transformer", "encoder-lr-1e-9", "update-too-small", {"lr": 1e-9}, cure="learning rate", steps=60)
@faulty(
    "transformer",
    "encoder-lr-half",
    "update-too-large",
    {"lr": 0.5},
    cure="learning rate",
    also=("collapsed-batch", "exploding-activation"),
    steps=60,
)
def encoder(
    seed: int, pre: bool = False, layers: int = 2, task: str = "patterns", lr: float = 2e-3, scale: float = 1.0
) -> Run:
    """Classes of patterns, or of digits by their rows."""
    if task == "digits":
        model, plain = Encoder(8, layers, pre, 10), digits(seed, 32)
    else:
        model, plain = Encoder(4, layers, pre, 4), patterns(seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = plain(step)
        return (x.squeeze(1) if task == "digits" else x) * scale, y

    return Run(model, optimizer_of(model, "Adam", lr), batch, F.cross_entropy)


class Last(nn.Module):
    """The logits of a Hugging Face model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens).logits


@healthy("transformer", "hf-gpt2", steps=40)
@healthy("transformer", "hf-bert-classifier", {"kind": "bert"}, steps=40)
@healthy("transformer", "hf-llama", {"kind": "llama"}, steps=40)
@faulty(
    "transformer",
    "hf-gpt2-lr-3",
    "update-too-large",
    {"lr": 3.0},
    cure="learning rate",
    also=("exploding-activation", "collapsed-batch"),
    steps=25,
)
@faulty(
    "transformer",
    "hf-gpt2-weights-overwritten",
    "exploding-activation",
    {"overwrite": 15},
    start=15,
    cure="structural",
    also=("gradient-spike",),
    where="*.ln_f|*.ln_f.*",
    steps=30,
)
def hugging_face(seed: int, kind: str = "gpt2", lr: float = 5e-3, overwrite: int | None = None) -> Run:
    """Models as transformers makes them from a configuration."""
    import transformers

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 24,
    }
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=2, n_positions=32, vocab_size=24, bos_token_id=0, eos_token_id=0
        )
        inner: Any = transformers.GPT2LMHeadModel(config)
    elif kind == "llama":
        inner = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, num_key_value_heads=2))
    else:
        inner = transformers.BertForSequenceClassification(transformers.BertConfig(**small, num_labels=2))
    model = Last(inner)

    @torch.no_grad()
    def before_step(step: int) -> None:
        if step == overwrite:
            inner.transformer.ln_f.weight *= 100

    plain = language(seed)

    def about(step: int) -> tuple[Tensor, Tensor]:
        x, _ = plain(step)
        x = torch.cat([x, (x + 5) % 24])
        return x, (x[:, 0] < 12).long()

    optimizer = optimizer_of(model, "AdamW", lr)
    if kind == "bert":
        return Run(model, optimizer, about, F.cross_entropy)
    return Run(model, optimizer, plain, tokens_loss, before_step=before_step)


@healthy("transformer", "seq2seq-torch", steps=60)
def sequences(seed: int) -> Run:
    """Translate tokens into others by torch's own transformer."""
    model = Translator()
    plain = language(seed, length=10)

    def shifted(x: Tensor, y: Tensor) -> tuple[Any, Tensor]:
        target = (x + 3) % 24
        padding = torch.zeros_like(x, dtype=torch.bool)
        return (x, torch.cat([torch.zeros_like(x[:, :1]), target[:, :-1]], 1), padding), target

    batch = from_step(plain, 0, shifted)
    return Run(model, optimizer_of(model, "Adam", 3e-3), batch, tokens_loss)


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(24, 32), nn.Embedding(24, 32)
        self.model = nn.Transformer(32, 2, 1, 1, 64, 0.0, batch_first=True)
        self.head = nn.Linear(32, 24)

    def forward(self, source: Tensor, target: Tensor, padding: Tensor) -> Tensor:
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        found = self.model(
            self.source(source),
            self.target(target),
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return self.head(found)
