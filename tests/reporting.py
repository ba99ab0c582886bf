"""What the tests of the report share: a small real sweep, small real runs, and cells of closed form."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gradscope import GradScope, Recording, SweepConfig, init, sweep
from gradscope.recording import Expected, SweepCell, SweepResult

SMALL = {
    "init": ["glorot_normal", "he_normal", "naive_normal"],
    "activation": ["sigmoid", "relu", "softmax", "gelu"],
    "depth": 8,
    "width": 16,
    "batch": 8,
    "seeds": 3,
}


@functools.cache
def small_sweep() -> SweepResult:
    return sweep(SweepConfig(**SMALL))


def cell(forward: float, backward: float, *, depth: int = 50, seeds: int = 5, stable: bool = True) -> SweepCell:
    """A cell whose rms are exact powers: `forward` and `backward` decades per layer, as float32 holds them.

    Seed s is multiplied by 2^(s - middle), so that the median is the middle seed and its slope exact.
    """
    layer = np.arange(depth)
    pre, pre_grad = forward * layer, backward * layer[::-1]
    spread = 2.0 ** (np.arange(seeds) - seeds // 2)[:, None]

    def rms(log10: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", under="ignore"):
            return (10.0**log10 * spread).astype(np.float32).astype(np.float64)

    last = np.where(layer == depth - 1, np.nan, 0.0)
    expected = Expected(
        pre=pre,
        act=pre + last,
        pre_grad=pre_grad,
        act_grad=pre_grad + last,
        forward_var=np.zeros(depth),
        backward_var=np.zeros(depth),
        label="closed form",
        stable=stable,
        valid=np.ones(depth, dtype=bool),
    )
    return SweepCell(
        "he_normal", "relu", "mlp", depth, 64, rms(pre), rms(pre) + last, rms(pre_grad), rms(pre_grad) + last, expected
    )


@functools.cache
def trained(scheme: str = "glorot_normal", layers: int = 6, steps: int = 5) -> Recording:
    """A network of logistic units (ReLU under naive_normal, where it explodes), recorded as it trains."""
    generator = torch.Generator().manual_seed(0)
    kind = nn.ReLU if scheme == "naive_normal" else nn.Sigmoid
    hidden = [module for _ in range(layers - 1) for module in (nn.Linear(32, 32), kind())]
    model = nn.Sequential(*hidden, nn.Linear(32, 4))
    init.initialize(model, scheme, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(16, 32, generator=generator), torch.randint(0, 4, (16,), generator=generator)
    with GradScope(model, optimizer=optimizer, every=1) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(scope(x), y).backward()
            optimizer.step()
    return scope.recording


def saved(recording: Recording, path: Path) -> Path:
    recording.save(path)
    return path
