"""Klambauer et al. (2017): SELU draws mean and variance of the activations to (0, 1), at any depth.

Section 2. Under LeCun's variance the map of (mean, variance) from one layer to the next has the fixed
point (0, 1), where its Jacobian's largest singular value is 0.7877 < 1. The constants are those that make it so:

    α = −√(2/π)/(√e·erfc(1/√2) − 1),   λ = 1/√(1/2 + α²(e²Φ(−2) − 2√e Φ(−1) + 1/2))
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

from benchmarks.papers.nets import draw, plain, sphere
from benchmarks.papers.pictures import DASHED, panels
from benchmarks.papers.row import Row, row
from gradscope import activations, probe, theory
from gradscope.experiments import SweepConfig, sweep
from gradscope.recording import decades_per_layer
from gradscope.report._style import BLUE, GREEN, INK, VERMILION, styled

CITATION = "Klambauer, Unterthiner, Mayr & Hochreiter (2017), Self-normalizing neural networks, NeurIPS"

Array = NDArray[np.float64]
STARTS = (0.25, 1.0, 4.0)
"""Mean squares of the inputs."""
DEPTH = 50


class Size(NamedTuple):
    width: int
    seeds: int


FULL, REDUCED = Size(1000, 6), Size(256, 4)


@functools.cache
def passes(reduced: bool) -> tuple[Array, Array]:
    """Mean and rms of the activations, `(starts, seeds, layers)`."""
    size = REDUCED if reduced else FULL
    found = np.empty((2, len(STARTS), size.seeds, DEPTH - 1))
    for seed in range(size.seeds):
        model = draw(plain([size.width] * (DEPTH + 1), nn.SELU), 1.0, seed=seed)
        for i, start in enumerate(STARTS):
            recording = probe(model, sphere(16, size.width, start, seed=100 + seed))
            for j, stat in enumerate(("mean", "rms")):
                found[j, i, seed] = recording.profile("activation", stat, role="activation").values
    return found[0], found[1]


def expected(start: float, width: int) -> theory.Expectation:
    return theory.propagate("selu", DEPTH, weight_variance=1.0 / width, fan_in=width, input_mean_square=start)


def moment_map() -> tuple[float, float]:
    """d mean/d variance and d variance/d variance of the activations at (0, 1); by the mean nothing changes."""
    selu = activations.get("selu")

    def slope(power: int) -> float:  # d E[f^k(√ν z)]/dν at ν = 1 is E[f^k (z² − 1)]/2
        return theory.expect(lambda z: selu.function(z) ** power * (z * z - 1.0), 1.0, selu.kinks) / 2.0

    return slope(1), slope(2) - 2.0 * theory.expect(selu.function, 1.0, selu.kinks) * slope(1)


def measured_map(reduced: bool) -> tuple[float, float]:
    """The largest singular value of the map of one layer of drawn weights, and its standard error."""
    size = REDUCED if reduced else FULL
    layer = draw(plain([size.width] * 2, nn.SELU, dtype=torch.float64), 1.0, seed=7)
    with torch.no_grad():
        pre = layer(sphere(512, size.width, seed=8, dtype=torch.float64))
    variance = torch.ones((), dtype=torch.float64, requires_grad=True)
    out = torch.nn.functional.selu(variance.sqrt() * pre)
    slopes = [torch.autograd.grad(m, variance, retain_graph=True)[0] for m in (out.mean(), out.var(correction=0))]
    f, point = out.detach(), pre.clone().requires_grad_()
    (slope,) = torch.autograd.grad(torch.nn.functional.selu(point).sum(), point)
    each = (f * slope * pre).std().item() / math.sqrt(f.numel())
    # Units are independent; inputs are so but for products of 1/√n, which add inputs/n to the variance.
    return torch.stack(slopes).norm().item(), each * math.sqrt(1.0 + len(pre) / size.width)


def constants() -> tuple[float, float]:
    """λ and α from the conditions E[f] = 0 and E[f²] = 1, by error functions alone."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2.0))

    alpha = -math.sqrt(2.0 / math.pi) / (math.exp(0.5) * math.erfc(1.0 / math.sqrt(2.0)) - 1.0)
    below = math.exp(2.0) * phi(-2.0) - 2.0 * math.exp(0.5) * phi(-1.0) + 0.5
    return 1.0 / math.sqrt(0.5 + alpha**2 * below), alpha


def reproduce(reduced: bool = False) -> list[Row]:
    size = REDUCED if reduced else FULL
    means, rms = passes(reduced)
    curves = [expected(start, size.width) for start in STARTS]
    spread = max(curve.forward_var[-2] for curve in curves)
    last = np.array([10.0 ** curve.act[-2] for curve in curves])
    singular, error = measured_map(reduced)
    far = torch.nn.functional.selu(torch.tensor([1.0, -200.0], dtype=torch.float64)).tolist()
    cell = sweep(
        SweepConfig(init="lecun_normal", activation="selu", depth=DEPTH, width=size.width, batch=16, seeds=size.seeds)
    ).cells[0]
    assert cell.expected is not None
    away = float(cell.expected.backward_var[0])
    scaled = f"{DEPTH} layers of {size.width} units, {size.seeds} networks"
    return [
        row(
            "λ and α of SELU, as torch has them",
            published="1.0507 and 1.6733",
            theory=constants(),
            measured=[far[0], -far[1] / far[0]],
            tolerance=1e-12,
            because="float64",
            scaled_down="nothing",
        ),
        row(
            "rms of the activations of layer 49, from inputs of mean square 1/4, 1 and 4",
            published="variance 1 attracts",
            theory=last,
            measured=rms[:, :, -1].mean(axis=1),
            tolerance=5.0 * math.sqrt(spread / size.seeds) / 2.0 + 2.0 / size.width,
            because="5 standard errors over networks by the finite-width theory, and 2/width",
            scaled_down=scaled,
        ),
        row(
            "mean of the activations of layer 49, from the same inputs",
            published="mean 0 attracts",
            theory=np.zeros(len(STARTS)),
            measured=means[:, :, -1].mean(axis=1),
            tolerance=5.0 / math.sqrt(size.width * size.seeds),
            because="5 standard errors of a mean over `width` units of variance 1",
            scaled_down=scaled,
        ),
        row(
            "largest singular value of the Jacobian of the map of (mean, variance) at (0, 1)",
            published="0.7877 < 1: attracting (section 2)",
            theory=math.hypot(*moment_map()),
            measured=singular,
            tolerance=5.0 * error,
            because="5 standard errors over units and inputs",
            scaled_down=f"one layer of {size.width} units, 512 inputs",
        ),
        row(
            "the gradient's growth, decades of rms per layer",
            published="vanishing and exploding gradients are impossible (abstract)",
            theory=decades_per_layer(10.0**cell.expected.pre_grad, "backward"),
            measured=cell.backward_decades,
            tolerance=5.0 * math.sqrt(1.2 * away / DEPTH**2 / size.seeds) / (2.0 * math.log(10.0)) * 1.25,
            because="5 standard errors of the slope of a random walk, and of a median; it does grow, × 1.0716 in "
            "mean square a layer: 32-fold over 50",
            scaled_down=scaled,
        ),
    ]


@styled
def figure(reduced: bool = False) -> Figure:
    size, layers = REDUCED if reduced else FULL, np.arange(1, DEPTH)
    means, rms = passes(reduced)
    fig, axes = panels(
        "Klambauer et al. 2017: SELU under LeCun's variance",
        f"{size.width} units, mean of {size.seeds} networks; dashed: theory",
        "mean square of the activations",
        "their mean",
    )
    for i, (start, colour) in enumerate(zip(STARTS, (BLUE, GREEN, VERMILION), strict=True)):
        curve = expected(start, size.width)
        axes[0].plot(layers, (rms[i] ** 2).mean(axis=0), color=colour, label=f"from inputs of {start:g}")
        axes[0].plot(layers, 10.0 ** (2.0 * curve.act[:-1]), color=INK, linestyle=DASHED, linewidth=1)
        axes[1].plot(layers, means[i].mean(axis=0), color=colour)
    axes[0].set_yscale("log")
    axes[0].legend(loc="upper right")
    axes[1].set_ylim(-0.3, 0.3)
    for panel in axes:
        panel.set_xlabel("layer")
    return fig
