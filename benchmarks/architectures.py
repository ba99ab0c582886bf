"""What the diagnosis says of sound models of today: `python -m benchmarks.architectures [--optimizer SGD]`.

Twenty-six architectures of `transformers`, small and with random weights of their own initialization, learn one batch
by heart in forty steps, gradients clipped to 1. Their losses fall, so whatever is said that is worse than a note is a
false alarm; with plain SGD it may be none: transformers learn unevenly by it, queries and keys thousands of times less.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from gradscope import GradScope

STEPS = 40
Made = tuple[nn.Module, dict[str, Any]]

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
_PAIR: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 97,
}
_VISION: dict[str, Any] = {key: _SMALL[key] for key in list(_SMALL)[:4]} | {"image_size": 32, "patch_size": 8}
_GROUPED = {"num_key_value_heads": 2}
_TEN_TO_ONE = {"head_dim": 8, **_GROUPED}


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _text(batch: int = 8, length: int = 24) -> Tensor:
    return torch.randint(3, 97, (batch, length), generator=_seeded())


def _language(kind: str, **config: Any) -> Callable[[], Made]:
    """The next (or the same) token of each place."""

    def make() -> Made:
        words = _text()
        return _of(kind, config), {"input_ids": words, "labels": words}

    return make


def _classes(kind: str, **config: Any) -> Callable[[], Made]:
    return lambda: (_of(kind, config), {"input_ids": _text(), "labels": torch.arange(8) % 2})


def _images(kind: str, size: int = 32, **config: Any) -> Callable[[], Made]:
    def make() -> Made:
        pixels = torch.randn(8, 3, size, size, generator=_seeded())
        return _of(kind, config | {"num_labels": 4}), {"pixel_values": pixels, "labels": torch.arange(8) % 4}

    return make


def _of(kind: str, config: dict[str, Any]) -> nn.Module:
    family = kind.split("For")[0].removesuffix("LMHeadModel").removesuffix("Model")
    made: nn.Module = getattr(hf, kind)(getattr(hf, f"{family}Config")(**config))
    return made


def _clip() -> Made:
    words = _SMALL | {"num_hidden_layers": 2, "projection_dim": 16, "eos_token_id": 2}
    seen = _VISION | {"num_hidden_layers": 2, "projection_dim": 16}
    model = hf.CLIPModel(hf.CLIPConfig(text_config=words, vision_config=seen, projection_dim=16))
    pixels = torch.randn(8, 3, 32, 32, generator=_seeded())
    return model, {"input_ids": _text(), "pixel_values": pixels, "return_loss": True}


def _speech() -> Made:
    config = hf.Wav2Vec2Config(
        **{key: _SMALL[key] for key in list(_SMALL)[:4]},
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 3, 3),
        conv_stride=(5, 2, 2),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        vocab_size=12,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
    )
    sound = torch.randn(4, 1600, generator=_seeded())
    return hf.Wav2Vec2ForCTC(config), {
        "input_values": sound,
        "labels": torch.randint(1, 12, (4, 6), generator=_seeded()),
    }


def _whisper() -> Made:
    config = hf.WhisperConfig(
        **_PAIR,
        num_mel_bins=16,
        max_source_positions=50,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    features = torch.randn(4, 16, 100, generator=_seeded())
    return hf.WhisperForConditionalGeneration(config), {"input_features": features, "labels": _text(4)}


MODELS: dict[str, Callable[[], Made]] = {
    "GPT-2": _language("GPT2LMHeadModel", n_embd=32, n_layer=3, n_head=4, vocab_size=97, n_positions=64),
    "GPT-NeoX": _language("GPTNeoXForCausalLM", **_SMALL),
    "OPT": _language(
        "OPTForCausalLM",
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=64,
        vocab_size=97,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "BLOOM": _language("BloomForCausalLM", hidden_size=32, n_layer=3, n_head=4, vocab_size=97),
    "Llama": _language("LlamaForCausalLM", **_SMALL),
    "Mistral": _language("MistralForCausalLM", **_SMALL, **_TEN_TO_ONE),
    "Mixtral": _language("MixtralForCausalLM", **_SMALL, **_GROUPED, num_local_experts=4),
    "Qwen2": _language("Qwen2ForCausalLM", **_SMALL, **_GROUPED),
    "Gemma": _language("GemmaForCausalLM", **_SMALL, **_TEN_TO_ONE),
    "Mamba": _language("MambaForCausalLM", hidden_size=32, num_hidden_layers=3, vocab_size=97, state_size=8),
    "BERT, masked": _language("BertForMaskedLM", **_SMALL),
    "BERT, tokens": _language("BertForTokenClassification", **_SMALL, num_labels=97),
    "BERT, sequences": _classes("BertForSequenceClassification", **_SMALL),
    "DistilBERT": _classes(
        "DistilBertForSequenceClassification", dim=32, n_layers=3, n_heads=4, hidden_dim=64, vocab_size=97
    ),
    "RoBERTa": _classes("RobertaForSequenceClassification", **_SMALL),
    "T5": _language(
        "T5ForConditionalGeneration",
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        vocab_size=97,
        decoder_start_token_id=0,
    ),
    "BART": _language("BartForConditionalGeneration", **_PAIR, max_position_embeddings=64),
    "ViT": _images("ViTForImageClassification", **_VISION),
    "DeiT": _images("DeiTForImageClassification", **_VISION),
    "Swin": _images(
        "SwinForImageClassification",
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
    ),
    "ResNet": _images(
        "ResNetForImageClassification",
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[2, 2, 2],
        layer_type="basic",
    ),
    "ConvNeXt": _images("ConvNextForImageClassification", 64, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1]),
    "MobileNetV2": _images("MobileNetV2ForImageClassification", 64, depth_multiplier=0.25, image_size=64),
    "CLIP": _clip,
    "Wav2Vec2, CTC": _speech,
    "Whisper": _whisper,
}


def trained(make: Callable[[], Made], optimizer: str) -> tuple[list[float], list[str]]:
    """The losses, and what is said that is worse than a note."""
    torch.manual_seed(0)
    model, batch = make()
    model.train()
    if optimizer == "SGD":
        chosen: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    else:
        chosen = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    with GradScope(model, chosen, every=1) as scope:
        for _ in range(STEPS):
            chosen.zero_grad()
            loss = model(**batch).loss
            scope.note(loss=loss)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            chosen.step()
            losses.append(loss.item())
        found = scope.diagnose()
    said = [
        f"{one.rule} at {one.frontier.name if one.frontier else 'no place'}" for one in found if one.severity != "note"
    ]
    return losses, said


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--optimizer", choices=("AdamW", "SGD"), default="AdamW")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    hf.logging.set_verbosity_error()
    torch.set_num_threads(1)
    alarms, names = 0, given.names or list(MODELS)
    print("| model | loss | said |\n| --- | --- | --- |")
    for name in names:
        losses, said = trained(MODELS[name], given.optimizer)
        alarms += bool(said)
        print(f"| {name} | {losses[0]:.3g} → {losses[-1]:.3g} | {'; '.join(said) or '–'} |")
    print(f"\n{alarms} of {len(names)} with an alarm; {given.optimizer}, {STEPS} steps")


if __name__ == "__main__":
    main()
