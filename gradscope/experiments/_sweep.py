"""The sweep: every combination of init, activation, depth and width, measured beside its theory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope import activations
from gradscope._version import __version__
from gradscope.experiments._adjustment import adjustment
from gradscope.experiments._config import SettingsError, SweepConfig
from gradscope.experiments._expected import expected
from gradscope.experiments._grid import Part, parts
from gradscope.experiments._measure import measure, measuring
from gradscope.experiments._memory import Memory
from gradscope.experiments._networks import activation_module, draw_signals, draw_weights, weights_shape
from gradscope.recording import SweepCell, SweepResult

Progress = Callable[[int, int, str], None]
Array = NDArray[np.float64]


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
    device, started, grid = device_of(config), time.perf_counter(), parts(config)
    found = measured(config, device, grid, progress)
    return assembled(config, grid, found, facts(device, started))


def measured(
    config: SweepConfig, device: torch.device, grid: Sequence[Part], progress: Progress | None = None
) -> list[Array]:
    """What `measure` finds for each part; neighbours of the same weights share them."""
    found, done, total = [], itertools.count(1), sum(len(part.activations) for part in grid)
    memory, host = Memory(device), Memory(torch.device("cpu"))
    with measuring(device):
        for (depth, width, init, seeds), sharing in itertools.groupby(grid, key=lambda part: part.drawn):
            drawn = host.tensor("weights", weights_shape(config, depth, width, len(seeds)))
            for index, seed in enumerate(seeds):
                draw_weights(config, init, depth, width, seed, out=drawn[:, index])
            weights = drawn.to(device)
            signals = zip(*(draw_signals(config, depth, width, seed) for seed in seeds), strict=True)
            inputs, output_gradient = (torch.stack(tensors).to(device) for tensors in signals)
            for part in sharing:
                modules = [activation_module(activations.get(name), config.family) for name in part.activations]
                modules = [module.to(device).requires_grad_(False) for module in modules]
                adjust = adjustment(config, init, part.activations, depth, width, seeds, device)
                found.append(measure(weights, inputs, output_gradient, modules, memory, adjust))
                if progress is not None:
                    for name in part.activations:
                        progress(next(done), total, f"{init} × {name}, depth {depth}, width {width}")
    return found


def assembled(config: SweepConfig, grid: Iterable[Part], found: Iterable[Array], facts: dict[str, Any]) -> SweepResult:
    """The result of all parts of a grid: the seeds of each cell come together, and its theory beside them."""
    rows: dict[tuple[int, int, str, str], list[Array]] = {
        cell: [] for cell in itertools.product(config.depth, config.width, config.init, config.activation)
    }
    for part, values in zip(grid, found, strict=True):
        for name, of_one in zip(part.activations, values, strict=True):
            rows[part.depth, part.width, part.init, name].append(of_one)
    cells = []
    for (depth, width, init, name), of_seeds in rows.items():
        pre, act, pre_grad, act_grad = np.concatenate(of_seeds, axis=1)
        theirs = expected(config.family, init, name, depth, width)
        cells.append(SweepCell(init, name, config.family, depth, width, pre, act, pre_grad, act_grad, theirs))
    return SweepResult(config.model_dump(mode="json"), tuple(cells), facts)


def facts(device: torch.device, started: float) -> dict[str, Any]:
    """What a sweep ran on, and how many seconds it took since `started`."""
    return {
        "gradscope": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "seconds": round(time.perf_counter() - started, 3),
    }


def device_of(config: SweepConfig) -> torch.device:
    """The settings' device; SettingsError where torch does not find it."""
    device, here = torch.device(config.device), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= here:
        raise SettingsError(
            f"device must be one that torch finds, not {config.device!r}: it finds {here} CUDA devices."
        )
    return device
