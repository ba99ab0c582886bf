"""Pascanu et al. (2013): what the largest singular value of the recurrent weights does to the gradient over time.

Section 2.1: with λ the largest singular value of W and γ the largest slope (1 for tanh) each step multiplies the
gradient by at most λ γ. λ < 1/γ is sufficient for it to vanish, λ > 1/γ is necessary for it to explode; section 3.2:
clipping the norm bounds what an explosion does to a step.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from benchmarks.papers.nets import generator
from benchmarks.papers.pictures import DASHED, panels
from benchmarks.papers.recurrence import Unrolled, at_rest, gradient_over_time, recorded
from benchmarks.papers.row import Row, row
from gradscope import GradScope, init
from gradscope.recording import decades_per_layer
from gradscope.report._style import BLUE, GREEN, INK, VERMILION, styled

CITATION = "Pascanu, Mikolov & Bengio (2013), On the difficulty of training recurrent neural networks, ICML"

Array = NDArray[np.float64]
VANISHING, EXPLODING = 0.9, 1.1
CLIPPED_AT = 1.0


class Size(NamedTuple):
    width: int
    steps: tuple[int, ...]
    default_width: int


FULL, REDUCED = Size(100, (50, 100, 200), 400), Size(64, (50, 100), 200)


def cell(width: int, largest: float | None) -> nn.RNNCell:
    """tanh, biases 0; W orthogonal times the largest singular value, or as torch draws it."""
    made = nn.RNNCell(width, width)
    init.initialize(made, "orthogonal", generator=generator(0))
    with torch.no_grad():
        if largest is None:
            init.initialize(made, {"weight_hh": "torch_default"}, generator=generator(1))
        else:
            made.weight_hh *= largest
    return made


@functools.cache
def over_time(largest: float, driven: bool, reduced: bool) -> Array:
    """Rms of the gradient of h_t, t from the first step to the last; driven by inputs, or at rest."""
    size = REDUCED if reduced else FULL
    made, steps = cell(size.width, largest), size.steps[-1] + 1
    inputs = at_rest(made, steps)
    if driven:
        inputs = (0.2 * torch.randn(inputs[0].shape, generator=generator(2)), *inputs[1:])
    return gradient_over_time(recorded(made, inputs))


@functools.cache
def of_torch_s_default(reduced: bool) -> Array:
    made = cell((REDUCED if reduced else FULL).default_width, None)
    return gradient_over_time(recorded(made, at_rest(made, 101)))


def clipped_norms(reduced: bool) -> tuple[float, float]:
    """The gradient's norm before and after clipping, as GradScope notes them."""
    size = REDUCED if reduced else FULL
    model = Unrolled(cell(size.width, EXPLODING))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with GradScope(model, optimizer) as scope:
        loss = scope(*at_rest(model.cell, size.steps[-1])).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPED_AT)
        optimizer.step()
    notes = (scope.recording.notes(name)[-1] for name in ("grad_norm", "grad_norm_clipped"))
    before, after = (float(note) for note in notes)
    return before, after


def reproduce(reduced: bool = False) -> list[Row]:
    size = REDUCED if reduced else FULL
    steps = np.array(size.steps)
    scaled = f"{size.width} units, {' and '.join(map(str, size.steps))} steps; a random gradient at the last state"
    default = of_torch_s_default(reduced)
    before, after = clipped_norms(reduced)
    left = {
        (largest, driven): over_time(largest, driven, reduced)[-1 - steps] / over_time(largest, driven, reduced)[-1]
        for largest, driven in ((VANISHING, True), (VANISHING, False), (EXPLODING, False))
    }
    return [
        row(
            "λ = 0.9, tanh, inputs N(0, 0.2²): what is left of the gradient is at most 0.9 to the number of steps",
            published="λ < 1/γ is sufficient to vanish",
            theory=VANISHING**steps,
            measured=left[VANISHING, True],
            tolerance=1e-4 * VANISHING**steps,
            because="1e−4 of it: float32",
            scaled_down=scaled,
            relation="≤",
        ),
        row(
            "the same without inputs, where all slopes are 1: the bound is met",
            published="the bound of eq. 7",
            theory=VANISHING**steps,
            measured=left[VANISHING, False],
            tolerance=1e-4 * VANISHING**steps,
            because="1e−4 of it: float32",
            scaled_down=scaled,
        ),
        row(
            "λ = 1.1, without inputs: it explodes",
            published="λ > 1/γ is necessary to explode",
            theory=EXPLODING**steps,
            measured=left[EXPLODING, False],
            tolerance=1e-4 * EXPLODING**steps,
            because="1e−4 of it: float32",
            scaled_down=scaled,
        ),
        row(
            "torch's default, U(±1/√n), without inputs: decades per step",
            published="– (the circular law: a spectral radius of 1/√3)",
            theory=np.log10(1.0 / 3.0) / 2.0,
            measured=decades_per_layer(default, "backward"),
            tolerance=np.log10(1.0 + 3.0 / np.sqrt(size.default_width)),
            because="a radius is reached to the order 1/√n: three times that",
            scaled_down=f"{size.default_width} units, 100 steps",
        ),
        row(
            f"the gradient's norm of the exploding network, clipped at {CLIPPED_AT:g}",
            published="the threshold (algorithm 1)",
            theory=CLIPPED_AT,
            measured=after,
            tolerance=1e-4,
            because=f"float32; before clipping it was {before:.1e}",
            scaled_down=scaled,
        ),
    ]


@styled
def figure(reduced: bool = False) -> Figure:
    fig, (axes,) = panels(
        "Pascanu et al. 2013: the gradient over time",
        f"tanh, {(REDUCED if reduced else FULL).width} units; dashed: the bound λ to the number of steps",
        "rms of the gradient of h, relative to the last step",
    )
    for largest, driven, colour in ((EXPLODING, False, VERMILION), (VANISHING, True, BLUE), (VANISHING, False, GREEN)):
        rms = over_time(largest, driven, reduced)
        back = np.arange(rms.size)[::-1]
        label = f"λ = {largest:g}, {'inputs N(0, 0.2²)' if driven else 'no inputs'}"
        axes.plot(back, np.maximum(rms / rms[-1], 1e-40), color=colour, label=label)
        axes.plot(back, largest**back, color=INK, linestyle=DASHED, linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(1e-30, 1e15)
    axes.set_xlabel("steps back in time")
    axes.legend(loc="lower left")
    return fig
