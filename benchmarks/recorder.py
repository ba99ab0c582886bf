"""What recording costs: CPU time of a training step with every signal recorded, over that of the bare step.

Run `python benchmarks/recorder.py [ROUNDS]`. One thread; bare and observed blocks of steps of the same model alternate,
and the figure is the median of the ratios of neighbours. `A/A` is the same with nothing attached.

What was measured stands in benchmarks/README.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median

import torch
from torch import nn

from gradscope import GradScope

STEPS = 4


def mlp() -> tuple[nn.Module, torch.Tensor]:
    layers = [module for _ in range(50) for module in (nn.Linear(256, 256), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(128, 256)


def convnet() -> tuple[nn.Module, torch.Tensor]:
    def block(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]

    widths = [(3, 16, 1), *[(16, 16, 1)] * 6, (16, 32, 2), *[(32, 32, 1)] * 5, (32, 64, 2), *[(64, 64, 1)] * 5]
    return nn.Sequential(*(m for w in widths for m in block(*w))), torch.randn(32, 3, 32, 32)


def seconds(model: nn.Module, x: torch.Tensor, observed: bool) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with GradScope(model, optimizer, every=1) if observed else nullcontext():
        start = time.process_time()
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return time.process_time() - start


def ratio(make: Callable[[], tuple[nn.Module, torch.Tensor]], observed: bool, rounds: int) -> float:
    torch.manual_seed(0)
    model, x = make()
    seconds(model, x, True)
    return median(seconds(model, x, observed) / seconds(model, x, False) for _ in range(rounds))


if __name__ == "__main__":
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    print("model          A/A  every signal, every step")
    for make in (mlp, convnet):
        print(f"{make.__name__:10} {ratio(make, False, rounds):7.3f} {ratio(make, True, rounds):12.2f}")
