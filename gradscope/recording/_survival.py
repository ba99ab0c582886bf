"""How far a signal gets through a network in float32, measured over seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.recording._moments import Floats
from gradscope.recording._profile import Direction, in_flow, representable


@dataclass(frozen=True)
class LayersAlive:
    """How many layers are representable in every seed: rms finite and above 1e-36.

    Attributes:
        alive: how many, of `layers`.
        layers: how many there are.
        dies_at: number of the first layer that is not, in the direction the signal flows; layers are numbered
            from 1 at the input, in both directions. None where all are alive.
        passed: how many layers the signal had reached by then, that one included (`dies_at` counted from where
            the signal enters); None likewise.
    """

    alive: int
    layers: int
    dies_at: int | None
    passed: int | None


def layers_alive(rms: Floats, direction: Direction) -> LayersAlive:
    """What of an rms `(seeds, layers)` float32 could hold in every seed."""
    alive: NDArray[np.bool_] = np.asarray(representable(rms).all(axis=0))
    layers = len(alive)
    dead = np.flatnonzero(~in_flow(alive, direction).astype(bool))
    if not dead.size:
        return LayersAlive(layers, layers, None, None)
    passed = int(dead[0]) + 1
    dies_at = passed if direction == "forward" else layers + 1 - passed
    return LayersAlive(int(alive.sum()), layers, dies_at, passed)


def typical(rms: Floats) -> Floats:
    """The median over seeds of an rms `(seeds, layers)`, `(layers,)`; what kills one seed kills it.

    Where some seed is not representable the value is inf if one overflowed, else that of the smallest: a median
    over the seeds that survive would flatter the network.
    """
    worst = np.where(np.isfinite(rms).all(axis=0), rms.min(axis=0), np.inf)
    return np.where(representable(rms).all(axis=0), np.median(rms, axis=0), worst)


def decades_lost(rms: Floats, direction: Direction) -> float:
    """log10 of rms `(layers,)` where the signal enters over that where it leaves, or was last alive.

    Positive where it shrinks; NaN where it is not representable from the start.
    """
    flow = in_flow(rms, direction)
    dead = np.flatnonzero(~representable(flow))
    last = int(dead[0]) if dead.size else len(flow)
    return float(np.log10(flow[0]) - np.log10(flow[last - 1])) if last else float("nan")
