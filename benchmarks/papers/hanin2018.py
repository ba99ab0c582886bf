"""Hanin (2018): in a ReLU network of finite width the logarithm of a gradient has a variance of 5·Σ 1/n.

Theorem 1; Hanin & Rolnick (2018), theorem 1, for the lengths. The mean square is kept by He's weights, but the
networks spread about it log-normally, by the sum of the reciprocals of the widths alone: two networks with the same sum
are alike, whatever their shapes, and most of them lie below the mean, by half the variance in the logarithm.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.papers.nets import generator
from benchmarks.papers.pictures import DASHED, panels
from benchmarks.papers.row import Row, row
from gradscope import theory
from gradscope.experiments import SweepConfig, sweep
from gradscope.recording import SweepCell
from gradscope.report._style import BLUE, INK, VERMILION, styled

CITATION = (
    "Hanin (2018), Which neural net architectures give rise to exploding and vanishing gradients?, NeurIPS; "
    "Hanin & Rolnick (2018), How to start training: the effect of initialization and architecture, NeurIPS"
)

Array = NDArray[np.float64]


class Size(NamedTuple):
    width: int
    depth: int
    networks: int


FULL, REDUCED = Size(100, 50, 1500), Size(48, 24, 800)


@functools.cache
def measured(reduced: bool) -> SweepCell:
    """One input in each of many networks."""
    size = REDUCED if reduced else FULL
    config = SweepConfig(
        init="he_normal", activation="relu", depth=size.depth, width=size.width, batch=1, seeds=size.networks
    )
    return sweep(config).cells[0]


@functools.cache
def uneven(reduced: bool) -> Array:
    """ln of the last layer's mean square over the expected one, `(networks,)`: widths 3/4 and 3/2 of it in turns."""
    size, numbers = REDUCED if reduced else FULL, generator(3)
    widths, found = uneven_widths(size), []
    for first in range(0, size.networks, 50):
        count = min(50, size.networks - first)
        x = torch.ones(count, widths[0], 1)  # on the sphere; the weights turn it anywhere
        for layer, (into, out) in enumerate(itertools.pairwise(widths)):
            weights = torch.randn(count, out, into, generator=numbers) * math.sqrt(2.0 / into)
            x = weights @ (x.relu() if layer else x)
        found.append(torch.log(x.double().square().mean((1, 2)) / 2.0))
    return torch.cat(found).numpy()


def uneven_widths(size: Size) -> list[int]:
    """Of the input, and of the layers: pairs of 3/4 and 3/2 of the width, whose reciprocals sum to 2/width."""
    narrow, wide = size.width * 3 // 4, size.width * 3 // 2
    return [wide, *[narrow, wide] * (size.depth // 2)]


def expected(reduced: bool) -> theory.Expectation:
    size = REDUCED if reduced else FULL
    return theory.propagate("relu", size.depth, weight_variance=2.0 / size.width, fan_in=size.width)


def expected_uneven(reduced: bool) -> float:
    widths = np.array(uneven_widths(REDUCED if reduced else FULL), dtype=np.float64)
    known = theory.propagate(
        "relu", len(widths) - 1, weight_variance=2.0 / widths[:-1], fan_in=widths[:-1], fan_out=widths[1:]
    )
    return float(known.forward_var[-1])


def logs(reduced: bool) -> tuple[Array, Array]:
    """ln of measured over expected mean square: of the last pre-activation, of the first one's gradient."""
    cell, curve = measured(reduced), expected(reduced)
    return (
        2.0 * np.log(cell.pre[:, -1]) - 2.0 * math.log(10.0) * curve.pre[-1],
        2.0 * np.log(cell.pre_grad[:, 0]) - 2.0 * math.log(10.0) * curve.pre_grad[0],
    )


def reproduce(reduced: bool = False) -> list[Row]:
    size, curve = REDUCED if reduced else FULL, expected(reduced)
    forward, backward = logs(reduced)
    known = np.array([curve.forward_var[-1], curve.backward_var[0]])
    sampling, narrow = 5.0 * math.sqrt(2.0 / (size.networks - 1)), 5.0 / size.width
    scaled = f"{size.depth} layers of {size.width} units, {size.networks} networks, one input each"
    because = "5 standard errors of a variance, and 5/n of it, the next order in 1/n"
    moments = (forward - forward.mean()) / forward.std()
    return [
        row(
            "variance of the logarithm of the last layer's mean square, and of the first layer's gradient",
            published="5·Σ 1/n, exponentially large moments in it",
            theory=known,
            measured=[forward.var(ddof=1), backward.var(ddof=1)],
            tolerance=(sampling + narrow) * known,
            because=because,
            scaled_down=scaled,
        ),
        row(
            "the same of a network whose widths alternate, with the same Σ 1/n",
            published="depends on the widths by Σ 1/n alone",
            theory=expected_uneven(reduced),
            measured=uneven(reduced).var(ddof=1),
            tolerance=(sampling + narrow) * expected_uneven(reduced),
            because=because,
            scaled_down=f"widths {' and '.join(map(str, uneven_widths(size)[1:3]))} in turns, {size.networks} networks",
        ),
        row(
            "mean of those logarithms, the mean square itself being kept: −½ of the variance",
            published="log-normal in the limit",
            theory=-known / 2.0,
            measured=[forward.mean(), backward.mean()],
            tolerance=5.0 * np.sqrt(known / size.networks) + narrow * known / 2.0 + 1.0 / size.width,
            because="5 standard errors of a mean, and the next order in 1/n",
            scaled_down=scaled,
        ),
        row(
            "skewness of the logarithm: 0 of a log-normal",
            published="log-normal in the limit",
            theory=0.0,
            measured=float(np.mean(moments**3)),
            tolerance=5.0 * math.sqrt(6.0 / size.networks) + 2.0 / math.sqrt(size.width * size.depth),
            because="5 standard errors of a skewness, and what is left of each layer's own: of the order 1/√(nL)",
            scaled_down=scaled,
        ),
    ]


@styled
def figure(reduced: bool = False) -> Figure:
    size, curve = REDUCED if reduced else FULL, expected(reduced)
    fig, axes = panels(
        "Hanin 2018: networks of finite width spread log-normally",
        f"ReLU, He's weights, {size.width} units, {size.networks} networks; dashed: theory",
        f"ln of the mean square in layer {size.depth}, over its mean",
        "variance of ln of the mean square",
    )
    forward, variance = logs(reduced)[0], float(curve.forward_var[-1])
    axes[0].hist(forward, bins=40, density=True, color=BLUE, alpha=0.5)
    at = np.linspace(forward.min(), forward.max(), 200)
    normal = np.exp(-((at + variance / 2.0) ** 2) / (2.0 * variance)) / math.sqrt(2.0 * math.pi * variance)
    axes[0].plot(at, normal, color=INK, linestyle=DASHED)
    axes[0].axvline(0.0, color=VERMILION, linewidth=1)
    axes[0].text(0.03, 0.95, f"{np.mean(forward < 0):.0%} lie below the mean", transform=axes[0].transAxes, va="top")
    layers, cell = np.arange(1, size.depth + 1), measured(reduced)
    axes[1].plot(layers, (2.0 * np.log(cell.pre)).var(axis=0, ddof=1), color=BLUE, label="signal")
    axes[1].plot(layers, curve.forward_var, color=INK, linestyle=DASHED, linewidth=1)
    axes[1].plot(layers, (2.0 * np.log(cell.pre_grad)).var(axis=0, ddof=1), color=VERMILION, label="gradient")
    axes[1].plot(layers, curve.backward_var, color=INK, linestyle=DASHED, linewidth=1)
    axes[1].set_xlabel("layer")
    axes[1].legend(loc="upper center")
    return fig
