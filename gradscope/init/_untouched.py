"""Running a model once so that nothing is left of it: random state, buffers, attributes, inputs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Afterwards the model's buffers, its modules' attributes and the random state are as before, to the bit.

    The random states are torch's (of the CPU and of the model's devices), numpy's and Python's. Parameters
    are not copied: a forward that overwrites its own parameters is not undone.
    """
    # Attributes together with the buffers: a cache and the counter that says how long it is belong together.
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    attributes = [dict(vars(module)) for module in modules]
    slots = [dict(module._buffers) for module in modules]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with _forked_random_state(model):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for module, saved, slot in zip(modules, attributes, slots, strict=True):
            vars(module).clear()
            vars(module).update(saved)
            module._buffers.clear()
            module._buffers.update(slot)
        for buffer, value in values:
            if not torch.equal(buffer, value):  # a NaN is copied needlessly, no harm
                buffer.data.copy_(value)  # .data: a graph of the caller's that saved the buffer stays valid


@contextmanager
def _forked_random_state(model: nn.Module) -> Iterator[None]:
    tensors = (*model.parameters(), *model.buffers())
    devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    kind = next((device.type for device in devices), "cuda")
    with torch.random.fork_rng(sorted({device.index or 0 for device in devices}), device_type=kind):
        yield


def run(model: nn.Module, inputs: Any) -> Any:
    """`model(x)` for a tensor, `model(*inputs)` for a tuple, `model(**inputs)` for a dict.

    The model gets copies of the tensors: an in-place first layer would change the caller's batch.
    """
    copied = _copied(inputs)
    if isinstance(copied, dict):
        return model(**copied)
    if isinstance(copied, tuple) and not hasattr(copied, "_fields"):  # a PackedSequence is one argument
        return model(*copied)
    return model(copied)


def _copied(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.detach().clone().requires_grad_(inputs.requires_grad)
    if isinstance(inputs, Mapping):
        return {key: _copied(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):
        return type(inputs)(*map(_copied, inputs))
    if isinstance(inputs, tuple | list):
        return type(inputs)(map(_copied, inputs))
    return inputs
