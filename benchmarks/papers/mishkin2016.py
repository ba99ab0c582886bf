"""Mishkin & Matas (2016): orthogonal weights, scaled layer by layer until each layer's outputs have variance 1.

Algorithm 1, section 3 (LSUV). For linear layers one division by the standard deviation is enough. It looks forward
alone: at unit variance the gradient's mean square is multiplied by chi = E[f'²]/E[f²] in each layer, 1 for ReLU, 1.178
for tanh, 0.153 for the logistic function.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from benchmarks.papers.nets import digits, generator, plain, sphere
from benchmarks.papers.pictures import DASHED, panels
from benchmarks.papers.row import Row, row
from gradscope import init, probe, theory
from gradscope.recording import decades_per_layer
from gradscope.report._style import BLUE, INK, PURPLE, VERMILION, styled

CITATION = "Mishkin & Matas (2016), All you need is a good init, ICLR"

Array = NDArray[np.float64]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}
BACKWARD = ("relu", "tanh", "sigmoid")
"""Those whose lengths are kept under their gain: GELU's fixed point repels."""
COLOURS = {"relu": BLUE, "tanh": VERMILION, "sigmoid": PURPLE}
DEPTH, BATCH = 30, 64


class Size(NamedTuple):
    width: int
    seeds: int


FULL, REDUCED = Size(256, 5), Size(128, 4)


@functools.cache
def variances(name: str, reduced: bool) -> Array:
    """Of each layer's outputs on the batch of digits for which it was scaled, at most once: `(layers,)`."""
    size = REDUCED if reduced else FULL
    x = digits().images[:BATCH]
    model = plain([64, *[size.width] * (DEPTH - 1), 10], ACTIVATIONS[name], bias=True)
    init.initialize(model, init.LSUV(iterations=1), generator=generator(0), inputs=x)
    return np.asarray(probe(model, x).profile("activation", "var", role="pre-activation").values)


@functools.cache
def gradients(name: str, reduced: bool) -> Array:
    """Rms of the gradient of each layer's outputs, `(seeds, layers)`, relative to the last; random inputs."""
    size, found = REDUCED if reduced else FULL, []
    for seed in range(size.seeds):
        x = sphere(BATCH, size.width, seed=100 + seed)
        model = plain([size.width] * (DEPTH + 1), ACTIVATIONS[name])
        init.initialize(model, init.LSUV(), generator=generator(seed), inputs=x)
        rms = probe(model, x).profile("activation_grad", role="pre-activation").values
        found.append(rms / rms[-1])
    return np.array(found)


def reproduce(reduced: bool = False) -> list[Row]:
    size = REDUCED if reduced else FULL
    worst = {name: variances(name, reduced) for name in ACTIVATIONS}
    farthest = [seen[np.argmax(np.abs(seen - 1.0))] for seen in worst.values()]
    slopes = [
        float(np.mean([decades_per_layer(rms, "backward") for rms in gradients(name, reduced)])) for name in BACKWARD
    ]
    tolerance = []
    for name in BACKWARD:
        known = theory.propagate(
            name,
            DEPTH,
            weight_variance=theory.card(name).forward_gain ** 2 / size.width,
            fan_in=size.width,
            weights="orthogonal",
        )
        walk = 1.2 * float(known.backward_var[0]) / DEPTH**2 / size.seeds
        tolerance.append(5.0 * math.sqrt(walk) / (2.0 * math.log(10.0)) + 0.002)
    return [
        row(
            "relu, tanh, logistic, gelu: the variance farthest from 1 of 30 layers, each scaled once at most",
            published="variance 1 within 0.1, in 1 to 5 iterations",
            theory=np.ones(len(ACTIVATIONS)),
            measured=farthest,
            tolerance=0.1,
            because="LSUV's own limit: what is nearer is left as it is",
            scaled_down=f"plain networks of {size.width} units on {BATCH} of scikit-learn's digits, no convolutions",
        ),
        row(
            "relu, tanh, logistic: the gradient's decades per layer afterwards",
            published="– (backward is not looked at)",
            theory=[round(math.log10(theory.card(name).chi) / 2.0, 12) for name in BACKWARD],
            measured=slopes,
            tolerance=tolerance,
            because="5 standard errors of the slope of a random walk, and 0.002 for the first layers, whose inputs "
            "are not yet those of the fixed point",
            scaled_down=f"random inputs, {size.seeds} networks of {size.width} units",
        ),
    ]


@styled
def figure(reduced: bool = False) -> Figure:
    size, layers = REDUCED if reduced else FULL, np.arange(1, DEPTH + 1)
    fig, axes = panels(
        "Mishkin & Matas 2016: LSUV",
        f"{DEPTH} layers of {size.width} units; dashed: theory",
        "variance of each layer's outputs",
        "rms of the gradient, relative to the last layer",
    )
    for name in ACTIVATIONS:
        axes[0].plot(layers, variances(name, reduced), ".", color=COLOURS.get(name, INK), label=name)
    axes[0].axhspan(0.9, 1.1, color="#d9efe6", linewidth=0)
    axes[0].set_ylim(0.7, 1.3)
    axes[0].legend(loc="upper right", ncols=2)
    for name in BACKWARD:
        axes[1].plot(layers, gradients(name, reduced).mean(axis=0), color=COLOURS[name], label=name)
        chi = theory.card(name).chi
        axes[1].plot(layers, chi ** ((DEPTH - layers) / 2), color=INK, linestyle=DASHED, linewidth=1)
    axes[1].set_yscale("log")
    axes[1].legend(loc="lower right")
    for panel in axes:
        panel.set_xlabel("layer")
    return fig
