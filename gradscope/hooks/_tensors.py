"""Which tensors are read, in what surroundings, and why another is passed over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

_PLAIN = torch._C._disabled_torch_dispatch_impl


_DEEPEST = 16


def floating_tensors(value: Any) -> Iterator[Tensor]:
    """The floating tensors of a module's output, in order: in tuples, lists, mappings and dataclasses, nested."""
    return (tensor for tensor in tensors(value) if tensor.is_floating_point())


def tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """All tensors within a value, in order, unless it is nested without end."""
    if isinstance(value, Tensor):
        yield value
    elif depth > _DEEPEST or isinstance(value, (str, bytes, range)):
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item, depth + 1)
    elif isinstance(value, Sequence):
        for item in value:
            yield from tensors(item, depth + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            yield from tensors(getattr(value, item.name, None), depth + 1)


has_storage: Callable[[Tensor], bool] = torch._C._has_storage
"""Whether it has memory of its own: inside `torch.autograd.grad(..., is_grads_batched=True)` a tensor has none."""


PLAIN_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
"""Those that our kernels read."""

_PLAIN_TYPES = (Tensor, nn.Parameter)


def is_plain(tensor: Tensor) -> bool:
    """Whether a kernel of ours that runs on its device can read it: strided entries of a common dtype, as they are."""
    return (
        type(tensor) in _PLAIN_TYPES
        and tensor.dtype in PLAIN_DTYPES
        and tensor.layout is torch.strided
        and not tensor.is_neg()
        and has_storage(tensor)
    )


def why_unreadable(tensor: Tensor) -> str | None:
    """Why no moments are taken of a tensor, None where they are.

    Integer and bool tensors are no signals and have no reason either: they are left out before.
    """
    if tensor.is_complex():
        return "complex numbers"
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1 and "float4" in str(tensor.dtype):
        return "of dtype float4, two entries in a byte"
    if tensor.is_quantized:
        return "a quantized tensor"
    if tensor.device.type == "meta":
        return "on the meta device, without values"
    if tensor.is_nested:
        return "a nested tensor"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "inside a torch.func transform"
    if type(tensor) is Tensor and tensor.layout is torch.strided and not has_storage(tensor):
        return "one of a batch of gradients (is_grads_batched)"
    if type(tensor).__torch_dispatch__ is not _PLAIN and not is_distributed(tensor):
        return f"a {type(tensor).__name__}, whose values only it can read"
    if tensor.layout not in (torch.strided, torch.sparse_coo):
        return f"of layout {str(tensor.layout).removeprefix('torch.')}"
    return None


def is_distributed(tensor: Tensor) -> bool:
    """One of torch.distributed's own kinds: in parts on several ranks, or still on its way from them."""
    return type(tensor).__name__ in ("DTensor", "AsyncCollectiveTensor")


def in_transform() -> bool:
    """Inside `torch.func` (vmap, grad, …) or `torch.jit.trace`: tensors are stand-ins, or code is written down."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None


def is_replaying() -> bool:
    """Inside a backward pass: a forward that runs here is activation checkpointing's recomputation."""
    return bool(torch._C._current_graph_task_id() != -1)


def is_capturing() -> bool:
    """The CUDA work of this moment goes into a graph, to be replayed without us."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def unseen_by_modes() -> AbstractContextManager[Any]:
    """Surroundings in which our own operations reach no mode that others have put up.

    Selective checkpointing counts operations, FLOP counters too; what they count must not depend on us.
    """
    dispatch, function = torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()
    if not dispatch and not function:
        return _NOTHING
    stack = ExitStack()
    if dispatch:
        stack.enter_context(_disable_current_modes())
    if function:
        stack.enter_context(torch._C.DisableTorchFunction())
    return stack


_NOTHING = nullcontext()


def own_base(tensor: Tensor, inputs: tuple[Tensor, ...]) -> Tensor | None:
    """The tensor of which a module's output is a view, where it is the same values and the module's own work."""
    base = tensor._base
    if base is None or base.grad_fn is None or base.numel() != tensor.numel() or base.dtype != tensor.dtype:
        return None
    # What returns its input itself has the input's gradient, and its base's.
    if any(base is x or (base is x._base and x is not tensor) for x in inputs):
        return None
    return base
