"""Le et al. (2015): a ReLU recurrent network that begins as the identity keeps its gradient.

W_hh = I, W_ih ~ N(0, 0.001²), no biases. A unit whose state stays positive is an accumulator: its gradient
comes back unchanged, from any distance; one whose state reaches 0 passes nothing on. Of states that begin as N(0, 1)
and take steps of σ = 0.001·√d in a random walk, the share that never reaches 0 in T steps is

    P = E[½ erf(|z|/(σ√(2T)))] = arctan(1/(σ√T))/π

so that the gradient's rms is √P of what it was.
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

from benchmarks.papers.nets import generator
from benchmarks.papers.pictures import DASHED, panels
from benchmarks.papers.recurrence import Unrolled, gradient_over_time, recorded
from benchmarks.papers.row import Row, row
from gradscope import init
from gradscope.report._style import BLUE, INK, VERMILION, styled

CITATION = "Le, Jaitly & Hinton (2015), A simple way to initialize recurrent networks of rectified linear units"

Array = NDArray[np.float64]


class Size(NamedTuple):
    width: int
    batch: int
    steps: int


FULL, REDUCED = Size(100, 128, 200), Size(100, 64, 100)


def cell(width: int, identity: bool) -> nn.RNNCell:
    made = nn.RNNCell(width, width, nonlinearity="relu" if identity else "tanh")
    init.initialize(made, init.IRNN() if identity else "torch_default", generator=generator(0))
    return made


def inputs(size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """N(0, 1) at each step, and the first state."""
    numbers = generator(1)
    return torch.randn(size.steps, size.batch, size.width, generator=numbers), torch.randn(
        size.batch, size.width, generator=numbers
    )


@functools.cache
def first_gradient(reduced: bool) -> Array:
    """What comes back to the first state of a gradient of ±1 at the last, times its sign: 1 kept, 0 lost."""
    size = REDUCED if reduced else FULL
    x, state = inputs(size)
    state.requires_grad_()
    sign = torch.randn(state.shape, generator=generator(2)).sign()
    out = Unrolled(cell(size.width, identity=True))(x, state)
    (back,) = torch.autograd.grad((out * sign).sum(), state)
    return (back * sign).double().numpy()


def share_kept(size: Size) -> float:
    return math.atan(1.0 / _wander(size)) / math.pi


def _wander(size: Size) -> float:
    """How far a state walks: σ√T."""
    return 0.001 * math.sqrt(size.width * size.steps)


def reproduce(reduced: bool = False) -> list[Row]:
    size = REDUCED if reduced else FULL
    kept, back = share_kept(size), first_gradient(reduced)
    error = math.sqrt(kept * (1.0 - kept) / back.size)
    # A walk in steps reaches 0 a little later than a path: as if it began 0.58 σ higher (Chernoff 1965).
    of_steps = 0.583 * 0.001 * math.sqrt(size.width) / math.sqrt(2.0 * math.pi)
    scaled = f"no task, inputs N(0, 1): {size.width} units, {size.steps} steps, {size.batch} sequences"
    return [
        row(
            "rms of the gradient at the first state, relative to the last",
            published="error derivatives stay constant back through time",
            theory=math.sqrt(kept),
            measured=math.sqrt(np.mean(back**2)),
            tolerance=(5.0 * error + of_steps) / (2.0 * math.sqrt(kept)),
            because="5 standard errors of a share, and steps of a walk instead of a path",
            scaled_down=scaled,
        ),
        row(
            "the gradient of a unit whose state stays above 0: kept to the last digit",
            published="the same",
            theory=[1.0, 1.0],
            measured=[back[back > 0.0].min(), back.max()],
            tolerance=1e-6,
            because="float32; smallest and largest of all units that pass anything on",
            scaled_down=scaled,
        ),
    ]


@styled
def figure(reduced: bool = False) -> Figure:
    size = REDUCED if reduced else FULL
    fig, (axes,) = panels(
        "Le et al. 2015: IRNN",
        f"{size.width} units, inputs N(0, 1); dashed: √P, walks that stay above 0",
        "rms of the gradient of h, relative to the last step",
    )
    back = np.arange(size.steps)[::-1]
    for identity, label, colour in ((True, "identity, ReLU", BLUE), (False, "torch's default, tanh", VERMILION)):
        rms = gradient_over_time(recorded(cell(size.width, identity), inputs(size)))
        axes.plot(back, np.maximum(rms / rms[-1], 1e-40), color=colour, label=label)
    axes.axhline(math.sqrt(share_kept(size)), color=INK, linestyle=DASHED, linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(1e-30, 1e2)
    axes.set_xlabel("steps back in time")
    axes.legend(loc="lower left")
    return fig
