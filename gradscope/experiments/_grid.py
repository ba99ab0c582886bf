"""How a sweep's grid is cut into the parts that are measured at once, and which rank measures which."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradscope.experiments._config import SweepConfig
from gradscope.experiments._networks import layer_fans, signal_shape

_BYTES_AT_ONCE = 2**28
"""Weights and signals of the networks measured together; more do not make it faster."""

_OTHER_SIGNALS = 10
"""Layers of signals that are there beside the kept ones: what comes in and goes out, two that take turns, float64."""

_LAYER_BYTES = 2**21
"""One layer's signals of the networks measured together on a CPU: what stays in its caches until it is read again."""


@dataclass(frozen=True)
class Part:
    """Networks that are measured at once: some seeds of one init, depth and width, with some activations."""

    depth: int
    width: int
    init: str
    seeds: range
    activations: tuple[str, ...]

    @property
    def drawn(self) -> tuple[int, int, str, range]:
        """What its weights depend on: neighbours that share it share them."""
        return self.depth, self.width, self.init, self.seeds


def parts(config: SweepConfig) -> list[Part]:
    """The grid in the order of the settings' lists; each part small enough for its memory to be bounded."""
    found = []
    for depth, width, init in itertools.product(config.depth, config.width, config.init):
        seeds, activations = _at_once(config, depth, width)
        for first in range(0, config.seeds, seeds):
            some = range(first, min(first + seeds, config.seeds))
            for start in range(0, len(config.activation), activations):
                found.append(Part(depth, width, init, some, config.activation[start : start + activations]))
    return found


def ranks_of(config: SweepConfig, grid: Sequence[Part], ranks: int) -> list[int]:
    """Which rank measures each part: stretches of the grid of about equal cost, so that weights are drawn once.

    The cost is that of the matrix products. A part goes where its middle lies.

    >>> config = SweepConfig(init=["he_normal", "orthogonal"], activation="relu", depth=[4, 8])
    >>> ranks_of(config, parts(config), 2)
    [0, 0, 1, 1]
    """
    costs = [part.depth * part.width**2 * len(part.seeds) * len(part.activations) for part in grid]
    ends = list(itertools.accumulate(costs))
    return [(2 * end - cost) * ranks // (2 * ends[-1]) for end, cost in zip(ends, costs, strict=True)]


def _at_once(config: SweepConfig, depth: int, width: int) -> tuple[int, int]:
    """(seeds, activations) measured together: all seeds, then as many activations, as the bounds allow."""
    weights = width * round(layer_fans(config.family, width).fan_in)
    layer = math.prod(signal_shape(config, width))  # of one network
    layers = depth + _OTHER_SIGNALS
    seeds = min(config.seeds, max(1, _BYTES_AT_ONCE // (4 * (depth * weights + layers * layer))))
    together = (_BYTES_AT_ONCE // (4 * seeds) - depth * weights) // (layers * layer)
    if config.device == "cpu":
        together = min(together, _LAYER_BYTES // (4 * seeds * layer))
    rounds = math.ceil(len(config.activation) / max(1, together))
    return seeds, math.ceil(len(config.activation) / rounds)
