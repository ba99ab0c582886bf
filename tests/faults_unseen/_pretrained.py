"""ViT and T5 of `transformers`, small and from their configurations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.faults._data import digits, language
from tests.faults._parts import optimizer_of, tokens_loss
from tests.faults._program import Run
from tests.faults_unseen._registry import faulty, healthy


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
