"""Jozefowicz et al. (2015): an LSTM's forget gates have to begin open.

At rest (no inputs, states of 0) the other gates are half open, and a step's Jacobian of the cell state is

    J = f·I + ¼·W_g,   f = 1/(1 + e^{−b}),   so that E|Jᵀ…Jᵀ v|²/|v|² = Σ_k C(T, k)² f^{2(T − k)} (σ²/16)^k

over T steps, b the bias of the forget gates, W_g the candidates' recurrent weights of variance σ²/n, σ² = 1/3 as torch
draws them (E|W^k v|² = σ^{2k} while k² is well below n). Chrono's forget gates (Tallec & Ollivier 2018), f = u/(1 + u)
with u ~ U(1, T − 1), leave E[f^{2T}] by themselves: their input gates are all but closed.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from benchmarks.papers.nets import generator
from benchmarks.papers.pictures import DASHED, panels
from benchmarks.papers.recurrence import at_rest, gradient_over_time, recorded
from benchmarks.papers.row import Row, row
from gradscope import init
from gradscope.report._style import BLUE, GREEN, INK, PURPLE, VERMILION, styled

CITATION = "Jozefowicz, Zaremba & Sutskever (2015), An empirical exploration of recurrent network architectures, ICML"

Array = NDArray[np.float64]
BIASES = (0.0, 1.0, 2.0)
SIGMA2 = 1.0 / 3.0
STEPS = 100
COLOURS = (VERMILION, GREEN, BLUE)


class Size(NamedTuple):
    width: int


FULL, REDUCED = Size(800), Size(320)


@functools.cache
def over_time(bias: float | None, reduced: bool) -> Array:
    """Rms of the gradient of the cell state, `(STEPS + 1,)`; chrono's gates where the bias is None."""
    size = REDUCED if reduced else FULL
    cell, numbers = nn.LSTMCell(1, size.width), generator(0)
    scheme = init.Chrono(longest=STEPS) if bias is None else init.ForgetBias(bias=bias)
    init.initialize(cell, scheme, generator=numbers)
    init.initialize(cell, {"weight_*": "torch_default"}, generator=numbers)  # which the paper leaves as they are
    return gradient_over_time(recorded(cell, at_rest(cell, STEPS + 1)), output=1)


def terms(bias: float, steps: int) -> Array:
    """ln of the terms of E|v Jᵀ…|², `(steps + 1,)`."""
    k = np.arange(steps + 1)
    choose = np.array([math.lgamma(steps + 1) - math.lgamma(i + 1) - math.lgamma(steps - i + 1) for i in k])
    return np.asarray(2.0 * choose - 2.0 * (steps - k) * math.log1p(math.exp(-bias)) + k * math.log(SIGMA2 / 16.0))


def expected(bias: float, steps: int) -> tuple[float, float]:
    """log10 of the gradient's rms, and how many factors W_g the terms that matter have."""
    logs = terms(bias, steps)
    top = logs.max()
    shares = np.exp(logs - top)
    return float((top + math.log(shares.sum())) / (2.0 * math.log(10.0))), float(
        shares @ np.arange(steps + 1) / shares.sum()
    )


def expected_chrono() -> tuple[float, float]:
    """Rms over units of f^T, and the standard deviation of f^{2T} over its mean."""
    u = np.linspace(1.0, STEPS - 1.0, 100_001)
    kept = np.exp(-2.0 * STEPS * np.log1p(1.0 / u))
    return math.sqrt(kept.mean()), float(kept.std() / kept.mean())


def reproduce(reduced: bool = False) -> list[Row]:
    size = REDUCED if reduced else FULL
    known = np.array([expected(bias, STEPS) for bias in BIASES])
    decades, factors = known.T
    seen = [math.log10(rms[0] / rms[-1]) for rms in (over_time(bias, reduced) for bias in BIASES)]
    chrono, spread = expected_chrono()
    rms = over_time(None, reduced)
    scaled = f"no task, at rest: {size.width} units, {STEPS} steps, one network"
    return [
        row(
            "forget bias 0, 1 and 2: log10 of what is left of the cell's gradient after 100 steps",
            published="a bias of 1 or 2 closes the gap to other architectures",
            theory=decades,
            measured=seen,
            tolerance=(factors**2 / size.width + 5.0 * np.sqrt(2.0 * factors / size.width)) / (2.0 * math.log(10.0)),
            because="k²/n by which powers of one matrix differ from products of k, and 5 standard deviations of these",
            scaled_down=scaled,
        ),
        row(
            "chrono (Tallec & Ollivier 2018), time scales to 100: what is left of it",
            published="– (time scales over the whole range)",
            theory=chrono,
            measured=rms[0] / rms[-1],
            tolerance=chrono * (5.0 * spread / math.sqrt(size.width) / 2.0 + 0.05),
            because="5 standard errors of a mean over the units, and 5 % for what comes by the candidates",
            scaled_down=scaled,
        ),
    ]


@styled
def figure(reduced: bool = False) -> Figure:
    fig, (axes,) = panels(
        "Jozefowicz et al. 2015: an LSTM's forget bias",
        f"at rest, {(REDUCED if reduced else FULL).width} units; dashed: theory",
        "rms of the gradient of c, relative to the last step",
    )
    back = np.arange(STEPS + 1)[::-1]
    for bias, colour in zip(BIASES, COLOURS, strict=True):
        rms = over_time(bias, reduced)
        axes.plot(back, rms / rms[-1], color=colour, label=f"forget bias {bias:g}")
        axes.plot(back, [10.0 ** expected(bias, int(t))[0] for t in back], color=INK, linestyle=DASHED, linewidth=1)
    rms = over_time(None, reduced)
    axes.plot(back, rms / rms[-1], color=PURPLE, label="chrono, to 100")
    axes.set_yscale("log")
    axes.set_xlabel("steps back in time")
    axes.legend(loc="lower left")
    return fig
