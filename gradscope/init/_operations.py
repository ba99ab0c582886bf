"""What a module or a torch function does to the signal: bend it, pass it on, or neither."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gradscope import activations
from gradscope.activations import Activation

LINEAR_LIKE = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
LINEAR_NAMES = frozenset({"Conv1D"})  # transformers' transposed Linear

# Looked through: what moves, sums, rescales or thins out the values but does not bend them.
# A product counts, for its other factor may be a mask, a scale or a gate; what bends has a name of its own.
_SUMS_AND_PRODUCTS = {
    *("add", "radd", "iadd", "sub", "rsub", "isub", "subtract", "neg", "negative", "lerp", "mean", "sum"),
    *("mul", "rmul", "imul", "multiply", "div", "rdiv", "idiv", "divide", "true_divide", "truediv"),
    *("rtruediv", "itruediv", "addcmul", "addcdiv", "where", "masked_fill", "nan_to_num", "amax", "max"),
}
_SHAPES = {
    *("get", "getitem", "view", "view_as", "reshape", "reshape_as", "flatten", "ravel", "unflatten", "real"),
    *("squeeze", "unsqueeze", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "permute", "t"),
    *("expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile", "roll", "flip", "rot90"),
    *("narrow", "select", "index_select", "gather", "take_along_dim", "masked_select", "unfold", "fold"),
    *("chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "unbind", "as_strided"),
    *("unsafe_chunk", "unsafe_split", "cat", "concat", "concatenate", "hstack", "vstack", "stack", "pad"),
    *("interpolate", "upsample", "grid_sample", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
}
_COPIES = {
    *("clone", "contiguous", "detach", "requires_grad", "alias", "as_subclass", "to", "type", "type_as"),
    *("float", "double", "half", "bfloat16", "cpu", "cuda", "copy", "setitem", "index_copy", "scatter"),
}
_NORMS = {
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm"),
    "normalize",
}
_LOOKED_THROUGH = frozenset(_SUMS_AND_PRODUCTS | _SHAPES | _COPIES | _NORMS)
_POOL_OR_DROPOUT = re.compile(r"pool\dd|dropout")

# Positional arguments by torch's names: `F.leaky_relu(x, 0.2)`.
_POSITIONAL: Mapping[str, tuple[str, ...]] = {
    "leaky_relu": ("negative_slope",),
    "elu": ("alpha",),
    "celu": ("alpha",),
    "softplus": ("beta",),
    "hardtanh": ("min_val", "max_val"),
    "prelu": ("weight",),
}
_CLAMPS: Mapping[object, str] = {(0.0, None): "relu", (0.0, 6.0): "relu6", (-1.0, 1.0): "hardtanh"}
# What libraries add to the name of an activation: NewGELUActivation, MemoryEfficientSwish, PytorchGELUTanh.
_ADDED_WORDS = re.compile(r"(?i)activation|pytorch|memory_?efficient|accurate|fast|quick|new")


def plain_name(function: Callable[..., Any]) -> str:
    """`add` for `torch.add`, `Tensor.add_` and `Tensor.__add__`."""
    return getattr(function, "__name__", "").strip("_").removeprefix("special_")


def is_looked_through(name: str) -> bool:
    """Whether a torch function of this plain name passes its input's origin on to its output."""
    return name in _LOOKED_THROUGH or _POOL_OR_DROPOUT.search(name) is not None


def activation_of_call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Activation | None:
    """The activation that a call of a torch function is, by its plain name, or None.

    A clamp counts where it is one: `x.clamp(min=0)` is a ReLU.
    """
    if name in ("clamp", "clip", "clamp_min"):
        return _activation_of_clamp(*args[1:], **kwargs)
    named = dict(zip(_POSITIONAL.get(name, ()), args[1:], strict=False)) | dict(kwargs)
    return _as_relu6(activations.of_functional(name, **_plain_values(named)))


def _activation_of_clamp(min: object = None, max: object = None, **others: object) -> Activation | None:
    plain = isinstance(min, int | float) and isinstance(max, int | float | None)
    known = _CLAMPS.get((min, max)) if plain else None
    return activations.get(known) if known else None


def is_linear_like(module: nn.Module) -> bool:
    """Whether what a module returns is a pre-activation."""
    return isinstance(module, LINEAR_LIKE) or type(module).__name__ in LINEAR_NAMES


def activation_of_module(module: nn.Module) -> Activation | None:
    """The activation that a module is, or None.

    Other libraries' own ones are known by the name of their class (`Swish`, `NewGELUActivation`) where they
    hold neither parameters nor further modules. The identity is not one: it is looked through.
    """
    kind = type(module).__name__
    attributes = dict(vars(module)) | dict(module._parameters)
    found = activations.of_module(kind, **_plain_values(attributes))
    if found is None and not module._parameters and not module._modules:
        try:
            found = activations.get(_ADDED_WORDS.sub("", kind))
        except ValueError:
            return None
    return None if found is None or found.name == "identity" else _as_relu6(found)


def _as_relu6(found: Activation | None) -> Activation | None:
    """`hardtanh(0, 6)` by its own name, for it is a ReLU and not a tanh."""
    return activations.get("relu6") if found is not None and found.name == "hardtanh(0, 6)" else found


def _plain_values(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, strings and small tensors (PReLU's slopes) as the torch-free table takes them."""
    plain: dict[str, Any] = {}
    for name, value in arguments.items():
        if type(value) in (Tensor, nn.Parameter) and not value.is_meta and name == "weight" and value.dim() < 2:
            plain[name] = value.detach().double().cpu().numpy().round(6)  # 0.1, not 0.10000000149
        elif isinstance(value, int | float | str):
            plain[name] = value
    return plain
