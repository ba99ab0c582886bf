"""J v and Jᵀu of each sample of a batch, from one forward pass and without any matrix.

    Jᵀu = ∂(u·y)/∂x         one backward pass
    J v = ∂(v·Jᵀu)/∂u       a second one through the first: Jᵀu is linear in u, so that u = 0 does

Every operation with a double backward can do that, also those that change their input in place. (Forward-mode
differentiation runs the model anew for each v, with other dropout masks, and more operations lack it.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradscope.hooks._guard import alone
from gradscope.hooks._tensors import floating_tensors
from gradscope.init._untouched import untouched

_INDEPENDENT = "the model's output does not depend on its floating input in a way that has a gradient"


class _Nobody:
    """Listens in place of every scope on the model: what happens here is no step of training."""

    detached = False

    def detach(self) -> None:
        self.detached = True


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, gradients can be taken of the model; afterwards it is as before, and no scope has recorded anything."""
    with alone(_Nobody()), untouched(model), torch.enable_grad():
        yield


class Products:
    """The Jacobians of a batch, `(outputs, inputs)` each, as what they do to vectors.

    Attributes:
        batch: samples.
        inputs, outputs: entries of one sample's input and output.
        device, dtype: of the vectors that `forward` and `backward` take.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._x, self._y = x, y
        self.batch = int(x.shape[0])
        self.inputs, self.outputs = x[0].numel(), y[0].numel()
        self.device, self.dtype = x.device, y.dtype
        self._u = torch.zeros((self.batch, self.outputs), device=y.device, dtype=y.dtype, requires_grad=True)
        self._gradient = self._back(self._u, create_graph=True)

    def forward(self, v: Tensor) -> Tensor:
        """J v, `(batch, inputs)` → `(batch, outputs)`."""
        if not self._gradient.requires_grad:  # no output depends on the input smoothly: J is 0
            return torch.zeros_like(self._u)
        given = v.to(self._gradient.dtype)
        (found,) = torch.autograd.grad(self._gradient, self._u, given, retain_graph=True, allow_unused=True)
        return torch.zeros_like(self._u) if found is None else found

    def backward(self, u: Tensor) -> Tensor:
        """Jᵀu, `(batch, outputs)` → `(batch, inputs)`."""
        return self._back(u.to(self.dtype), create_graph=False)

    def _back(self, u: Tensor, create_graph: bool) -> Tensor:
        given = u.reshape(self._y.shape)
        (found,) = torch.autograd.grad(
            self._y, self._x, given, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
        if found is None:
            raise ValueError(_INDEPENDENT)
        return found.reshape(self.batch, -1)


@contextmanager
def products(model: nn.Module, inputs: Any) -> Iterator[Products]:
    """The products of a model's Jacobian, of its first floating output by its first floating input.

    Raises:
        ValueError: there is no such input or output, their first dimensions differ, or the samples of the batch depend
            on each other.
    """
    given, x = _with_leaf(inputs)
    if x is None or x.dim() == 0:
        raise ValueError("inputs has no floating tensor with a batch dimension: there is nothing to derive by")
    with undisturbed(model), _differentiable_twice(model):
        if isinstance(given, dict):
            out = model(**given)
        else:
            out = model(*given) if isinstance(given, tuple) else model(given)
        y = next(floating_tensors(out), None)
        if y is None or not y.requires_grad:
            raise ValueError(_INDEPENDENT)
        if y.dim() == 0 or y.shape[0] != x.shape[0]:
            raise ValueError(
                f"the output has shape {tuple(y.shape)} and the input {tuple(x.shape)}; both must begin with the batch"
            )
        found = Products(x, y)
        if _mixes(found):
            raise ValueError(
                "the samples of the batch depend on each other (batch norm in training mode, or a first dimension that"
                " is no batch); call model.eval(), or give one sample"
            )
        yield found


def _mixes(found: Products) -> bool:
    """Whether the first sample's output depends on another sample's input."""
    if found.batch == 1:
        return False
    generator = torch.Generator().manual_seed(0)
    u = torch.zeros((found.batch, found.outputs), dtype=torch.float64)
    u[0] = torch.randn(found.outputs, generator=generator, dtype=torch.float64)
    return bool((found.backward(u.to(found.device))[1:] != 0).any())


def _with_leaf(inputs: Any) -> tuple[Any, Tensor | None]:
    """Copies of the inputs, and the leaf that the first floating tensor of them is a copy of."""
    leaf: Tensor | None = None

    def copied(value: Any) -> Any:
        nonlocal leaf
        if isinstance(value, Tensor):
            copy = value.detach().clone()
            if leaf is None and copy.is_floating_point():
                leaf = copy.requires_grad_()
                return leaf.clone()  # a leaf itself must not be changed in place, as a first ReLU may do
            return copy
        if isinstance(value, Mapping):
            return {key: copied(item) for key, item in value.items()}
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return type(value)(map(copied, value))
        return value

    with torch.enable_grad():
        return copied(inputs), leaf


@contextmanager
def _differentiable_twice(model: nn.Module) -> Iterator[None]:
    """Attention and recurrent layers by kernels whose backward can be differentiated itself; they have others too."""
    cudnn, mkldnn = torch._C._get_cudnn_enabled(), torch._C._get_mkldnn_enabled()
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        if recurrent:
            torch._C._set_cudnn_enabled(False)
            torch._C._set_mkldnn_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        if recurrent:
            torch._C._set_cudnn_enabled(cudnn)
            torch._C._set_mkldnn_enabled(mkldnn)
