"""One forward and backward pass through several plain networks at once, seen at every layer.

The networks of a cell (its seeds) differ in weights and inputs but not in shape, so each layer is one batched
product, in the order of operands that `nn.Linear` uses: the numbers are those of the networks run one by one.
Only activations carry gradients, never weights; each gradient is reduced in a tensor hook and let go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

MEASURED = ("pre", "act", "pre_grad", "act_grad")
"""What `measure` returns, in its order; named as in `SweepCell`."""


def measure(weights: Tensor, inputs: Tensor, output_gradient: Tensor, activation: nn.Module) -> NDArray[np.float64]:
    """Root mean squares of pre-activations, activations and their gradients, `(4, seeds, depth)`.

    Args:
        weights: `(depth, seeds, out, in)`, or `(depth, seeds, out, in, 3, 3)` for convolutions.
        inputs: `(seeds, batch, in)`, or `(seeds, batch, in, height, width)`.
        output_gradient: shaped as the output; the gradient put in at the last layer.
        activation: the module between the layers.

    Returns:
        The rows of `MEASURED`; NaN where a network has no such value (the last layer has no activation).
    """
    depth, seeds = weights.shape[:2]
    layer = _convolve if inputs.ndim == 5 else _multiply
    nothing = torch.full((seeds,), math.nan, dtype=torch.float64, device=inputs.device)
    found = [[nothing] * depth for _ in MEASURED]

    def observe(tensor: Tensor, index: int, forward: list[Tensor], backward: list[Tensor]) -> None:
        forward[index] = rms(tensor)
        tensor.register_hook(partial(_note, backward, index))

    pre, act, pre_grad, act_grad = found
    first = h = layer(inputs, weights[0]).requires_grad_()
    observe(h, 0, pre, pre_grad)
    for index in range(1, depth):
        a = activation(h)
        observe(a, index - 1, act, act_grad)
        h = layer(a, weights[index])
        observe(h, index, pre, pre_grad)
    # A scalar loss: given grad_outputs, torch would import sympy (0.6 s) to compare their shapes.
    torch.autograd.grad((h * output_gradient).sum(), first)
    # Nothing has left the device until here: one transfer for the whole cell.
    return torch.stack([torch.stack(rows, dim=1) for rows in found]).cpu().numpy()


def rms(x: Tensor) -> Tensor:
    """Root mean square of each x[i], `(len(x),)`, in float64, where no square of a float32 is lost."""
    flat = x.detach().flatten(1).double()  # converting first is faster than a norm that converts as it goes
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norm / math.sqrt(flat.shape[1])


def _note(rows: list[Tensor], index: int, gradient: Tensor) -> None:
    rows[index] = rms(gradient)


def _multiply(a: Tensor, weight: Tensor) -> Tensor:
    return torch.bmm(a, weight.transpose(1, 2))


def _convolve(a: Tensor, weight: Tensor) -> Tensor:
    # The seeds lie side by side as groups of channels; with one seed nothing is copied.
    seeds, batch, channels, *image = a.shape
    side_by_side = a.transpose(0, 1).reshape(batch, seeds * channels, *image)
    h = F.conv2d(F.pad(side_by_side, (1, 1, 1, 1), mode="circular"), weight.flatten(0, 1), groups=seeds)
    return h.reshape(batch, seeds, channels, *image).transpose(0, 1)


@contextmanager
def measuring(device: torch.device) -> Iterator[None]:
    """Full float32 and working autograd, whatever the caller has set; everything is put back afterwards."""
    backends: Any = torch.backends
    products = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        for product in products:
            stack.callback(setattr, product, "fp32_precision", product.fp32_precision)
            product.fp32_precision = "ieee"
        yield
