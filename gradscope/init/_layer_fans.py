"""The true fans of each kind of layer: from what it does with its weight, not from the shape alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from gradscope.init._fans import Block, Blocks, Fans, tensor_fans
from gradscope.init._packed_fans import attention_blocks, cell_blocks, recurrent_blocks


def fans(module_or_tensor: nn.Module | Tensor) -> Fans | dict[str, dict[str, Fans]]:
    """The true fans of a layer; of a bare tensor the fans that torch would give it.

    Linear, Bilinear, Conv1d–3d, ConvTranspose1d–3d, Embedding and EmbeddingBag give one `Fans`. Modules that
    pack several matrices give a dict parameter → block → `Fans`: RNN, LSTM, GRU and their cells (blocks
    `hidden`; `input`, `forget`, `cell`, `output`; `reset`, `update`, `new`; `projection`), and
    MultiheadAttention (`q`, `k`, `v`, packed in one weight or not, and `out`).

    They differ from `torch.nn.init` (kaiming_*, xavier_*), which sees a shape and not the layer:

    - groups: an input channel feeds only the outputs of its own group. torch's fan_out of a depthwise
      `Conv2d(32, 32, 3, groups=32)` is 288; it is 9 (pytorch#23854).
    - stride: with stride s an input meets only every s-th tap of each dimension: fan_out is divided by the
      strides of a convolution, fan_in by those of a transposed one (the mean over its phases).
    - transposed convolutions keep their weight as (in, out/groups, *k), so torch swaps the two fans:
      `ConvTranspose2d(16, 32, 4, stride=2)` has (64, 512), torch says (512, 256) (pytorch#7865).
    - packed weights: `weight_hh_l0` of an LSTM is four matrices (h, h) on top of each other. fan_out is h for
      each gate, torch takes 4h; likewise E for each of q, k, v of an attention, torch takes 3E.
    - Embedding: a row is looked up, which is a product with a one-hot vector: fan_in 1, fan_out the row's
      length (torch takes them for a dense matrix). A bag that sums B rows has B times the fan_in, one that
      averages them 1/B; the module does not know B.
    - Bilinear: fan_out is that of the first input, out·in2, as torch says (of the second: out·in1).

    An RNN's pre-activation is the *sum* of two products; each fan here is of its own product alone. Dilation
    changes no fan. Zero padding is not counted: near a border fewer terms are summed.

    Raises:
        TypeError: a module whose use of its weight is not known; pass the weight itself.
        ValueError: a tensor of fewer than two dimensions, or a lazy module that has no shape yet.

    >>> fans(nn.ConvTranspose2d(16, 32, 4, stride=2))
    Fans(fan_in=64, fan_out=512)
    >>> fans(nn.GRU(8, 16))["weight_ih_l0"]["reset"]
    Fans(fan_in=8, fan_out=16)
    >>> fans(nn.ConvTranspose2d(16, 32, 4, stride=2).weight)  # a bare tensor: torch's rule
    Fans(fan_in=512, fan_out=256)
    """
    if isinstance(module_or_tensor, Tensor):
        return tensor_fans(module_or_tensor)
    kind = type(module_or_tensor).__name__
    blocks = weight_blocks(module_or_tensor)
    if blocks is None:
        raise TypeError(
            f"fans({kind}) is not known: give a Linear, Bilinear, convolution, Embedding, recurrent or "
            f"attention module, or the weight itself (a bare tensor has the fans that torch gives it)"
        )
    if tuple(blocks) == ("weight",):
        return blocks["weight"][0].fans
    return {parameter: {block.name: block.fans for block in parts} for parameter, parts in blocks.items()}


def is_layer(module: nn.Module) -> bool:
    """Whether the fans of the module are known, once it has a shape."""
    return any(isinstance(module, kinds) for kinds, _ in _RULES)


def weight_blocks(module: nn.Module) -> Blocks | None:
    """The weights of a layer and the blocks of each; None where it is no known layer."""
    for kinds, rule in _RULES:
        if isinstance(module, kinds):
            lazy = [name for name, weight in module.named_parameters(recurse=False) if is_lazy(weight)]
            if lazy:
                raise ValueError(
                    f"{type(module).__name__} is lazy: its {lazy[0]} has no shape yet; run one forward first"
                )
            return rule(module)
    return None


def _whole(fan_in: float, fan_out: float) -> Blocks:
    return {"weight": (Block("", None, Fans(fan_in, fan_out)),)}


def _ratio(numerator: int, denominator: int) -> float:
    whole, rest = divmod(numerator, denominator)
    return numerator / denominator if rest else whole


def _shape(module: nn.Module, *declared: int) -> tuple[int, ...]:
    # The weight itself where there is one: whoever replaces conv1.weight seldom corrects in_channels too.
    # A parametrized weight is not computed for its shape alone.
    weight = module._parameters.get("weight")
    return declared if weight is None else tuple(weight.shape)


def _linear(module: Any) -> Blocks:
    out, into = _shape(module, module.out_features, module.in_features)
    return _whole(into, out)


def _bilinear(module: Any) -> Blocks:
    out, first, second = _shape(module, module.out_features, module.in1_features, module.in2_features)
    return _whole(first * second, out * second)


def _conv(module: Any) -> Blocks:
    groups, stride = module.groups, math.prod(module.stride)
    ends = (module.out_channels, module.in_channels // groups)
    if isinstance(module, _ConvTransposeNd):
        ends = (module.in_channels, module.out_channels // groups)
    first, second, *kernel = _shape(module, *ends, *module.kernel_size)
    # Both keep (all channels on one side, those of one group on the other, *kernel).
    of_group, other, taps = first // groups, second, math.prod(kernel)
    if isinstance(module, _ConvTransposeNd):
        return _whole(_ratio(of_group * taps, stride), other * taps)
    return _whole(other * taps, _ratio(of_group * taps, stride))


def _embedding(module: Any) -> Blocks:
    return _whole(1, _shape(module, module.num_embeddings, module.embedding_dim)[1])


_RULES: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Callable[[Any], Blocks]], ...] = (
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (_ConvNd, _conv),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (nn.RNNBase, recurrent_blocks),
    ((nn.RNNCell, nn.LSTMCell, nn.GRUCell), cell_blocks),
    (nn.MultiheadAttention, attention_blocks),
)
