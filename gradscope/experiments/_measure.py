"""One forward and backward pass through many plain networks at once, seen at every layer.

The networks of one init, its seeds with several activations each, differ in nothing that a matrix product sees but
its rows: each layer is one batched product for all, with the rows of all activations below each other. A row's
number is that of the network run alone, but for the order in which float32 sums are rounded. The backward pass is
written out: the same layers with transposed weights, and between them each activation's slope.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gradscope.experiments._adjustment import Adjustment
from gradscope.experiments._memory import Memory
from gradscope.experiments._slopes import slope

MEASURED = ("pre", "act", "pre_grad", "act_grad")
"""What `measure` returns, in its order; named as in `SweepCell`."""


def measure(
    weights: Tensor,
    inputs: Tensor,
    output_gradient: Tensor,
    activations: Sequence[nn.Module],
    memory: Memory,
    adjust: Adjustment | None = None,
) -> NDArray[np.float64]:
    """Root mean squares of pre-activations, activations and their gradients, `(activations, 4, seeds, depth)`.

    Args:
        weights: `(depth, seeds, out, in)`, or `(depth, seeds, out, in, 3, 3)` for convolutions.
        inputs: `(seeds, batch, in)`, or `(seeds, batch, in, height, width)`.
        output_gradient: shaped as the output; the gradient put in at the last layer.
        activations: the modules between the layers, one for each group of networks; none works in place.
        memory: on the tensors' device.
        adjust: factors and biases of the layers.

    Returns:
        The rows of `MEASURED`; NaN where a network has no such value (the last layer has no activation).
    """
    depth, seeds = weights.shape[:2]
    shape = (seeds, len(activations), *inputs.shape[1:])
    x, y = (memory.tensor(name, shape) for name in ("signal", "next signal"))
    kept = memory.tensor("kept", (depth - 1, len(activations), *inputs.shape))
    wide = memory.tensor("wide", shape, torch.float64)
    found = torch.full((4, depth, *shape[:2]), math.nan, dtype=torch.float64, device=inputs.device)
    pre, act, pre_grad, act_grad = found
    layer, turned = (_multiply, ()) if weights.ndim == 4 else (_convolve, (3, 4))
    slopes = [slope(module) for module in activations]

    x.copy_(inputs.unsqueeze(1))
    for index in range(depth):
        layer(x, weights[index], y)
        x, y = y, x
        if adjust is not None:
            adjust.forward(index, x)
        rms(x, wide, pre[index])
        if index < depth - 1:
            for here, module in enumerate(activations):
                _activate(x[:, here], module, slopes[here].keeps, kept[index, here])
            rms(x, wide, act[index])
    x.copy_(output_gradient.unsqueeze(1))
    rms(x, wide, pre_grad[-1])
    for index in reversed(range(depth - 1)):
        transposed = weights[index + 1].transpose(1, 2)
        layer(x, transposed.flip(turned) if turned else transposed, y)
        x, y = y, x
        if adjust is not None:
            adjust.backward(index + 1, x)
        rms(x, wide, act_grad[index])
        for here in range(len(activations)):
            slopes[here].multiply(x[:, here], kept[index, here])
        rms(x, wide, pre_grad[index])
    # Nothing has left the device until here: one transfer for all.
    return found.permute(3, 0, 2, 1).cpu().numpy()


def rms(x: Tensor, wide: Tensor, out: Tensor) -> None:
    """Writes the root mean square of each x[i, j] to out[i, j], in float64, where no square of a float32 is lost.

    `wide` is float64, shaped as x, and overwritten: to convert first is faster than a norm that converts as it goes.
    """
    flat = wide.copy_(x).flatten(2)
    torch.linalg.vector_norm(flat, dim=2, out=out).div_(math.sqrt(flat.shape[2]))


def _activate(x: Tensor, module: nn.Module, keeps: str, kept: Tensor) -> None:
    """Applies an activation in place and keeps what its slope will need."""
    if keeps == "input":
        x.copy_(module(kept.copy_(x)))
    elif keeps == "output":
        x.copy_(kept.copy_(module(x)))


def _multiply(x: Tensor, weight: Tensor, out: Tensor) -> None:
    torch.bmm(x.flatten(1, 2), weight.transpose(1, 2), out=out.flatten(1, 2))


def _convolve(x: Tensor, weight: Tensor, out: Tensor) -> None:
    # The seeds lie side by side as groups of channels.
    seeds, pairs, batch, channels, *image = x.shape
    side_by_side = x.permute(1, 2, 0, 3, 4, 5).reshape(pairs * batch, seeds * channels, *image)
    h = F.conv2d(F.pad(side_by_side, (1, 1, 1, 1), mode="circular"), weight.flatten(0, 1), groups=seeds)
    out.copy_(h.view(pairs, batch, seeds, channels, *image).permute(2, 0, 1, 3, 4, 5))


@contextmanager
def measuring(device: torch.device) -> Iterator[None]:
    """Full float32 and no graph, whatever the caller has set; everything is put back afterwards."""
    backends: Any = torch.backends
    if device.type == "cuda":
        products = (backends.cuda.matmul, backends.cudnn.conv)
    else:
        products = (backends.mkldnn.matmul, backends.mkldnn.conv)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        for product in products:
            stack.callback(_put_back, product, product.fp32_precision)
            product.fp32_precision = "ieee"
        yield


def _put_back(product: Any, precision: str) -> None:
    """A precision that was never set for this product alone goes on following that of its backend."""
    product.fp32_precision = "none"
    if product.fp32_precision != precision:
        product.fp32_precision = precision
