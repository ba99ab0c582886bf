"""Glorot & Bengio (2010): five tanh layers of 1000 units, with the weights of then and with normalized ones.

Section 4.2 and figures 6 to 9. With U(±1/√n), σ_w² = 1/3, the back-propagated gradient falls from the top layer to
the bottom, with U(±√(6/(n + n))), σ_w² = 1, nearly not; the variance of the *weights'* gradients is nearly the same in
all layers either way, for it is that of the gradient times that of the activations, and one falls where the other
rises.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.papers.nets import linears
from benchmarks.papers.pictures import DASHED, panels
from benchmarks.papers.row import Row, row
from gradscope import probe, theory
from gradscope.experiments import SweepConfig, plain_network, sweep
from gradscope.recording import SweepCell
from gradscope.report._style import BLUE, INK, VERMILION, styled

CITATION = "Glorot & Bengio (2010), Understanding the difficulty of training deep feedforward neural networks, AISTATS"

Array = NDArray[np.float64]
CONFIG = Path(__file__).parents[2] / "configs" / "glorot2010.toml"
WEIGHTS = {"standard": ("torch_default", 1.0 / 3.0), "normalized": ("glorot_uniform", 1.0)}
HIDDEN = 5
GRADIENTS = {"standard": "falls from layer to layer (figure 7, top)", "normalized": "about equal (figure 7, bottom)"}
JACOBIANS = {"standard": "drops to 0.5", "normalized": "around 0.8"}


class Size(NamedTuple):
    width: int
    seeds: int
    inputs: int  # of the sweep
    batch: int  # of the weights' gradients, whose theory looks at every pair of inputs


FULL, REDUCED = Size(1000, 3, 64, 12), Size(256, 3, 32, 6)


class Found(NamedTuple):
    """Of one kind of weights; arrays have an entry for each hidden layer."""

    cell: SweepCell
    weight_grad: Array  # standard deviation, relative to the top hidden layer's
    weight_grad_expected: Array
    singular: Array  # mean singular value of the layer's Jacobian
    singular_expected: Array


def config(size: Size) -> SweepConfig:
    return SweepConfig.from_toml(CONFIG).replace(width=size.width, seeds=size.seeds, batch=size.inputs)


@functools.cache
def found(reduced: bool) -> dict[str, Found]:
    size = REDUCED if reduced else FULL
    cells = {cell.init: cell for cell in sweep(config(size)).cells}
    return {
        name: Found(cells[scheme], *_weight_gradients(size, scheme, sigma_w2), *_jacobians(size, scheme, sigma_w2))
        for name, (scheme, sigma_w2) in WEIGHTS.items()
    }


def _weight_gradients(size: Size, scheme: str, sigma_w2: float) -> tuple[Array, Array]:
    squares, expected = [], []
    for seed in range(size.seeds):
        settings = config(size).replace(batch=size.batch, seed=1)
        model, x, v = plain_network(settings, scheme, "tanh", HIDDEN + 1, size.width, seed)
        recording = probe(model, x, v, lambda out, v: (out * v).sum())
        squares.append(recording.profile("weight_grad", "rms").values[:HIDDEN] ** 2)
        mean_field = theory.propagate_batch(
            "tanh",
            HIDDEN + 1,
            weight_variance=sigma_w2 / size.width,
            fan_in=size.width,
            inputs=_gram(x),
            output_grad=_gram(v),
        )
        expected.append(mean_field.weight_grad[:HIDDEN])
    measured, curve = (np.sqrt(np.mean(of_seeds, axis=0)) for of_seeds in (squares, expected))
    return measured / measured[-1], curve / curve[-1]


def _gram(x: Tensor) -> Array:
    wide = x.double().numpy()
    products = wide @ wide.T / x.shape[1]
    return np.asarray((products + products.T) / 2.0)  # symmetric to the last digit


def _jacobians(size: Size, scheme: str, sigma_w2: float) -> tuple[Array, Array]:
    """Mean singular values of J = diag(f'(s)) W, s the layer's pre-activations for one input."""
    model, x, _ = plain_network(config(size).replace(batch=1), scheme, "tanh", HIDDEN + 1, size.width, seed=0)
    means, expected, length = [], [], 1.0
    with torch.no_grad():
        for layer in linears(model)[:HIDDEN]:
            x = torch.tanh(layer(x))
            means.append(torch.linalg.svdvals((1.0 - x.T**2) * layer.weight).mean().item())
            q = sigma_w2 * length
            expected.append(_mean_singular_value(sigma_w2, q))
            length = theory.second_moment("tanh", q)
    return np.array(means), np.array(expected)


def _mean_singular_value(sigma_w2: float, q: float) -> float:
    s = np.linspace(0.0, 2.0 * math.sqrt(sigma_w2), 81)  # 2 σ_w is the largest where all slopes are 1
    density = theory.jacobian_density("tanh", 1, s[1:], sigma_w2=sigma_w2, q=q)  # finite at 0
    return float(np.trapezoid(s * np.append(0.0, density), s))


def reproduce(reduced: bool = False) -> list[Row]:
    size, rows = REDUCED if reduced else FULL, []
    scaled = f"inputs N(0, 1) instead of images; {size.width} units, {size.seeds} networks"
    for name, one in found(reduced).items():
        expected = one.cell.expected
        assert expected is not None
        spread = max(expected.forward_var.max(), expected.backward_var.max())
        of_inputs = 5.0 * math.sqrt(spread / (size.inputs * size.seeds)) / 2.0 + 2.0 / size.width
        curve = 10.0 ** (expected.pre_grad - expected.pre_grad[HIDDEN - 1])[:HIDDEN]
        relative = one.cell.pre_grad[:, :HIDDEN] / one.cell.pre_grad[:, HIDDEN - 1 : HIDDEN]
        rows.append(
            row(
                f"{name} weights: standard deviation of the back-propagated gradient in layers 1 to 5, "
                "over that in layer 5",
                published=GRADIENTS[name],
                theory=curve,
                measured=relative.mean(axis=0),
                tolerance=of_inputs * curve,
                because="5 standard errors of inputs and networks by the finite-width theory, and 2/width",
                scaled_down=scaled,
            )
        )
        both = expected.forward_var.max() + expected.backward_var.max()
        rows.append(
            row(
                f"{name} weights: standard deviation of the weights' gradients in layers 1 to 5, over that in layer 5",
                published="almost the same in all layers (figure 8)",
                theory=one.weight_grad_expected,
                measured=one.weight_grad,
                tolerance=(5.0 * math.sqrt(both / (size.batch * size.seeds)) / 2.0 + 2.0 / size.width)
                * one.weight_grad_expected,
                because="5 standard errors, of activations and gradients together, and 2/width",
                scaled_down=f"{scaled}; a random gradient at the output instead of the loss's",
            )
        )
        lengths = 10.0 ** (2.0 * expected.pre[:HIDDEN])
        varied = [theory.jacobian_moments("tanh", 1, sigma_w2=1.0, q=q, weights="orthogonal") for q in lengths]
        of_slopes = np.sqrt([moments.relative_variance for moments in varied]) / math.sqrt(size.width) / 2.0
        follows = [
            math.log(theory.slope_moment("tanh", 1.01 * q) / theory.slope_moment("tanh", q)) / math.log(1.01)
            for q in lengths
        ]
        of_lengths = np.abs(follows) * np.sqrt(expected.forward_var[:HIDDEN]) / 2.0
        rows.append(
            row(
                f"{name} weights: mean singular value of each layer's Jacobian, layers 1 to 5",
                published=JACOBIANS[name],
                theory=one.singular_expected,
                measured=one.singular,
                tolerance=(5.0 * (of_slopes + of_lengths) + 4.0 / size.width) * one.singular_expected,
                because="5 standard deviations of the mean slope of `width` units and of their length",
                scaled_down=f"{scaled.rpartition(',')[0]}, one network; five layers from the first, no training",
            )
        )
    return rows


@styled
def figure(reduced: bool = False) -> Figure:
    size, layers = REDUCED if reduced else FULL, np.arange(1, HIDDEN + 1)
    fig, axes = panels(
        "Glorot & Bengio 2010: tanh, five hidden layers",
        f"{size.width} units; dots: measured here; dashed: mean-field theory",
        "gradient, relative to the top layer",
        "gradient of the weights, likewise",
        "mean singular value of the Jacobian",
    )
    for (name, one), colour in zip(found(reduced).items(), (VERMILION, BLUE), strict=True):
        expected = one.cell.expected
        assert expected is not None
        relative = one.cell.pre_grad[:, :HIDDEN] / one.cell.pre_grad[:, HIDDEN - 1 : HIDDEN]
        curves = (
            (relative.mean(axis=0), 10.0 ** (expected.pre_grad - expected.pre_grad[HIDDEN - 1])[:HIDDEN]),
            (one.weight_grad, one.weight_grad_expected),
            (one.singular, one.singular_expected),
        )
        for panel, (measured, curve) in zip(axes, curves, strict=True):
            panel.plot(layers, curve, color=INK, linestyle=DASHED, linewidth=1.2)
            panel.plot(layers, measured, "o", color=colour, label=f"{name} weights")
    for panel in axes:
        panel.set_ylim(0.0, 1.3)
        panel.set_xticks(layers)
        panel.set_xlabel("hidden layer, from the input")
    axes[0].legend(loc="upper left")
    return fig
