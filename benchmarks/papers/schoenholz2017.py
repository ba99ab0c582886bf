"""Schoenholz et al. (2017): a plain tanh network can be trained to about six times its correlation depth, 6 ξ_c.

Sections 3 to 5, figure 5. With biases of variance 0.05 the critical σ_w² is 1.76, where gradients neither vanish nor
explode and ξ_c diverges; away from it two inputs become alike (ordered phase) or strangers (chaotic phase) within some
ξ_c layers, and what is deeper than a few of those does not learn.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from benchmarks.papers.nets import DIGITS, draw, plain, sphere, train, training_accuracy
from benchmarks.papers.pictures import DASHED, panels
from benchmarks.papers.row import Row, row
from gradscope import probe, theory
from gradscope.report._style import BLUE, INK, VERMILION, styled

CITATION = "Schoenholz, Gilmer, Ganguli & Sohl-Dickstein (2017), Deep information propagation, ICLR"

Array = NDArray[np.float64]
SIGMA_B2 = 0.05
SLOPES_AT = (1.5, 1.6, 1.7, 1.8, 1.9, 2.0)
"""σ_w² at which the gradient's slope is measured."""
ORDERED = (1.0, 1.3)
"""σ_w² at which ξ_c is measured and networks are trained."""
RATE = 0.02


class Size(NamedTuple):
    slope_width: int
    slope_depth: int
    slope_seeds: int
    pair_width: int
    pair_seeds: int
    width: int  # of the networks that are trained
    steps: int
    trained: tuple[float, ...]
    grid: tuple[tuple[float, ...], tuple[int, ...]]  # of the picture: σ_w² and depths


FULL = Size(300, 100, 6, 300, 16, 100, 300, ORDERED, ((1.0, 1.3, 1.76, 3.0), (10, 20, 40, 80)))
REDUCED = Size(160, 100, 6, 200, 10, 100, 300, ORDERED[:1], ((1.0, 1.76, 3.0), (10, 30)))


@functools.cache
def scales(sigma_w2: float) -> theory.DepthScales:
    return theory.MeanField("tanh", sigma_w2, SIGMA_B2).depth_scales()


def critical() -> theory.CriticalPoint:
    return next(point for point in theory.critical_points("tanh", SIGMA_B2) if point.q < 10.0)


def _network(width: int, depth: int, sigma_w2: float, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    return draw(plain([width] * (depth + 1), nn.Tanh, bias=True, dtype=dtype), sigma_w2, SIGMA_B2, seed=seed)


def _inputs(count: int, width: int, sigma_w2: float, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Of the mean square whose pre-activations begin at the length that is kept."""
    return sphere(count, width, (scales(sigma_w2).q - SIGMA_B2) / sigma_w2, seed=seed, dtype=dtype)


@functools.cache
def gradient_slopes(reduced: bool) -> Array:
    """Decades per layer of the gradient's rms at each of SLOPES_AT, mean over networks of their own."""
    size = REDUCED if reduced else FULL
    found = []
    for i, sigma_w2 in enumerate(SLOPES_AT):
        of_seeds = []
        for seed in range(i * size.slope_seeds, (i + 1) * size.slope_seeds):
            model = _network(size.slope_width, size.slope_depth, sigma_w2, seed)
            recording = probe(model, _inputs(4, size.slope_width, sigma_w2, 1000 + seed))
            of_seeds.append(recording.profile("activation_grad", role="pre-activation").decades_per_layer)
        found.append(float(np.mean(of_seeds)))
    return np.array(found)


def measured_critical(reduced: bool) -> tuple[float, float]:
    """σ_w² at which a parabola through the slopes is 0, and its standard error."""
    size, point = REDUCED if reduced else FULL, critical()
    parabola = np.polynomial.Polynomial.fit(SLOPES_AT, gradient_slopes(reduced), 2)
    root = min(parabola.roots().real, key=lambda x: abs(x - np.mean(SLOPES_AT)))
    known = theory.propagate(
        "tanh",
        size.slope_depth,
        weight_variance=point.sigma_w2 / size.slope_width,
        fan_in=size.slope_width,
        bias_variance=SIGMA_B2,
        input_mean_square=(point.q - SIGMA_B2) / point.sigma_w2,
    )
    # A random walk's slope over L steps has the variance 1.2·(variance of all steps)/L²; three coefficients from six
    # points leave a fitted value √(3/6) of one point's error.
    walk = 1.2 * float(known.backward_var[0]) / size.slope_depth**2 / size.slope_seeds
    error = math.sqrt(walk / 2.0) / (2.0 * math.log(10.0))
    return float(root), error / abs(float(parabola.deriv()(root)))


@functools.cache
def correlations(sigma_w2: float, reduced: bool) -> Array:
    """1 − c of two inputs in layer 1, 2, …, `(seeds, 12 ξ_c)`."""
    size = REDUCED if reduced else FULL
    depth, found = math.ceil(12 * scales(sigma_w2).xi_c), []
    for seed in range(size.pair_seeds):
        model = _network(size.pair_width, depth, sigma_w2, seed, torch.float64)
        x, of_layers = _inputs(2, size.pair_width, sigma_w2, 500 + seed, torch.float64), []
        with torch.no_grad():
            for module in model.children():
                x = module(x)
                if isinstance(module, nn.Linear):
                    of_layers.append(1.0 - torch.cosine_similarity(x[:1], x[1:]).item())
        found.append(of_layers)
    return np.array(found)


def measured_xi_c(sigma_w2: float, reduced: bool) -> tuple[float, float]:
    """From the slope of ln(1 − c) between 4 and 12 ξ_c, where c is near its fixed point; and its standard error."""
    logs = np.log(correlations(sigma_w2, reduced))[:, math.ceil(4 * scales(sigma_w2).xi_c) :]
    slopes = -np.polyfit(np.arange(logs.shape[1]), logs.T, 1)[0]
    xi = 1.0 / slopes.mean()
    return float(xi), float(xi**2 * slopes.std(ddof=1) / math.sqrt(len(slopes)))


@functools.cache
def accuracy(sigma_w2: float, depth: int, reduced: bool) -> float:
    """Training accuracy of a network of so many layers after some steps of SGD."""
    size = REDUCED if reduced else FULL
    model = plain([64, *[size.width] * (depth - 1), 10], nn.Tanh, bias=True)
    draw(model, sigma_w2, SIGMA_B2, seed=0)
    train(model, steps=size.steps, rate=RATE, momentum=0.0)
    return training_accuracy(model)


def reproduce(reduced: bool = False) -> list[Row]:
    size = REDUCED if reduced else FULL
    root, error = measured_critical(reduced)
    xi = np.array([measured_xi_c(sigma_w2, reduced) for sigma_w2 in ORDERED])
    limits = [scales(sigma_w2).trainable_depth for sigma_w2 in size.trained]
    scaled = f"{DIGITS} instead of MNIST, {size.width} units, {size.steps} steps; σ_w² = " + (
        " and ".join(f"{sigma_w2:g}" for sigma_w2 in size.trained)
    )
    return [
        row(
            "critical σ_w² at σ_b² = 0.05",
            published="1.76",
            theory=critical().sigma_w2,
            measured=root,
            tolerance=5.0 * error,
            because="5 standard errors of the root of a parabola through six slopes",
            scaled_down=f"{size.slope_depth} layers of {size.slope_width} units, {size.slope_seeds} networks a point",
        ),
        row(
            "correlation depth ξ_c at σ_w² = 1 and 1.3, from two inputs that become alike",
            published="finite away from criticality, where it diverges",
            theory=[scales(sigma_w2).xi_c for sigma_w2 in ORDERED],
            measured=xi[:, 0],
            tolerance=5.0 * xi[:, 1],
            because=f"5 standard errors over {size.pair_seeds} networks, measured",
            scaled_down=f"{size.pair_width} units",
        ),
        row(
            "accuracy on the training images at 0.9 × 6 ξ_c layers: it learns",
            published="trainable to about 6 ξ_c (figure 5)",
            theory=np.full(len(limits), 0.9),
            measured=[accuracy(s, round(0.9 * d), reduced) for s, d in zip(size.trained, limits, strict=True)],
            tolerance=0.0,
            because="nine of ten told right counts as learned",
            scaled_down=scaled,
            relation="≥",
        ),
        row(
            "accuracy at 3 × 6 ξ_c layers: it does not",
            published="not beyond",
            theory=np.full(len(limits), 0.3),
            measured=[accuracy(s, round(3.0 * d), reduced) for s, d in zip(size.trained, limits, strict=True)],
            tolerance=0.0,
            because="guessing gives 0.1; the border is no line: it moves with the number of steps",
            scaled_down=scaled,
            relation="≤",
        ),
    ]


@styled
def figure(reduced: bool = False) -> Figure:
    size = REDUCED if reduced else FULL
    fig, axes = panels(
        "Schoenholz et al. 2017: tanh, σ_b² = 0.05",
        f"markers and shades: measured here; dashed: theory; {size.steps} steps on {DIGITS}",
        "training accuracy, and 6 ξ_c",
        "two inputs become alike: 1 − c",
    )
    wide, deep = size.grid
    for sigma_w2 in wide:
        for depth in deep:
            share = accuracy(sigma_w2, depth, reduced)
            axes[0].plot([sigma_w2], [depth], "s", markersize=13, color=str(1.0 - 0.85 * share))
            ink = "white" if share > 0.6 else INK
            axes[0].text(
                sigma_w2, depth, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5, color=ink, zorder=3
            )
    every = np.concatenate([np.linspace(0.9, 1.74, 40), np.linspace(1.78, 4.2, 60)])
    depths = [scales(float(sigma_w2)).trainable_depth for sigma_w2 in every]
    axes[0].plot(every, depths, color=VERMILION, linestyle=DASHED, linewidth=1.5, label="6 ξ_c")
    axes[0].set_ylim(0.0, 1.12 * deep[-1])
    axes[0].set_xlabel("σ_w²")
    axes[0].set_ylabel("layers")
    axes[0].legend(loc="upper right")
    for sigma_w2, colour in zip(ORDERED, (BLUE, VERMILION), strict=True):
        seen, xi = correlations(sigma_w2, reduced).mean(axis=0), scales(sigma_w2).xi_c
        layers = np.arange(1, seen.size + 1)
        near = layers >= 4 * xi
        axes[1].plot(layers, seen, ".", color=colour, label=f"σ_w² = {sigma_w2:g}, ξ_c = {xi:.1f}")
        line = seen[near][0] * np.exp(-(layers[near] - layers[near][0]) / xi)
        axes[1].plot(layers[near], line, color=INK, linestyle=DASHED, linewidth=1.2)
    axes[1].set_yscale("log")
    axes[1].set_xlabel("layer")
    axes[1].legend(loc="upper right")
    return fig
