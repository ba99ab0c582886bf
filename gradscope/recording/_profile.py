"""A profile: one statistic of one signal against depth, and what is read off it.

Everything here counts layers **in the direction the signal flows**: forward from the first site, backward
from the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.recording._errors import unknown_name
from gradscope.recording._moments import Floats
from gradscope.recording._site import Signal, Site

Direction = Literal["forward", "backward"]

FLOOR = 1e-36
"""Not representable below: float32 is about to lose its digits (its smallest normal number is 1.2e-38)."""

BAND_DECADES = 1.0
"""Half width of the healthy band."""


def direction_of(signal: Signal) -> Direction:
    """The direction in which a signal flows: gradients run backward, everything else forward."""
    return "backward" if signal in ("activation_grad", "weight_grad") else "forward"


def in_flow(values: ArrayLike, direction: Direction) -> Floats:
    """The values, `(layers,)` from input to output, in the order in which the signal passes them."""
    if direction not in ("forward", "backward"):
        raise unknown_name("direction", direction, ("forward", "backward"))
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values has shape {array.shape}; a profile is one-dimensional, (layers,)")
    return array[::-1] if direction == "backward" else array


def representable(values: ArrayLike) -> NDArray[np.bool_]:
    """Where a value is finite and above 1e-36."""
    array = np.asarray(values, dtype=np.float64)
    return np.isfinite(array) & (array > FLOOR)


def decades_per_layer(rms: ArrayLike, direction: Direction = "forward") -> float:
    """Least-squares slope of log10(rms) against the number of layers passed; negative shrinks, 0 is ideal.

    Args:
        rms: `(layers,)` from input to output; what is not finite or not above 1e-36 is passed over.
        direction: that of the signal; backward counts from the output.

    Returns:
        decades per layer; NaN where fewer than two layers are representable.

    >>> round(decades_per_layer([1.0, 0.1, 0.01]), 12)
    -1.0
    >>> round(decades_per_layer([0.01, 0.1, 1.0], "backward"), 12)
    -1.0
    """
    flow = in_flow(rms, direction)
    passed = np.flatnonzero(representable(flow))
    if passed.size < 2:
        return float("nan")
    away = passed - passed.mean()
    return float(away @ np.log10(flow[passed]) / (away @ away))


def layer_ratio(values: ArrayLike, direction: Direction = "forward") -> Floats:
    """The ratio of each layer to the one passed before it, `(layers - 1,)` in the order passed.

    NaN where one of the two is not finite or the earlier is zero.
    """
    flow = in_flow(values, direction)
    before, after = flow[:-1], flow[1:]
    valid = np.isfinite(before) & np.isfinite(after) & (before != 0)
    ratio = np.full(len(before), np.nan)
    with np.errstate(over="ignore", under="ignore"):
        ratio[valid] = after[valid] / before[valid]
    return ratio


def healthy_band(values: ArrayLike, direction: Direction = "forward") -> tuple[float, float]:
    """One decade either side of the site where the signal enters, as (lowest, highest) healthy value.

    Both are NaN where the signal enters as nothing: zero, not finite, or without any site.
    """
    flow = in_flow(values, direction)
    if not flow.size or not (np.isfinite(flow[0]) and flow[0] > 0):
        return float("nan"), float("nan")
    return float(flow[0] / 10**BAND_DECADES), float(flow[0] * 10**BAND_DECADES)


@dataclass(frozen=True, eq=False)
class Profile:
    """One statistic of one signal at one step, against depth.

    Attributes:
        signal: what was observed.
        stat: name of the statistic.
        step: number of the step (not its index).
        sites: where there are data at that step, in order of execution.
        depth: their depth, `(sites,)`.
        values: the statistic, `(sites,)`; NaN where no entry was finite.
    """

    signal: Signal
    stat: str
    step: int
    sites: tuple[Site, ...]
    depth: NDArray[np.int64]
    values: Floats

    @property
    def direction(self) -> Direction:
        """The direction in which the signal flows."""
        return direction_of(self.signal)

    @property
    def layers(self) -> NDArray[np.bool_]:
        """Which sites count as layers, `(sites,)`: pre-activations, of parameters those of two or more dimensions.

        Where there are fewer than two of them, every module does, by the first tensor of its output.
        """
        chosen = np.array(
            [len(s.shape) >= 2 if s.param is not None else s.role == "pre-activation" for s in self.sites],
            dtype=bool,
        )
        if chosen.sum() >= 2:
            return chosen
        return np.array([s.output == 0 and s.role != "input" for s in self.sites], dtype=bool)

    @property
    def decades_per_layer(self) -> float:
        """`decades_per_layer` of the values over `layers`."""
        return decades_per_layer(self.values[self.layers], self.direction)

    @property
    def healthy_band(self) -> tuple[float, float]:
        """`healthy_band` of the values."""
        return healthy_band(self.values, self.direction)


def frontier(profile: Profile) -> Site | None:
    """The first site, in the direction the signal flows, that is not in the healthy band; None where all are.

    A site without any finite entry is outside.
    """
    low, high = profile.healthy_band
    inside = (profile.values >= low) & (profile.values <= high)
    outside = np.flatnonzero(~inside)
    if not outside.size:
        return None
    first = int(outside[-1 if profile.direction == "backward" else 0])
    return profile.sites[first]
