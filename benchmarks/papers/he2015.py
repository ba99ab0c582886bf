"""He et al. (2015): rectifiers at 22 and 30 layers, under Xavier's variance and under theirs.

Section 2.2 and figures 2 and 3. Xavier's variance, 1/n, halves a rectifier network's mean square at each layer, so that
over L layers the signal is 2^(−L/2) of what He's variance, 2/n, gives: at 22 layers both learn, at 30 only He's does.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.papers.nets import DIGITS, generator, plain, train
from benchmarks.papers.pictures import panels
from benchmarks.papers.row import Row, row
from gradscope import init, theory
from gradscope.report._style import BLUE, INK, VERMILION, styled

CITATION = "He, Zhang, Ren & Sun (2015), Delving deep into rectifiers, ICCV"

SCHEMES = {"Xavier": "glorot_normal", "He": "he_normal"}
RATES = {(22, "Xavier"): 0.01, (22, "He"): 0.01, (30, "Xavier"): 0.01, (30, "He"): 0.003}
"""So that He's networks train steadily; Xavier at 30 layers has the higher one, which does not help it."""
MODEL_B = (64, 128, 128, 256, 256, 512, 512, 512, 512)
"""Filters of conv2 to conv10 of VGG's model B (Simonyan & Zisserman 2014)."""


class Size(NamedTuple):
    width: int
    judged: dict[int, int]  # by depth: the step at which the loss is looked at
    steps: dict[int, int]  # and how many there are, for the picture


FULL = Size(128, {22: 1000, 30: 300}, {22: 1000, 30: 600})
REDUCED = Size(64, {22: 700, 30: 400}, {22: 700, 30: 400})


@functools.cache
def trained(depth: int, scheme: str, reduced: bool) -> tuple[float, ...]:
    """The loss of each step's batch."""
    size = REDUCED if reduced else FULL
    model = plain([64, *[size.width] * (depth - 1), 10], nn.ReLU, bias=True)
    init.initialize(model, SCHEMES[scheme], generator=generator(0))
    return tuple(train(model, steps=size.steps[depth], rate=RATES[depth, scheme]))


def loss_reached(depth: int, scheme: str, reduced: bool) -> float:
    """Median over the quarter of the steps before the one that is judged: momentum makes single batches jump."""
    judged = (REDUCED if reduced else FULL).judged[depth]
    return float(np.median(trained(depth, scheme, reduced)[judged * 3 // 4 : judged]))


def _input_gradient(model: nn.Module, x: Tensor) -> float:
    """Rms of the gradient that reaches the input, of one N(0, 1) at the output."""
    x = x.clone().requires_grad_()
    out = model(x)
    (out * torch.randn(out.shape, generator=generator(2))).sum().backward()
    assert x.grad is not None
    return x.grad.double().square().mean().sqrt().item()


def xavier_over_he(depth: int) -> float:
    """The gradient under Xavier over that under He, of the same draws."""
    width, found = 256, {}
    for name, scheme in SCHEMES.items():
        model = plain([width] * (depth + 1), nn.ReLU)
        init.initialize(model, scheme, generator=generator(0))
        found[name] = _input_gradient(model, torch.randn(8, width, generator=generator(1)))
    return found["Xavier"] / found["He"]


def model_b() -> float:
    """The gradient at conv2's input, of one at conv10's output: weights of std 0.01 over He's, the same draws."""
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise([64, *MODEL_B]):
        layers += [nn.Conv2d(into, out, 3, padding=1, padding_mode="circular", bias=False), nn.ReLU()]
    model = nn.Sequential(*layers)
    init.initialize(model, init.VarianceScaling(2.0, "fan_out", "normal"), generator=generator(0))
    x = torch.randn(1, 64, 4, 4, generator=generator(1))
    theirs = _input_gradient(model, x)
    with torch.no_grad():
        for layer in layers[::2]:
            assert isinstance(layer, nn.Conv2d)
            layer.weight *= 0.01 / math.sqrt(2.0 / (9 * layer.out_channels))
    return _input_gradient(model, x) / theirs


def reproduce(reduced: bool = False) -> list[Row]:
    size = REDUCED if reduced else FULL
    guessing = math.log(10.0)
    steps = f"{size.judged[22]} steps at 22 layers and {size.judged[30]} at 30"
    scaled = f"{DIGITS} instead of ImageNet; no convolutions, {size.width} units; {steps}"
    halves = theory.MeanField("relu", 1.0).chi(1.0) / theory.MeanField("relu", 2.0).chi(1.0)
    return [
        row(
            "30 layers, Xavier: the loss is still that of guessing, ln 10, when He's network has learned",
            published="stalls (figure 3)",
            theory=guessing,
            measured=loss_reached(30, "Xavier", reduced),
            tolerance=0.005,
            because="the classes' own frequencies, to which the last biases adapt",
            scaled_down=scaled,
        ),
        row(
            "30 layers, He: the same network learns",
            published="converges (figure 3)",
            theory=guessing / 10.0,
            measured=loss_reached(30, "He", reduced),
            tolerance=0.0,
            because="a tenth of the loss of guessing counts as learned",
            scaled_down=scaled,
            relation="≤",
        ),
        row(
            "22 layers, Xavier and He: both learn",
            published="both converge, He's earlier (figure 2)",
            theory=[guessing / 2.0, guessing / 10.0],
            measured=[loss_reached(22, "Xavier", reduced), loss_reached(22, "He", reduced)],
            tolerance=0.0,
            because="half of the loss of guessing for Xavier, which begins later, a tenth for He",
            scaled_down=scaled,
            relation="≤",
        ),
        row(
            "the gradient under Xavier over that under He, 22 and 30 layers",
            published="1/√2^L: 4.9e−4 and 3.1e−5",
            theory=[halves ** (depth / 2) for depth in (22, 30)],
            measured=[xavier_over_he(depth) for depth in (22, 30)],
            tolerance=1e-4 * halves**11 * np.array([1.0, halves**4]),
            because="1e−4 of it: float32 rounds each of the products, 30 both ways, to 6e−8 a term",
            scaled_down="nothing: 256 units, where the ratio does not depend on the width",
        ),
        row(
            "weights of standard deviation 0.01 instead of He's: the gradient from conv10 to conv2 of model B",
            published="1/(5.9 × 4.2² × 2.9² × 2.1⁴) = 1/(1.7 × 10⁴)",
            theory=math.prod(0.01 / math.sqrt(2.0 / (9 * filters)) for filters in MODEL_B),
            measured=model_b(),
            tolerance=1e-4 / 1.67e4,
            because="1e−4 of it: float32",
            scaled_down="no pooling, pictures of 4 × 4: neither changes the ratio",
        ),
    ]


@styled
def figure(reduced: bool = False) -> Figure:
    size = REDUCED if reduced else FULL
    fig, axes = panels(
        "He et al. 2015: rectifiers",
        f"loss of each batch, running mean of 20; {DIGITS}, {size.width} units",
        "22 layers",
        "30 layers",
    )
    for panel, depth in zip(axes, (22, 30), strict=True):
        for name, colour in (("Xavier", VERMILION), ("He", BLUE)):
            losses = np.convolve(trained(depth, name, reduced), np.full(20, 1 / 20), "valid")
            panel.plot(np.arange(losses.size) + 20, losses, color=colour, label=name)
        panel.axhline(math.log(10.0), color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        panel.text(size.steps[depth], math.log(10.0) + 0.06, "guessing: ln 10", ha="right", fontsize=8)
        panel.set_ylim(0.0, 3.0)
        panel.set_xlabel("step")
        panel.legend(loc="lower left")
    return fig
