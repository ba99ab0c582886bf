"""How a gradient passes back through the activation between two layers.

For the activations named below, torch's own kernel is called in place, as autograd would: the same numbers,
with no graph. Any other activation is run again under autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from gradscope._activation_functions import SELU_ALPHA, SELU_SCALE

_aten = torch.ops.aten


@dataclass(frozen=True)
class Slope:
    """What the backward pass of an activation needs.

    Attributes:
        keeps: which tensor of the forward pass it needs.
        multiply: `(gradient, kept)` -> the gradient of the activation's output becomes that of its input, in place.
    """

    keeps: Literal["input", "output", "nothing"]
    multiply: Callable[[Tensor, Tensor], object]


def slope(module: nn.Module) -> Slope:
    """The backward pass of an activation's module."""
    match module:
        case nn.Identity():
            return Slope("nothing", lambda g, _: None)
        case nn.ReLU():
            return Slope("output", lambda g, a: _aten.threshold_backward(g, a, 0, grad_input=g))
        case nn.Tanh():
            return Slope("output", lambda g, a: _aten.tanh_backward(g, a, grad_input=g))
        case nn.Sigmoid():
            return Slope("output", lambda g, a: _aten.sigmoid_backward(g, a, grad_input=g))
        case nn.Softmax(dim=dim):
            return Slope("output", lambda g, a: g.copy_(_aten._softmax_backward_data(g, a, dim, a.dtype)))
        case nn.LeakyReLU(negative_slope=below):
            return Slope("input", lambda g, z: _aten.leaky_relu_backward(g, z, below, False, grad_input=g))
        case nn.ELU(alpha=alpha):
            return Slope("input", lambda g, z: _aten.elu_backward(g, alpha, 1.0, 1.0, False, z, grad_input=g))
        case nn.SELU():
            return Slope(
                "input", lambda g, z: _aten.elu_backward(g, SELU_ALPHA, SELU_SCALE, 1.0, False, z, grad_input=g)
            )
        case nn.GELU(approximate=form):
            return Slope("input", lambda g, z: _aten.gelu_backward(g, z, approximate=form, grad_input=g))
        case nn.SiLU():
            return Slope("input", lambda g, z: _aten.silu_backward(g, z, grad_input=g))
        case _:
            return Slope("input", partial(_by_autograd, module))


def _by_autograd(module: nn.Module, gradient: Tensor, z: Tensor) -> None:
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        # A scalar: given grad_outputs, torch would import sympy (0.6 s) to compare their shapes.
        total = (module(leaf) * gradient).sum()
    gradient.copy_(torch.autograd.grad(total, leaf)[0])
