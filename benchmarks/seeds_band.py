"""The band of `gradient_regression.check(..., seeds=N)`: `python -m benchmarks.seeds_band`, some minutes.

False alarms and power, by simulation. For each kind of network a pool is measured with the fixture's own probe, each
network from a seed of its own; runs are two groups of N drawn from the pools without putting back, medians and bands as
the fixture makes them. With a pool of M networks and 2N a run, runs share networks: the rates are those of these pools.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from gradscope.recording import baseline_of
from gradscope.recording._baseline import Array
from gradscope.recording._compare import RTOL
from gradscope.testing._band import expected_spread, half_width
from gradscope.testing._observe import Subject, observed
from gradscope.testing._seeds import _COMPARED, Entering, entering, relative, relative_to_larger


def chain(width: int, depth: int = 20, std: float = 1.0, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers = [part for _ in range(depth - 1) for part in (nn.Linear(width, width), activation())]
    model = nn.Sequential(*layers, nn.Linear(width, width))
    gain = 2.0 if activation is nn.ReLU else 1.0
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std * (gain / width) ** 0.5)
        else:
            nn.init.zeros_(parameter)
    return model


def convolutions(std: float = 1.0) -> nn.Module:
    layers = [part for _ in range(5) for part in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())]
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )
    return scaled(model, std)


def transformer(std: float = 1.0) -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
    return scaled(nn.Sequential(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(32, 8)), std)


def scaled(model: nn.Module, std: float) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= std
    return model


def classes(out: Tensor) -> Tensor:
    """Four samples, each of a class of its own."""
    return functional.cross_entropy(out, torch.arange(4))


KINDS: dict[str, tuple[Callable[..., nn.Module], Tensor, Callable[[Tensor], Tensor] | None]] = {
    "20 layers of 64, ReLU, He": (partial(chain, 64), torch.linspace(-3, 3, 4 * 64).reshape(4, 64).sin(), None),
    "the same, cross-entropy": (partial(chain, 64), torch.linspace(-3, 3, 4 * 64).reshape(4, 64).sin(), classes),
    "20 layers of 128, ReLU, He": (partial(chain, 128), torch.linspace(-3, 3, 4 * 128).reshape(4, 128).sin(), None),
    "20 layers of 64, tanh, LeCun": (
        partial(chain, 64, activation=nn.Tanh),
        torch.linspace(-3, 3, 4 * 64).reshape(4, 64).sin(),
        None,
    ),
    "6 convolutions with batch norm": (
        convolutions,
        torch.linspace(-3, 3, 4 * 3 * 64).reshape(4, 3, 8, 8).sin(),
        classes,
    ),
    "3 transformer layers": (transformer, torch.linspace(-3, 3, 4 * 6 * 32).reshape(4, 6, 32).sin(), None),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pool", type=int, default=400)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--power", type=int, default=2_000)
    parser.add_argument("--kinds", type=int, default=len(KINDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | seeds | false alarms | 10 % caught | by the signals alone |\n| --- | --- | --- | --- | --- |")
    for name, (make, x, loss) in list(KINDS.items())[: options.kinds]:
        recording = observed(Subject(make, x, loss_fn=loss), 0)
        last = entering(recording)
        sound, names = pool(Subject(make, x, loss_fn=loss), range(options.pool), last)
        sick, _ = pool(Subject(partial(make, std=1.1), x, loss_fn=loss), range(10**6, 10**6 + options.pool), last)
        theory = expected_spread(recording)
        own = np.array([0.0 if last.get(one) == one[1] else theory.get(one[0], {}).get(one[1], 0.0) for one in names])
        weights = np.array([signal == "weight" for signal, _ in names])
        for seeds in (8, 16):
            rng = np.random.default_rng(seeds)
            alarms = sum(leaves(rng, sound, sound, own, seeds).any() for _ in range(options.runs))
            hits = np.array([leaves(rng, sound, sick, own, seeds) for _ in range(options.power)])
            rates = hits.any(axis=1).mean(), hits[:, ~weights].any(axis=1).mean()
            print(f"| {name} | {seeds} | {alarms} of {options.runs} | {rates[0]:.2%} | {rates[1]:.2%} |", flush=True)


def pool(subject: Subject, seeds: range, last: Entering) -> tuple[Array, list[tuple[str, str]]]:
    """What is compared of each network, `(networks, numbers)`, and the signal and site of each; last is the loss."""
    rows: list[list[float]] = []
    for seed in seeds:
        run = baseline_of(observed(subject, seed))
        sizes = relative(run.sizes, last)
        names = [(signal, site) for signal in _COMPARED for site in sizes.get(signal, {})]
        row = [float(sizes[signal][site][0]) for signal, site in names]
        rows.append([*row, float(run.gradient_norm[0]), float(run.loss[0])])
    names += [("gradient norm", ""), ("loss", "")]
    found = np.array(rows)
    kept = np.isfinite(found).all(axis=0)
    return found[:, kept], [name for name, keep in zip(names, kept, strict=True) if keep]


def leaves(rng: np.random.Generator, a: Array, b: Array, own: Array, seeds: int) -> NDArray[np.bool_]:
    """Which medians of two groups leave their band; of one pool the groups have no network in common."""
    first = rng.choice(len(a), 2 * seeds if a is b else seeds, replace=False)
    second = first[seeds:] if a is b else rng.choice(len(b), seeds, replace=False)
    one, other = a[first[:seeds]], b[second]
    half = half_width(own, one.std(axis=0, ddof=1), other.std(axis=0, ddof=1), seeds, len(own))
    middle = np.median(one, axis=0), np.median(other, axis=0)
    away = np.abs(middle[0] - middle[1])
    half[-1], away[-1] = (relative_to_larger(of[-1], middle[0][-1], middle[1][-1]) for of in (half, away))
    return np.asarray(away > half + math.log10(1.0 + RTOL))


if __name__ == "__main__":
    main()
