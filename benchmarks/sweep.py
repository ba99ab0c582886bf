"""How near the default sweep is to the matrix products that it cannot avoid.

    python benchmarks/sweep.py [rounds]

Once the whole default sweep (measurement and theory, no pictures); then, in turns, the parts of one init's ten cells
beside their bare products: cell by cell, and at once as the sweep arranges them, several activations' rows in one
batched product. Ratios are medians over the turns' own ratios.

Measured on 2 cores of an AMD EPYC (Zen 5), torch 2.13.0 CPU, 2 threads, `python benchmarks/sweep.py 5`, other work on
the machine:

    the default sweep, 100 cells: 3.6 s

    one init, ten cells       seconds   × cell by cell        × at once
    products, cell by cell      0.272             1.00             1.16
    products, cells at once     0.234             0.86             1.00
    forward, backward, rms      0.293             1.08             1.25
    weights N(0, σ²)            0.064             0.24             0.27
    weights U(±r)               0.061             0.22             0.26
    weights orthogonal          0.290             1.07             1.24
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch

from gradscope import activations
from gradscope.experiments import SweepConfig, sweep
from gradscope.experiments._grid import parts
from gradscope.experiments._measure import measure, measuring
from gradscope.experiments._memory import Memory
from gradscope.experiments._networks import activation_module, draw_signals, draw_weights

INIT, HOST = "lecun_normal", torch.device("cpu")
CONFIG = SweepConfig()
(DEPTH,), (WIDTH,) = CONFIG.depth, CONFIG.width
SEEDS = range(CONFIG.seeds)
TOGETHER = [part.activations for part in parts(CONFIG.replace(init=INIT))]
ONE_BY_ONE, AT_ONCE = "products, cell by cell", "products, cells at once"


def drawn(init: str) -> torch.Tensor:
    weights = torch.empty(DEPTH, len(SEEDS), WIDTH, WIDTH)
    for index, seed in enumerate(SEEDS):
        draw_weights(CONFIG, init, DEPTH, WIDTH, seed, out=weights[:, index])
    return weights


def products(weights: list[torch.Tensor], inputs: torch.Tensor) -> None:
    """Forward through all layers, back through all but the first; `weights` is a list, for tensors reverse by copy."""
    x, y = inputs.clone(), torch.empty_like(inputs)
    for weight in itertools.chain((w.transpose(1, 2) for w in weights), weights[:0:-1]):
        torch.bmm(x, weight, out=y)
        x, y = y, x


def cells(weights: torch.Tensor, inputs: torch.Tensor, gradient: torch.Tensor, memory: Memory) -> None:
    with measuring(HOST):
        for names in TOGETHER:
            modules = [activation_module(activations.get(name), CONFIG.family) for name in names]
            measure(weights, inputs, gradient, modules, memory)


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main(rounds: int) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    whole = sweep(CONFIG).facts["seconds"]
    print(f"the default sweep, {len(CONFIG.init) * len(CONFIG.activation)} cells: {whole:.1f} s\n")
    weights, memory = drawn(INIT), Memory(HOST)
    signals = zip(*(draw_signals(CONFIG, DEPTH, WIDTH, seed) for seed in SEEDS), strict=True)
    inputs, gradient = (torch.stack(tensors) for tensors in signals)
    one_by_one = [inputs for _ in CONFIG.activation]
    at_once = [inputs.repeat(1, len(names), 1) for names in TOGETHER]
    parts_of_it: dict[str, Callable[[], object]] = {
        ONE_BY_ONE: lambda: [products(list(weights), x) for x in one_by_one],
        AT_ONCE: lambda: [products(list(weights), x) for x in at_once],
        "forward, backward, rms": lambda: cells(weights, inputs, gradient, memory),
        "weights N(0, σ²)": lambda: drawn("lecun_normal"),
        "weights U(±r)": lambda: drawn("lecun_uniform"),
        "weights orthogonal": lambda: drawn("orthogonal"),
    }
    turns = [{name: seconds(part) for name, part in parts_of_it.items()} for _ in range(rounds + 1)][1:]  # 1: warm-up
    print(f"{'one init, ten cells':24} {'seconds':>8} {'× cell by cell':>16} {'× at once':>16}")
    for name in parts_of_it:
        taken = statistics.median(turn[name] for turn in turns)
        ratios = [statistics.median(turn[name] / turn[bare] for turn in turns) for bare in (ONE_BY_ONE, AT_ONCE)]
        print(f"{name:24} {taken:8.3f} " + " ".join(f"{ratio:16.2f}" for ratio in ratios))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
