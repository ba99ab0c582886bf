"""An activation in words: how steep it is, where its gradient dies, and why."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.activations import Activation

Array = NDArray[np.float64]

SOFTMAX_WIDTH = 256
"""How many units the softmax of the picture normalises over: the width of the default sweep."""

_WHY = {
    "sigmoid": "Its slope is s·(1 − s), s being its own output: when the input is large, s is almost 1 (or almost 0),"
    " one factor is almost 0, and so is the gradient that a logistic unit passes back.",
    "tanh": "Its slope is 1 − t², t being its own output: when the input is large, t is almost ±1 and hardly any"
    " gradient is passed back; near 0 it is 1 and all of it is.",
    "softmax": "The slope of one output s with respect to its own logit is s·(1 − s): among many units nearly every s"
    " is almost 0, and a unit that wins has s almost 1, so that either way hardly any gradient is passed back.",
    "relu": "Its slope is exactly 1 or exactly 0: an active unit passes the whole gradient back, an inactive one"
    " nothing at all, and a unit that is inactive for every sample is dead.",
    "identity": "Its slope is 1 everywhere: the gradient passes unchanged, and only the weights can shrink or grow it.",
}


def pre_activations(row: Activation) -> tuple[float, float]:
    """Mean and standard deviation of z for unit pre-activations; N(0, 1) unless the function is softmax.

    For softmax z is a logit less the log-sum-exp of the others, about ln(n - 1) + 1/2 for n - 1 of N(0, 1).
    """
    return (0.0, 1.0) if row.elementwise else (-(math.log(SOFTMAX_WIDTH - 1) + 0.5), 1.0)


def response(row: Activation, z: Array) -> tuple[Array, Array]:
    """f(z) and f'(z); for softmax, those of one logit z beside another at 0."""
    if row.elementwise:
        return row.function(z), row.derivative(z)
    pair = np.stack([z, np.zeros_like(z)], axis=-1)
    return row.function(pair)[..., 0], row.derivative(pair)[..., 0]


def _moments(row: Activation) -> tuple[float, float]:
    """Largest |slope|, and the rms slope over the pre-activations."""
    mean, std = pre_activations(row)
    grid = np.linspace(-12, 12, 24_001)
    corners = [k for kink in row.kinks for k in np.nextafter(kink, (-np.inf, np.inf))]
    largest = float(np.abs(response(row, np.concatenate([grid, corners]))[1]).max())
    if row.elementwise:
        from gradscope.theory import slope_moment

        return largest, math.sqrt(slope_moment(row))
    z = mean + std * grid
    weight = np.exp(-0.5 * grid**2)
    return largest, math.sqrt(float((response(row, z)[1] ** 2 * weight).sum() / weight.sum()))


def saturated_fraction(row: Activation) -> float:
    """Fraction in [0, 1] of unit pre-activations that lie where the slope is below 1 % of its largest."""
    normal = NormalDist(*pre_activations(row))
    low, high = row.saturation
    below = normal.cdf(low) if math.isfinite(low) else 0.0
    above = 1 - normal.cdf(high) if math.isfinite(high) else 0.0
    return below + above


def facts(row: Activation) -> dict[str, Any]:
    """The figures behind the sentences, as plain values for `index.json`."""
    largest, rms = _moments(row)
    return {
        "saturates": row.saturates,
        "saturation": [end if math.isfinite(end) else None for end in row.saturation],
        "largest_slope": largest,
        "rms_slope": rms,
        "saturated_fraction": saturated_fraction(row),
        "recommended": row.scheme,
    }


def _is_flat(row: Activation) -> bool:
    """The slope is exactly 0 where the activation saturates."""
    low, high = row.saturation
    ends = [low - 0.5 if math.isfinite(low) else high + 0.5, high + 0.5 if math.isfinite(high) else low - 0.5]
    return not response(row, np.array(ends))[1].any()


def sentences(row: Activation) -> list[str]:
    """Two or three sentences: the slope and where it dies, what it does to a gradient, and why."""
    largest, rms = _moments(row)
    low, high = (f"{end:.2g}".replace("-", "−") for end in row.saturation)
    side = {"both": f"below {low} or above {high}", "below": f"below {low}", "above": f"above {high}"}
    if row.saturates == "no":
        where = ", and it does not die out on either side"
    elif _is_flat(row):
        where = f"; for z {side[row.saturates]} it is 0, and no gradient passes"
    else:
        where = f"; for z {side[row.saturates]} it is less than 1 % of that, and almost no gradient passes"
    first = f"The slope is at most {largest:.3g}{where}."
    place = "pre-activations N(0, 1)" if row.elementwise else f"logits N(0, 1) of {SOFTMAX_WIDTH} units"
    share = saturated_fraction(row)
    part = f", and {100 * share:.2g} % of them saturate it" if share > 0.0005 else ""
    second = f"Over {place} its rms slope is {rms:.3g}{part}."
    why = _WHY.get(row.name)
    return [first, second, *([why] if why else [])]
