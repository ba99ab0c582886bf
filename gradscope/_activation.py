"""What is known of one activation, and where it saturates: found from its slope, not typed in."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ArrayFunction = Callable[[Array], Array]
Saturates = Literal["no", "below", "above", "both"]

SATURATED_SLOPE = 0.01
"""A unit counts as saturated where its slope is below this fraction of the largest slope."""


@dataclass(frozen=True)
class Activation:
    """One activation: what it computes, its slope, and the scheme recommended for the weights before it.

    Attributes:
        name: canonical, with the parameters where they are not the default: `leaky_relu(0.2)`.
        function: z -> f(z), elementwise on float64 arrays; softmax over the last axis.
        derivative: z -> f'(z); for softmax the Jacobian's diagonal s·(1 - s).
        aliases: further names that `get` knows.
        modules: torch classes it stands for, `torch.nn.ReLU`.
        functionals: torch functions it stands for, `torch.nn.functional.relu`.
        kinks: where the derivative jumps, in units of z.
        elementwise: False for softmax, whose units depend on each other.
        scheme: name of the recommended scheme.
        params: its parameters, e.g. `{"slope": 0.01}`.
    """

    name: str
    function: ArrayFunction
    derivative: ArrayFunction
    aliases: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    functionals: tuple[str, ...] = ()
    kinks: tuple[float, ...] = ()
    elementwise: bool = True
    scheme: str = "glorot_normal"
    params: Mapping[str, float] = field(default_factory=dict, hash=False)

    @functools.cached_property
    def saturation(self) -> tuple[float, float]:
        """(lo, hi): below lo and above hi, |f'| stays under 1 % of its maximum; -inf, inf where it does not.

        Found from the derivative itself. For softmax, z is one logit less the log-sum-exp of the others.

        >>> from gradscope.activations import get
        >>> tuple(round(z, 4) for z in get("sigmoid").saturation)
        (-5.9864, 5.9864)
        >>> get("relu").saturation
        (0.0, inf)
        """
        return _saturation(self._slope_of_one, self.kinks)

    @property
    def saturates(self) -> Saturates:
        """On which side the slope dies: `no`, `below`, `above` or `both`."""
        below, above = (math.isfinite(z) for z in self.saturation)
        return "both" if below and above else "below" if below else "above" if above else "no"

    def _slope_of_one(self, z: Array) -> Array:
        """|f'| as a function of one number; softmax: the slope of one logit z beside another at 0."""
        if self.elementwise:
            return np.abs(self.derivative(z))
        return np.abs(self.derivative(np.stack([z, np.zeros_like(z)], axis=-1))[..., 0])


def _saturation(slope: ArrayFunction, kinks: tuple[float, ...]) -> tuple[float, float]:
    # A grid that is fine near 0 and reaches 11,000; both sides of every kink are on it.
    corners = np.array([z for kink in (*kinks, 0.0) for z in np.nextafter(kink, (-np.inf, np.inf))])
    grid = np.unique(np.concatenate([np.sinh(np.linspace(-10.0, 10.0, 4097)), corners]))
    values = slope(grid)
    top = int(np.argmax(values))
    near = np.linspace(grid[max(top - 1, 0)], grid[min(top + 1, grid.size - 1)], 4097)
    limit = SATURATED_SLOPE * max(float(values[top]), float(np.max(slope(near))))
    alive = np.flatnonzero(values >= limit)
    first, last = int(alive[0]), int(alive[-1])
    # Alive at the end of the grid (|z| > 5000): no saturation on that side; a wave has none at all.
    below = -math.inf if grid[first] < -5000.0 else _crossing(slope, limit, grid[first - 1], grid[first])
    above = math.inf if grid[last] > 5000.0 else _crossing(slope, limit, grid[last + 1], grid[last])
    return below, above


def _crossing(slope: ArrayFunction, limit: float, dead: float, alive: float) -> float:
    while abs(alive - dead) > 1e-13 * max(1.0, abs(dead)):
        middle = 0.5 * (dead + alive)
        if float(slope(np.array([middle]))[0]) >= limit:
            alive = middle
        else:
            dead = middle
    return float(round(0.5 * (dead + alive), 12)) + 0.0  # + 0.0: never -0.0
