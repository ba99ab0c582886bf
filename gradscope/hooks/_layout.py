"""Which axis of a module's output counts the samples, and which the units.

A rule of thumb, made of what the module is and of what made its input: convolutions, and norms and pooling for them,
have their channels in axis 1; what works on features (linear layers, layer norm, embeddings) has them in the last.
Whatever else keeps the layout of its input, where that very tensor came from a module with as many axes. Else the
units are axis 1 of four or more, and the last of fewer. The samples are axis 0, but where a recurrent or attention
module says `batch_first=False`, and in what works on its output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from gradscope.init._operations import LINEAR_NAMES

_CONVOLUTION = nn.modules.conv._ConvNd
_ON_FEATURES = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag)
_SPATIAL = re.compile(r"([123])[dD]$")
_CHANNELS_FIRST = (nn.GroupNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class Layout:
    """Axes of a tensor of so many dimensions: of the samples, and of the units; None where it has none."""

    dims: int
    batch: int | None
    units: int | None


def layout_of(module: nn.Module | None, output: Tensor, index: int, fed: Layout | None) -> Layout:
    """The layout of one tensor of a module's output.

    Args:
        module: made it; None where a function did, or it is an input of the model.
        output: the tensor.
        index: its place among the floating tensors of the output.
        fed: the layout of the module's first input, where that is known.
    """
    dims, last = output.dim(), output.dim() - 1
    batch = fed.batch if fed is not None and fed.dims == dims else 0
    if dims < 2:  # one number, as a time step that the model is given, has no axis at all
        return Layout(dims, 0 if dims else None, None)
    if isinstance(module, nn.RNNBase):
        if dims != 3:
            return Layout(dims, None, last)
        return Layout(3, 0 if module.batch_first and index == 0 else 1, 2)  # the states are never batch first
    if isinstance(module, nn.MultiheadAttention):
        return Layout(dims, 0 if module.batch_first or dims != 3 or index else 1, last)
    if isinstance(module, _ON_FEATURES) or type(module).__name__ in LINEAR_NAMES:
        return Layout(dims, batch, last)
    if isinstance(module, _CHANNELS_FIRST) or (isinstance(module, nn.PReLU) and module.num_parameters > 1):
        return Layout(dims, 0, 1)
    if spatial := _SPATIAL.search(type(module).__name__):
        axes = int(spatial[1])
        if dims == axes + 2 or (dims == 2 and not isinstance(module, _CONVOLUTION)):
            return Layout(dims, 0, 1)
        if dims == axes + 1:
            return Layout(dims, None, 0)  # one sample without a batch axis
    if fed is not None and fed.dims == dims:
        return fed
    return Layout(dims, 0, 1 if dims >= 4 else last)
