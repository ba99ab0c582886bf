"""How near the default sweep is to the matrix products that it cannot avoid.

    python benchmarks/sweep.py [rounds]

Once the whole default sweep (measurement and theory, no pictures) with nothing cached; then, in turns, the
parts of one init's ten cells beside their bare products: 99 batched products of 5 × (64, 256) by (256, 256) for
each cell, 50 forward and 49 backward. Ratios are medians over the turns' own ratios.

Measured on 2 cores of a Xeon at 2.8 GHz, torch 2.13.0+cpu, load average 0.3 before (nothing else at work):

    the default sweep, 100 cells: 10.8 s

    one init, ten cells       seconds  × bare products
    bare products               0.376             1.00
    forward, backward, rms      0.690             2.08
    weights N(0, σ²)            0.099             0.31
    weights U(±r)               0.103             0.29
    weights orthogonal          0.703             2.06

Of the 10.8 s (11.6 and 11.4 in two further runs) some 3.8 are the products, 3 the activations, their slopes and the
rms, 1.7 the weights, 0.5 theory, 1.4 slow arithmetic on subnormal numbers (the gradients of softmax and sigmoid).
With other work on the same two cores single cells took up to 80 times as long, for torch's threads wait for each
other: measure on a quiet machine.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from gradscope import activations
from gradscope.experiments import SweepConfig, sweep
from gradscope.experiments._measure import measure, measuring
from gradscope.experiments._networks import activation_module, draw_signals, draw_weights

CONFIG = SweepConfig()
(DEPTH,), (WIDTH,) = CONFIG.depth, CONFIG.width
SEEDS = range(CONFIG.seeds)


def drawn(init: str) -> torch.Tensor:
    return torch.stack([draw_weights(CONFIG, init, DEPTH, WIDTH, seed) for seed in SEEDS], dim=1)


def products(weights: torch.Tensor, inputs: torch.Tensor) -> None:
    for _ in CONFIG.activation:
        x = inputs
        for weight in weights:
            x = torch.bmm(x, weight.transpose(1, 2))
        for weight in weights[1:].flip(0):
            x = torch.bmm(x, weight)


def cells(weights: torch.Tensor, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
    with measuring(torch.device("cpu")):
        for name in CONFIG.activation:
            measure(weights, inputs, gradient, activation_module(activations.get(name), CONFIG.family))


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main(rounds: int) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    whole = sweep(CONFIG).facts["seconds"]
    print(f"the default sweep, {len(CONFIG.init) * len(CONFIG.activation)} cells: {whole:.1f} s\n")
    weights = drawn("lecun_normal")
    signals = zip(*(draw_signals(CONFIG, DEPTH, WIDTH, seed) for seed in SEEDS), strict=True)
    inputs, gradient = (torch.stack(tensors) for tensors in signals)
    bare = "bare products"
    parts: dict[str, Callable[[], object]] = {
        bare: lambda: products(weights, inputs),
        "forward, backward, rms": lambda: cells(weights, inputs, gradient),
        "weights N(0, σ²)": lambda: drawn("lecun_normal"),
        "weights U(±r)": lambda: drawn("lecun_uniform"),
        "weights orthogonal": lambda: drawn("orthogonal"),
    }
    turns = [{name: seconds(part) for name, part in parts.items()} for _ in range(rounds + 1)][1:]  # first: warm-up
    print(f"{'one init, ten cells':24} {'seconds':>8} {'× bare products':>16}")
    for name in parts:
        taken = statistics.median(turn[name] for turn in turns)
        ratio = statistics.median(turn[name] / turn[bare] for turn in turns)
        print(f"{name:24} {taken:8.3f} {ratio:16.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
