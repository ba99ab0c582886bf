"""Tiny models of `transformers` with random weights, made from their configuration: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY, BATCH, LENGTH = 64, 2, 8

Inputs = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Architecture:
    name: str
    """Of the model's class, and what is special about the configuration."""
    config: str
    options: dict[str, Any]
    inputs: Inputs

    def __str__(self) -> str:
        return self.name

    def model(self) -> nn.Module:
        config = getattr(transformers, self.config)(**self.options)
        return getattr(transformers, self.name.partition("-")[0])(config)


def _tokens(length: int = LENGTH) -> Tensor:
    return torch.randint(3, VOCABULARY, (BATCH, length))


def masked() -> dict[str, Tensor]:
    """Tokens, the last two of one sequence padding."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[0, -2:] = 0
    return {"input_ids": _tokens(), "attention_mask": mask}


def tokens() -> dict[str, Tensor]:
    return {"input_ids": _tokens()}


def labelled() -> dict[str, Tensor]:
    ids = _tokens()
    return {"input_ids": ids, "labels": ids.clone()}


def translated() -> dict[str, Tensor]:
    return {"input_ids": _tokens(), "labels": _tokens(6)}


def pixels(size: int = 32, channels: int = 3) -> Inputs:
    return lambda: {"pixel_values": torch.randn(BATCH, channels, size, size)}


def pixels_and_tokens(size: int = 32) -> Inputs:
    return lambda: {"pixel_values": torch.randn(BATCH, 3, size, size), "input_ids": _tokens()}


def wave(samples: int = 400) -> Inputs:
    return lambda: {"input_values": torch.randn(BATCH, samples)}


def spectrogram(name: str, *shape: int) -> Inputs:
    return lambda: {name: torch.randn(BATCH, *shape)}


def series() -> dict[str, Tensor]:
    return {"past_values": torch.randn(BATCH, 16, 2), "future_values": torch.randn(BATCH, 4, 2)}


_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
_LLAMA = _BERT | {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 1}
_GPT2 |= {"eos_token_id": 2}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
_T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
_T5 |= {"decoder_start_token_id": 0}
_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_VIT |= {"image_size": 32, "patch_size": 8}
_SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
_WAVE = {k: v for k, v in _BERT.items() if k != "max_position_embeddings"} | {
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.2,
    "mask_time_length": 2,
}


def _of(name: str, options: dict[str, Any], inputs: Inputs, config: str | None = None, **more: Any) -> Architecture:
    suffixes = [
        "ForCausalLM",
        "ForMaskedLM",
        "ForConditionalGeneration",
        "ForImageClassification",
        "ForPrediction",
        "ForCTC",
        "LMHeadModel",
        "DoubleHeadsModel",
        "ModelWithLMHead",
        "ForAudioClassification",
        "Model",
    ]
    if config is None:
        stem = name.partition("-")[0]
        config = next(stem.removesuffix(s) for s in suffixes if stem.endswith(s)) + "Config"
    return Architecture(name, config, options | more, inputs)


_ENCODERS = (
    _of("BertForMaskedLM", _BERT, labelled),
    _of("BertModel-eager", _BERT, masked, attn_implementation="eager"),
    _of("RobertaForMaskedLM", _BERT, masked),
    _of("AlbertForMaskedLM", _BERT, masked, embedding_size=8, num_hidden_layers=3, inner_group_num=2),
    _of("DistilBertForMaskedLM", {}, masked, vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
    _of("ElectraForMaskedLM", _BERT, masked, embedding_size=8),
    _of("DebertaForMaskedLM", _BERT, masked, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _of(
        "DebertaV2ForMaskedLM",
        _BERT,
        masked,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=4,
        conv_kernel_size=3,
        norm_rel_ebd="layer_norm",
    ),
    _of("FNetForMaskedLM", {k: v for k, v in _BERT.items() if "heads" not in k}, labelled),
    _of("XLNetLMHeadModel", {}, labelled, vocab_size=VOCABULARY, d_model=16, n_layer=2, n_head=2, d_inner=24),
    _of("LongformerForMaskedLM", _BERT, masked, attention_window=4),
    _of("BigBirdForMaskedLM-full", _BERT, masked, attention_type="original_full"),
    _of("MobileBertForMaskedLM", _BERT, masked, embedding_size=8, intra_bottleneck_size=8, true_hidden_size=8),
    _of("MPNetForMaskedLM", _BERT, masked),
    _of("SqueezeBertForMaskedLM", _BERT, masked, embedding_size=16),
    _of(
        "FunnelForMaskedLM",
        {},
        masked,
        vocab_size=VOCABULARY,
        block_sizes=[1, 1],
        num_decoder_layers=1,
        d_model=16,
        n_head=2,
        d_head=8,
        d_inner=24,
    ),
    _of("ConvBertForMaskedLM", _BERT, masked, embedding_size=16, conv_kernel_size=3),
    _of("RoFormerForMaskedLM", _BERT, masked),
    _of("NystromformerForMaskedLM", _BERT, tokens, num_landmarks=4, segment_means_seq_len=8),
    _of("ModernBertForMaskedLM", _BERT, masked, pad_token_id=0, global_attn_every_n_layers=2, local_attention=4),
    _of(
        "CanineModel",
        _BERT,
        lambda: {"input_ids": _tokens(16)},
        downsampling_rate=2,
        local_transformer_stride=4,
        num_hash_buckets=16,
        num_hash_functions=2,
    ),
    _of(
        "PerceiverModel",
        {},
        lambda: {"inputs": torch.randn(BATCH, LENGTH, 12)},
        num_latents=4,
        d_latents=16,
        d_model=12,
        num_blocks=2,
        num_self_attends_per_block=1,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
    ),
)

_DECODERS = (
    _of("GPT2LMHeadModel", _GPT2, labelled),
    _of("GPT2DoubleHeadsModel", _GPT2, tokens),
    _of(
        "GPTNeoForCausalLM",
        {},
        labelled,
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=32,
    ),
    _of("GPTJForCausalLM", _GPT2, labelled, rotary_dim=4),
    _of("GPTNeoXForCausalLM", _BERT, labelled, rotary_pct=0.5),
    _of("LlamaForCausalLM", _LLAMA, labelled),
    _of("LlamaForCausalLM-tied-eager", _LLAMA, labelled, tie_word_embeddings=True, attn_implementation="eager"),
    _of("MistralForCausalLM", _LLAMA, masked, sliding_window=4),
    _of("Qwen2ForCausalLM", _LLAMA, labelled),
    _of("Qwen3ForCausalLM", _LLAMA, labelled),
    _of("GemmaForCausalLM", _LLAMA, labelled),
    _of("Gemma2ForCausalLM", _LLAMA, labelled, sliding_window=4, query_pre_attn_scalar=8),
    _of("PhiForCausalLM", _BERT, labelled, partial_rotary_factor=0.5),
    _of("Phi3ForCausalLM", _LLAMA, labelled),
    _of("OPTForCausalLM", _BERT, labelled, ffn_dim=24, word_embed_proj_dim=8),
    _of("BloomForCausalLM", {}, labelled, vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2),
    _of("FalconForCausalLM", _BERT, labelled, new_decoder_architecture=False, parallel_attn=True),
    _of("FalconForCausalLM-alibi", _BERT, labelled, alibi=True, parallel_attn=False),
    _of("MptForCausalLM", {}, labelled, vocab_size=VOCABULARY, d_model=16, n_layers=2, n_heads=2, max_seq_len=32),
    _of("StableLmForCausalLM", _LLAMA, labelled, use_parallel_residual=True),
    _of("CohereForCausalLM", _LLAMA, labelled),
    _of("Olmo2ForCausalLM", _LLAMA, labelled),
    _of("CodeGenForCausalLM", _GPT2, labelled, n_head=4, rotary_dim=4),
    _of("CTRLLMHeadModel", _GPT2, labelled, dff=24),
    _of("OpenAIGPTLMHeadModel", _GPT2, labelled),
)

_MIXTURES = (
    _of("MixtralForCausalLM", _LLAMA, labelled, num_local_experts=4, output_router_logits=True),
    _of("Qwen2MoeForCausalLM", _LLAMA, labelled, **_EXPERTS, shared_expert_intermediate_size=12),
    _of("OlmoeForCausalLM", _LLAMA, labelled, num_experts=4, num_experts_per_tok=2),
    _of(
        "SwitchTransformersForConditionalGeneration",
        _T5,
        translated,
        num_experts=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
    ),
    _of("GptOssForCausalLM", _LLAMA, labelled, num_local_experts=4, num_experts_per_tok=2, sliding_window=4),
    _of(
        "DeepseekV3ForCausalLM",
        _LLAMA,
        labelled,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        n_group=2,
        topk_group=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        first_k_dense_replace=1,
        head_dim=4,
    ),
    _of("JetMoeForCausalLM", _LLAMA, labelled, num_local_experts=4, num_experts_per_tok=2, kv_channels=8),
)

_STATES = (
    _of("MambaForCausalLM", {}, labelled, vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4),
    _of(
        "Mamba2ForCausalLM",
        {},
        labelled,
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        state_size=4,
        num_heads=4,
        head_dim=8,
        expand=2,
        n_groups=1,
        chunk_size=4,
    ),
    _of(
        "FalconMambaForCausalLM", {}, labelled, vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4
    ),
    _of(
        "RwkvForCausalLM",
        {},
        labelled,
        vocab_size=VOCABULARY,
        hidden_size=16,
        attention_hidden_size=16,
        num_hidden_layers=2,
        intermediate_size=24,
        context_length=32,
    ),
    _of("RecurrentGemmaForCausalLM", _LLAMA, labelled, num_hidden_layers=3, lru_width=16, attention_window_size=4),
    _of(
        "JambaForCausalLM",
        _LLAMA,
        labelled,
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=4,
        expert_layer_period=2,
        expert_layer_offset=1,
        use_mamba_kernels=False,
    ),
)

_TRANSLATORS = (
    _of("T5ForConditionalGeneration", _T5, translated),
    _of("T5ForConditionalGeneration-gated", _T5, translated, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    _of("BartForConditionalGeneration", _BART, translated),
    _of("PegasusForConditionalGeneration", _BART, translated),
    _of("MarianMTModel", _BART, translated, "MarianConfig"),
    _of("MBartForConditionalGeneration", _BART, translated),
    _of("M2M100ForConditionalGeneration", _BART, translated, encoder_layerdrop=0.0, decoder_layerdrop=0.0),
    _of(
        "LongT5ForConditionalGeneration",
        _T5,
        translated,
        encoder_attention_type="transient-global",
        local_radius=3,
        global_block_size=4,
    ),
    _of(
        "LEDForConditionalGeneration",
        _BART,
        translated,
        attention_window=4,
        max_encoder_position_embeddings=32,
        max_decoder_position_embeddings=32,
    ),
    _of(
        "ProphetNetForConditionalGeneration",
        {},
        translated,
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_encoder_attention_heads=2,
        num_decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
        ngram=2,
    ),
)

_VISION = (
    _of("ViTForImageClassification", _VIT, pixels()),
    _of(
        "ViTMAEForPreTraining",
        _VIT,
        pixels(),
        "ViTMAEConfig",
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=24,
    ),
    _of("DeiTForImageClassification", _VIT, pixels()),
    _of("BeitForImageClassification", _VIT, pixels(), use_relative_position_bias=True, drop_path_rate=0.1),
    _of("Dinov2ForImageClassification", _VIT, pixels()),
    _of("SwinForImageClassification", _SWIN, pixels(), drop_path_rate=0.1),
    _of("Swinv2ForImageClassification", _SWIN, pixels(), drop_path_rate=0.1),
    _of("Swin2SRForImageSuperResolution", _SWIN, pixels(8), "Swin2SRConfig", upscale=2, patch_size=1, image_size=8),
    _of(
        "ConvNextForImageClassification",
        {},
        pixels(),
        hidden_sizes=[8, 16],
        depths=[1, 2],
        num_stages=2,
        drop_path_rate=0.1,
    ),
    _of("ConvNextV2ForImageClassification", {}, pixels(), hidden_sizes=[8, 16], depths=[1, 2], num_stages=2),
    _of(
        "ResNetForImageClassification",
        {},
        pixels(),
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        layer_type="basic",
    ),
    _of("ResNetForImageClassification-bottleneck", {}, pixels(), embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2]),
    _of(
        "RegNetForImageClassification",
        {},
        pixels(),
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        groups_width=8,
    ),
    _of("MobileNetV2ForImageClassification", {}, pixels(), depth_multiplier=0.25, image_size=32),
    _of(
        "SegformerForImageClassification",
        {},
        pixels(),
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
    ),
    _of(
        "PoolFormerForImageClassification",
        {},
        pixels(),
        num_encoder_blocks=2,
        depths=[1, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
        mlp_ratio=2.0,
    ),
    _of(
        "FocalNetForImageClassification",
        {},
        pixels(),
        image_size=32,
        patch_size=4,
        embed_dim=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
        use_layerscale=True,
    ),
    _of(
        "LevitForImageClassification",
        {},
        pixels(64),
        image_size=64,
        hidden_sizes=[16, 24, 32],
        depths=[1, 1, 1],
        num_attention_heads=[2, 2, 2],
        key_dim=[4, 4, 4],
        down_ops=[["Subsample", 4, 4, 4, 2, 2], ["Subsample", 4, 4, 4, 2, 2]],
    ),
    _of(
        "CvtForImageClassification",
        {},
        pixels(),
        embed_dim=[8, 16],
        num_heads=[1, 2],
        depth=[1, 2],
        patch_sizes=[7, 3],
        patch_stride=[4, 2],
        patch_padding=[2, 1],
        mlp_ratio=[2.0, 2.0],
        attention_drop_rate=[0.0, 0.0],
        drop_rate=[0.0, 0.0],
        drop_path_rate=[0.0, 0.1],
        qkv_bias=[True, True],
        cls_token=[False, True],
        qkv_projection_method=["dw_bn", "dw_bn"],
        kernel_qkv=[3, 3],
        padding_kv=[1, 1],
        stride_kv=[2, 2],
        padding_q=[1, 1],
        stride_q=[1, 1],
    ),
    _of("BitForImageClassification", {}, pixels(), embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=4),
)

_AUDIO = (
    _of("Wav2Vec2ForCTC", _WAVE, wave(), feat_extract_norm="group"),
    _of("Wav2Vec2Model-stable", _WAVE, wave(), feat_extract_norm="layer", do_stable_layer_norm=True),
    _of("HubertForCTC", _WAVE, wave()),
    _of("WavLMForCTC", _WAVE, wave(), num_buckets=8, max_bucket_distance=16),
    _of("SEWForCTC", _WAVE, wave(), squeeze_factor=2),
    _of("UniSpeechSatModel", _WAVE, wave()),
    _of("Wav2Vec2ConformerForCTC", _WAVE, wave(), conv_depthwise_kernel_size=3),
    _of(
        "WhisperForConditionalGeneration",
        _BART,
        lambda: {"input_features": torch.randn(BATCH, 8, 16), "labels": _tokens(6)},
        num_mel_bins=8,
        max_source_positions=8,
        max_target_positions=16,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    ),
    _of(
        "Speech2TextForConditionalGeneration",
        _BART,
        lambda: {"input_features": torch.randn(BATCH, 16, 8), "labels": _tokens(6)},
        input_feat_per_channel=8,
        conv_channels=16,
        max_source_positions=32,
        max_target_positions=32,
    ),
    _of(
        "ASTForAudioClassification",
        _VIT,
        spectrogram("input_values", 24, 16),
        num_mel_bins=16,
        max_length=24,
        frequency_stride=8,
        time_stride=8,
    ),
    _of(
        "EncodecModel",
        {},
        spectrogram("input_values", 1, 320),
        num_filters=4,
        hidden_size=8,
        upsampling_ratios=[4, 2],
        num_lstm_layers=1,
        codebook_size=8,
        codebook_dim=8,
        target_bandwidths=[18.0],
    ),
)

_TWO = {"text_config": _BERT | {"eos_token_id": 2}, "vision_config": _VIT, "projection_dim": 8}
_OTHERS = (
    _of("CLIPModel", _TWO, pixels_and_tokens()),
    _of("SiglipModel", {"text_config": _BERT | {"projection_size": 16}, "vision_config": _VIT}, pixels_and_tokens()),
    _of("ViltModel", _VIT | _BERT, pixels_and_tokens(), max_image_length=-1),
    _of(
        "PatchTSTForPrediction",
        {},
        series,
        num_input_channels=2,
        context_length=16,
        prediction_length=4,
        patch_length=4,
        patch_stride=4,
        d_model=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
    ),
    _of(
        "PatchTSMixerForPrediction",
        {},
        series,
        num_input_channels=2,
        context_length=16,
        prediction_length=4,
        patch_length=4,
        patch_stride=4,
        d_model=16,
        num_layers=2,
        mode="mix_channel",
    ),
)

ARCHITECTURES = (*_ENCODERS, *_DECODERS, *_MIXTURES, *_STATES, *_TRANSLATORS, *_VISION, *_AUDIO, *_OTHERS)
