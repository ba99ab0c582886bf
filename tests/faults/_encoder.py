"""Torch's own encoder and translator, and Hugging Face's models."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import digits, from_step, language, patterns
from tests.faults._parts import optimizer_of, tokens_loss
from tests.faults._program import Run
from tests.faults._registry import faulty, healthy


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
