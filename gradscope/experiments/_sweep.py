"""The sweep: every combination of init, activation, depth and width, measured beside its theory."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope import activations
from gradscope._version import __version__
from gradscope.experiments._config import SettingsError, SweepConfig
from gradscope.experiments._expected import expected
from gradscope.experiments._measure import measure, measuring
from gradscope.experiments._networks import (
    activation_module,
    draw_signals,
    draw_weights,
    layer_fans,
    signal_shape,
)
from gradscope.recording import SweepCell, SweepResult

Progress = Callable[[int, int, str], None]

_BYTES_AT_ONCE = 2**28
"""Weights, activations and saved tensors of the seeds measured together; more do not make it faster."""


def sweep(config: SweepConfig | None = None, progress: Progress | None = None) -> SweepResult:
    """Measures how the signal grows or shrinks with depth in plain networks, forward and backward.

    Weights are drawn once per init, depth, width and seed and serve all activations. A value is measured as
    float32 gives it: what overflows is inf or NaN, what underflows is 0.

    Args:
        config: what to measure; without it, the default sweep.
        progress: called as `progress(done, total, label)` after each part.

    Returns:
        One cell per combination, in the order depth, width, init, activation of the settings' lists.

    Raises:
        SettingsError: the device is not there.

    >>> config = SweepConfig(init="he_normal", activation=["relu", "tanh"], depth=10, width=32, seeds=2)
    >>> sweep(config).cell("he_normal", "relu").pre.shape
    (2, 10)
    """
    config = config or SweepConfig()
    device = _device(config)
    started = time.perf_counter()
    shapes = list(itertools.product(config.depth, config.width, config.init))
    total = sum(len(_parts(config, depth, width)) for depth, width, _ in shapes) * len(config.activation)
    steps = itertools.count(1)

    def note(label: str) -> None:
        if progress is not None:
            progress(next(steps), total, label)

    with measuring(device):
        cells = [cell for shape in shapes for cell in _cells(config, device, *shape, note)]
    facts = {
        "gradscope": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "seconds": round(time.perf_counter() - started, 3),
    }
    return SweepResult(config.model_dump(mode="json"), tuple(cells), facts)


def _cells(
    config: SweepConfig, device: torch.device, depth: int, width: int, init: str, note: Callable[[str], None]
) -> Iterator[SweepCell]:
    """The cells of one init, depth and width."""
    parts = [list(_measured(config, device, depth, width, init, seeds, note)) for seeds in _parts(config, depth, width)]
    for activation, *rows in zip(config.activation, *parts, strict=True):
        pre, act, pre_grad, act_grad = np.concatenate(rows, axis=1)
        theirs = expected(config.family, init, activation, depth, width)
        yield SweepCell(init, activation, config.family, depth, width, pre, act, pre_grad, act_grad, expected=theirs)


def _measured(
    config: SweepConfig,
    device: torch.device,
    depth: int,
    width: int,
    init: str,
    seeds: range,
    note: Callable[[str], None],
) -> Iterator[NDArray[np.float64]]:
    """What `measure` finds for each activation; the weights serve all of them and are then let go."""
    weights = torch.stack([draw_weights(config, init, depth, width, seed) for seed in seeds], dim=1).to(device)
    signals = zip(*(draw_signals(config, depth, width, seed) for seed in seeds), strict=True)
    inputs, output_gradient = (torch.stack(tensors).to(device) for tensors in signals)
    for name in config.activation:
        module = activation_module(activations.get(name), config.family).to(device).requires_grad_(False)
        yield measure(weights, inputs, output_gradient, module)
        note(f"{init} × {name}, depth {depth}, width {width}")


def _device(config: SweepConfig) -> torch.device:
    device, here = torch.device(config.device), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= here:
        raise SettingsError(
            f"device must be one that torch finds, not {config.device!r}: it finds {here} CUDA devices."
        )
    return device


def _parts(config: SweepConfig, depth: int, width: int) -> list[range]:
    """The seeds in groups, each small enough to be measured at once in bounded memory."""
    weights = width * round(layer_fans(config.family, width).fan_in)
    signals = 2 * math.prod(signal_shape(config, width))  # each layer's pre-activation and activation
    at_once = max(1, _BYTES_AT_ONCE // (4 * depth * (weights + signals)))
    return [range(start, min(start + at_once, config.seeds)) for start in range(0, config.seeds, at_once)]
