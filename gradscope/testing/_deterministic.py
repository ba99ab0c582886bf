"""One run like the other: seeds, one thread, deterministic algorithms; afterwards all is as before."""

from __future__ import annotations

import copy
import random
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


def seed_all(seed: int) -> None:
    """Python's, numpy's and torch's generators, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # what models use is the global one
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the global generators start from a seed; afterwards they are as before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            seed_all(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """`seeded`, on one thread and with deterministic algorithms where torch has some; no other setting is touched."""
    threads = torch.get_num_threads()
    mode = torch.get_deterministic_debug_mode()  # use_deterministic_algorithms would import all of torch's compiler
    # The flags themselves: the properties of torch.backends.cudnn refuse where torch.testing's internals are imported.
    flags: Any = torch._C
    chosen, benchmark = flags._get_cudnn_deterministic(), flags._get_cudnn_benchmark()
    try:
        torch.set_num_threads(1)
        torch.set_deterministic_debug_mode("warn")
        flags._set_cudnn_deterministic(True)
        flags._set_cudnn_benchmark(False)
        with seeded(seed), warnings.catch_warnings():
            # What has no deterministic algorithm is found by running twice.
            warnings.filterwarnings("ignore", message="(?s).*determinis", category=UserWarning)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)
        flags._set_cudnn_deterministic(chosen)
        flags._set_cudnn_benchmark(benchmark)


@contextmanager
def training_undone(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Afterwards parameters, their gradients, and the optimizers' states and settings are as before, to the bit."""
    saved = [(p, p.detach().clone(), p.grad) for p in model.parameters()]
    kept = [(o, _state(o), [_settings(group) for group in o.param_groups]) for o in optimizers]
    try:
        for parameter, _, _ in saved:
            parameter.grad = None
        yield
    finally:
        for parameter, value, gradient in saved:
            parameter.data.copy_(value)
            parameter.grad = gradient
        for optimizer, state, groups in kept:
            optimizer.state = defaultdict(dict, state)
            for group, settings in zip(optimizer.param_groups, groups, strict=True):
                parameters = group["params"]
                group.clear()
                group.update(settings, params=parameters)


def _state(optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    return {key: copy.deepcopy(value) for key, value in optimizer.state.items()}


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
