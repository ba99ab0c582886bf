"""Which parameters an initialization leaves as they are, and why."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from gradscope.init._choice import Choice
from gradscope.init._layer_fans import is_layer, weight_blocks
from gradscope.init._slots import Slot

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_NEED_CHANNELS = ("identity", "delta_orthogonal", "hadamard")


def why_left(slot: Slot, choice: Choice | None) -> str:
    """Why a parameter is left as it is; empty where it is not."""
    module, kind = slot.module, type(slot.module).__name__
    layer = is_layer(module)
    if choice is None:
        return "no pattern matches it"
    if not any(original.requires_grad for original in slot.originals):
        return "frozen"
    if 0 in slot.originals[0].shape:
        return "it has no elements"
    if not slot.settable:
        return "parametrized without a right inverse"
    if is_norm(module):
        return "norm"
    if isinstance(module, nn.PReLU):
        return "slope of the activation"
    if isinstance(module, nn.MultiheadAttention) and slot.name in ("bias_k", "bias_v"):
        return "an additional token"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (not choice.by_name or choice.is_torch_default):
        return "embedding"
    if isinstance(module, nn.Bilinear) and _is_weight(slot) and choice.scheme and choice.scheme.name in _NEED_CHANNELS:
        return f"{choice.scheme.name} has no meaning for Bilinear"
    sparse = choice.scheme is not None and choice.scheme.name == "martens_sparse"
    if (
        sparse
        and _is_weight(slot)
        and isinstance(module, (_ConvTransposeNd, nn.Bilinear, nn.Embedding, nn.EmbeddingBag))
    ):
        return f"martens_sparse has no meaning for {kind}: its rows are no units"
    if _is_weight(slot) or is_bias(slot):
        return ""
    base = slot.name.rpartition("_")[0]
    if layer and base in (weight_blocks(module) or ()):
        return f"{base} is computed from it by a hook (use torch.nn.utils.parametrizations)"
    return "" if choice.by_name and slot.originals[0].dim() > 1 else f"its use in {kind} is not known"


def is_norm(module: nn.Module) -> bool:
    """Whether it is a norm, torch's or by its name another library's."""
    return isinstance(module, _NORMS) or ("norm" in type(module).__name__.lower() and not is_layer(module))


def _is_weight(slot: Slot) -> bool:
    return slot.name in (weight_blocks(slot.module) or ())


def is_bias(slot: Slot) -> bool:
    """Whether the parameter is a bias of a known layer."""
    return is_layer(slot.module) and "bias" in slot.name.split("_")
