"""Zhang et al. (2019): Fixup's first update does not depend on how many residual branches there are.

Sections 2 and 3. L branches x + B relu(A x): He's weights treble the stream's mean square at each, q' = 3 q. Fixup has
A = He·L^(−1/2), B = 0: the stream is kept, and a step of SGD of rate η with the gradients g_b of the last stream moves
it by

    −η Σ_b g_b K_ab,   K_ab = Σ_l relu(A_l x_a)·relu(A_l x_b) = n·2·E[relu(u_a) relu(u_b)]

whatever L is, where with B = 0 alone (zero-gamma, SkipInit) it is L times that.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.papers.nets import generator, sphere
from benchmarks.papers.pictures import DASHED, panels
from benchmarks.papers.row import Row, row
from gradscope import init, probe, theory
from gradscope.recording import decades_per_layer
from gradscope.report._style import BLUE, INK, VERMILION, styled

CITATION = "Zhang, Dauphin & Ma (2019), Fixup initialization: residual learning without normalization, ICLR"

Array = NDArray[np.float64]
CLASSES, BATCH = 10, 16
SMALL = 1e-6
"""A rate at which a step is its first order: the second is η·L times as large."""
STREAM_DEPTH = 50


class Size(NamedTuple):
    width: int
    branches: tuple[int, ...]
    seeds: int


FULL, REDUCED = Size(128, (10, 100, 400), 4), Size(96, (10, 60), 3)


class Branch(nn.Module):
    """x + B relu(A x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.relu = nn.Linear(width, width, bias=False), nn.ReLU()
        self.leave = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.leave(self.relu(self.enter(x)))
        return out


def network(width: int, branches: int) -> nn.Sequential:
    """Branches and a classifier."""
    return nn.Sequential(*(Branch(width) for _ in range(branches)), nn.Linear(width, CLASSES, bias=False))


def classified(width: int, branches: int, scheme: init.ModelScheme, x: Tensor) -> nn.Sequential:
    """By the scheme, but for the classifier: it is random and held, so that the first step reaches the branches."""
    model = network(width, branches)
    init.initialize(model, scheme, generator=generator(branches), inputs=x)
    init.initialize(model, {f"{branches}.weight": "lecun_normal"}, generator=generator(1))
    model[-1].requires_grad_(False)
    return model.double()


def _labels() -> Tensor:
    return torch.arange(BATCH) % CLASSES


@functools.cache
def update(branches: int, scaled: bool, rate: float, reduced: bool) -> float:
    """Rms of the change of the logits by one step of SGD, over the rate."""
    size = REDUCED if reduced else FULL
    x = sphere(BATCH, size.width, seed=2)
    scheme = init.Fixup() if scaled else init.ZeroBranches(base="he_normal")
    model = classified(size.width, branches, scheme, x)
    x = x.double()
    before = model(x)
    functional.cross_entropy(before, _labels()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)
        return float((model(x) - before).square().mean().sqrt()) / rate


def expected_update(reduced: bool) -> float:
    """The same by the kernel K of the module's docstring, for Fixup; of as many branches as there are."""
    size = REDUCED if reduced else FULL
    x = sphere(BATCH, size.width, seed=2)
    head = classified(size.width, 1, init.Fixup(), x)[-1]
    x = x.double()
    field = theory.MeanField("relu", 2.0)
    cosines = (x @ x.T / size.width).numpy().clip(-1.0, 1.0)
    kernel = np.array([[field.second_moment(float(c), 2.0) for c in of_one] for of_one in cosines]) * size.width
    logits = head(x).requires_grad_()
    (slope,) = torch.autograd.grad(functional.cross_entropy(logits, _labels()), logits)  # of the logits
    assert isinstance(head, nn.Linear)
    moved = -torch.from_numpy(kernel) @ (slope @ head.weight)
    return float((moved @ head.weight.T).square().mean().sqrt())


@functools.cache
def stream(scheme: str, reduced: bool) -> Array:
    """Rms of the stream after each branch, `(seeds, branches)`."""
    size, found = REDUCED if reduced else FULL, []
    for seed in range(size.seeds):
        x = sphere(BATCH, size.width, seed=10 + seed)
        model = network(size.width, STREAM_DEPTH)
        init.initialize(model, scheme, generator=generator(20 + seed), inputs=x)
        found.append(probe(model, x).profile("activation", role="block").values)
    return np.array(found)


def reproduce(reduced: bool = False) -> list[Row]:
    size = REDUCED if reduced else FULL
    branches, one = np.array(size.branches), expected_update(reduced)
    # relu(Ax)·relu(Ax') is a sum of n L terms, of relative variance 5 at most, that of a fourth power.
    spread = 5.0 * np.sqrt(5.0 / (size.width * branches)) + 0.01
    kept, grown = stream("fixup", reduced), stream("he_normal", reduced)
    scaled = (
        f"branches of two linear layers of {size.width} units, no convolutions, {BATCH} random inputs; "
        f"{', '.join(map(str, size.branches))} branches"
    )
    because = "5 standard deviations of a mean over units and branches, and 1 % for the second order"
    return [
        row(
            "Fixup: change of the logits by the first step over its rate, for more and more branches",
            published="independent of the depth (section 3)",
            theory=np.full(branches.size, one),
            measured=[update(count, True, SMALL, reduced) for count in size.branches],
            tolerance=spread * one,
            because=because,
            scaled_down=scaled,
        ),
        row(
            "branches that end in 0, otherwise He's: the same",
            published="grows with the depth",
            theory=branches * one,
            measured=[update(count, False, SMALL, reduced) for count in size.branches],
            tolerance=spread * branches * one,
            because=because,
            scaled_down=scaled,
        ),
        row(
            f"the stream's rms after {STREAM_DEPTH} branches of Fixup",
            published="the signal is kept",
            theory=1.0,
            measured=kept[:, -1].mean(),
            tolerance=1e-6,
            because="float32: nothing is added",
            scaled_down=scaled.partition(";")[0],
        ),
        row(
            "with He's weights: decades of its rms per branch",
            published="grows exponentially with the depth (section 2)",
            theory=math.log10(3.0) / 2.0,
            measured=float(np.mean([decades_per_layer(rms) for rms in grown])),
            # A branch adds to the log of the mean square at most what two ReLU layers would, 10/n.
            tolerance=5.0 * math.sqrt(1.2 * 10.0 / size.width / STREAM_DEPTH / size.seeds) / (2.0 * math.log(10.0)),
            because="5 standard errors of the slope of a random walk of variance 10/n a branch",
            scaled_down=scaled.partition(";")[0],
        ),
    ]


@styled
def figure(reduced: bool = False) -> Figure:
    size = REDUCED if reduced else FULL
    fig, axes = panels(
        "Zhang et al. 2019: Fixup",
        f"branches of two layers of {size.width} units; dashed: theory",
        "change of the logits by the first step, over its rate",
        "rms of the stream",
    )
    branches, one = np.array(size.branches), expected_update(reduced)
    for scaled, label, colour in ((True, "Fixup", BLUE), (False, "branches that end in 0", VERMILION)):
        seen = [update(count, scaled, SMALL, reduced) for count in size.branches]
        axes[0].plot(branches, seen, "o", color=colour, label=label)
        axes[0].plot(branches, one * branches ** (0 if scaled else 1), color=INK, linestyle=DASHED, linewidth=1)
    axes[0].set_xscale("log")
    layers = np.arange(1, STREAM_DEPTH + 1)
    for scheme, label, colour in (("fixup", "Fixup", BLUE), ("he_normal", "He's weights", VERMILION)):
        axes[1].plot(layers, stream(scheme, reduced).mean(axis=0), color=colour, label=label)
    axes[1].plot(layers, 3.0 ** (layers / 2), color=INK, linestyle=DASHED, linewidth=1)
    for panel in axes:
        panel.set_yscale("log")
        panel.set_xlabel("residual branches")
        panel.legend(loc="upper left")
    return fig
