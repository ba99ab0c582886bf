"""Yang et al. (2019): batch normalization itself makes the gradient of a plain network explode.

Linear, BatchNorm, activation, many times: backward each layer multiplies the gradient's mean square by E[f'²]/Var f for
a large batch, π/(π − 1) = 1.467 for ReLU, whatever the weights' variance. Without an activation, for B samples, it is
(B − 2)/(B − 3).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from benchmarks.papers.nets import draw, plain, sphere
from benchmarks.papers.pictures import DASHED, panels
from benchmarks.papers.row import Row, row
from gradscope import probe, theory
from gradscope.recording import decades_per_layer
from gradscope.report._style import BLUE, GREEN, INK, VERMILION, styled

CITATION = "Yang, Pennington, Rao, Sohl-Dickstein & Schoenholz (2019), A mean field theory of batch normalization, ICLR"

Array = NDArray[np.float64]
MODULES: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "identity": nn.Identity}
EDGE = 8
"""Layers left out at either end, where the batch has not yet, or the gradient not, come to its fixed point."""


class Size(NamedTuple):
    width: int
    depth: int
    batch: int
    seeds: int


FULL, REDUCED = Size(512, 60, 256, 5), Size(256, 40, 128, 3)


@functools.cache
def gradients(name: str, sigma_w2: float, batch: int, reduced: bool) -> Array:
    """Rms of the gradient of each linear layer's output, `(seeds, layers)`."""
    size, found = REDUCED if reduced else FULL, []
    for seed in range(size.seeds):
        layers: list[nn.Module] = []
        for module in plain([size.width] * (size.depth + 1), MODULES[name]):
            layers.append(module)
            if isinstance(module, nn.Linear):
                layers.append(nn.BatchNorm1d(size.width, affine=False, track_running_stats=False))
        model = draw(nn.Sequential(*layers[:-1]), sigma_w2, seed=seed)  # the last layer's output is as it is
        recording = probe(model.train(), sphere(batch, size.width, seed=100 + seed))
        found.append(recording.profile("activation_grad", role="pre-activation").values)
    return np.array(found)


def growth(name: str, sigma_w2: float, batch: int, reduced: bool) -> float:
    """Factor of the gradient's mean square per layer."""
    slopes = [decades_per_layer(rms[EDGE:-EDGE], "backward") for rms in gradients(name, sigma_w2, batch, reduced)]
    return float(10.0 ** (2.0 * np.mean(slopes)))


def reproduce(reduced: bool = False) -> list[Row]:
    size = REDUCED if reduced else FULL
    layers = size.depth - 2 * EDGE

    def spread(kappa: float) -> float:  # of the slope of a random walk; 5/n a layer of ReLU, 2/n of none
        return 5.0 * math.sqrt(1.2 * kappa / size.width / layers / size.seeds)

    scaled = f"{size.depth} layers of {size.width} units, batch {size.batch}, {size.seeds} networks; random inputs"
    relu, tanh = (theory.card(name).batch_norm_rate for name in ("relu", "tanh"))
    because = "5 standard errors of the slope of a random walk, and 2/B of a finite batch"
    small = 16
    linear = (small - 2) / (small - 3)
    return [
        row(
            "ReLU: factor of the gradient's mean square per layer, at σ_w² = 2",
            published="π/(π − 1) = 1.467 for a large batch",
            theory=relu,
            measured=growth("relu", 2.0, size.batch, reduced),
            tolerance=(spread(5.0) + 2.0 / size.batch) * relu,
            because=because,
            scaled_down=scaled,
        ),
        row(
            "the same with weights three times as large",
            published="cannot be eliminated by tuning the initial weight variances",
            theory=relu,
            measured=growth("relu", 18.0, size.batch, reduced),
            tolerance=(spread(5.0) + 2.0 / size.batch) * relu,
            because=because,
            scaled_down=scaled,
        ),
        row(
            "tanh: the same factor",
            published="nor by adjusting the activation",
            theory=tanh,
            measured=growth("tanh", 1.0, size.batch, reduced),
            tolerance=(spread(5.0) + 2.0 / size.batch) * tanh,
            because=because,
            scaled_down=scaled,
        ),
        row(
            f"no activation, {small} samples: (B − 2)/(B − 3)",
            published="explodes in linear networks too",
            theory=linear,
            measured=growth("identity", 1.0, small, reduced),
            tolerance=spread(2.0) * linear,
            because="5 standard errors of the slope of a random walk",
            scaled_down=scaled.replace(f"batch {size.batch}", f"batch {small}"),
        ),
    ]


@styled
def figure(reduced: bool = False) -> Figure:
    size = REDUCED if reduced else FULL
    fig, (axes,) = panels(
        "Yang et al. 2019: BatchNorm",
        f"batch {size.batch}, {size.width} units; dashed: theory",
        "rms of the gradient, relative to the last layer",
    )
    layers = np.arange(1, size.depth + 1)
    for name, sigma_w2, colour in (("relu", 2.0, VERMILION), ("relu", 18.0, GREEN), ("tanh", 1.0, BLUE)):
        rms = gradients(name, sigma_w2, size.batch, reduced)[:, :-1].mean(axis=0)
        axes.plot(layers[:-1], rms / rms[-1], color=colour, label=f"{name}, σ_w² = {sigma_w2:g}")
        rate = theory.card(name).batch_norm_rate
        axes.plot(layers[:-1], rate ** ((layers[-2] - layers[:-1]) / 2), color=INK, linestyle=DASHED, linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("layer, from the input")
    axes.legend(loc="upper right")
    return fig
