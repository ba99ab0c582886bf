"""How well a chain agrees with theory, place by place and both ways, as standard scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Direction = Literal["forward", "backward"]

_SYMMETRIC = 1e-4
"""So small a skewness changes nothing."""


@dataclass(frozen=True, eq=False)
class TheoryMatch:
    """Each place of a chain, a layer's weights or what stands between two layers, against the theory of one step.

    A factor is that of a mean square on its way through the place, forward from input to output, backward that of the
    gradient from output to input. What arrives is what was measured: no error of one place reaches the next.

    Attributes:
        places: what they are, from the input: layer, activation, layer, …, `(places,)`.
        forward: measured factors, `(places,)`.
        forward_expected: expected ones.
        forward_sd: standard deviation, over random networks, of the logarithm of measured over expected.
        forward_skew: skewness of that ratio.
        backward, backward_expected, backward_sd, backward_skew: likewise.
        both_sd: of the sum of both logarithms.

    With y = (ratio − 1)/sd and the skewness g, the score is (6/g)·((1 + g·y/2)^⅓ − 1) + g/6: standard normal to high
    accuracy where the ratio is a shifted gamma, as sums of squares nearly are (Wilson & Hilferty 1931). For weights the
    ratio is χ² and this the cube root of it; without skewness it is y. Towards the shorter tail the score is y where
    that is smaller: there the gamma ends, and a network's ratio need not.
    """

    places: tuple[str, ...]
    forward: Array
    forward_expected: Array
    forward_sd: Array
    forward_skew: Array
    backward: Array
    backward_expected: Array
    backward_sd: Array
    backward_skew: Array
    both_sd: Array

    @property
    def forward_z(self) -> Array:
        """Standard scores of the forward factors; infinite where one is not finite."""
        return _scores(self.forward, self.forward_expected, self.forward_sd, self.forward_skew)

    @property
    def backward_z(self) -> Array:
        """Likewise of the gradient's."""
        return _scores(self.backward, self.backward_expected, self.backward_sd, self.backward_skew)

    @property
    def both_z(self) -> Array:
        """Of their sum: a factor that should not be there changes both alike, chance does not."""
        return np.asarray((self.forward_z * self.forward_sd + self.backward_z * self.backward_sd) / self.both_sd)

    def fault(self, z: float) -> tuple[int, Direction] | None:
        """The first place, in the direction the signal flows, with a score beyond ±z; None where there is none.

        The forward signal is looked at first. Of places wrong for the gradient alone it is the first from the output.
        """
        forward, backward, both = (np.abs(scores) > z for scores in (self.forward_z, self.backward_z, self.both_z))
        off = np.flatnonzero(forward | (both & ~backward))
        if off.size:
            return int(off[0]), "forward"
        off = np.flatnonzero(backward)
        return (int(off[-1]), "backward") if off.size else None

    def __str__(self) -> str:
        width = max(len("place"), *map(len, self.places))
        head = f"{'place':{width}}  forward  expected      z  backward  expected      z"
        columns = (
            self.forward, self.forward_expected, self.forward_z, self.backward, self.backward_expected, self.backward_z
        )  # fmt: skip
        rows = [
            f"{place:{width}}  {a:7.3g}  {b:8.3g}  {c:+5.1f}  {d:8.3g}  {e:8.3g}  {f:+5.1f}"
            for place, a, b, c, d, e, f in zip(self.places, *columns, strict=True)
        ]
        return "\n".join([head, *rows])


def _scores(measured: Array, expected: Array, sd: Array, skew: Array) -> Array:
    """Of measured over expected; 0 where nothing arrives and nothing leaves."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where((measured == 0.0) & (expected == 0.0), 1.0, measured / expected)
    y = (np.where(np.isfinite(ratio), ratio, np.inf) - 1.0) / sd
    g = np.where(np.abs(skew) < _SYMMETRIC, _SYMMETRIC, skew)
    z = 6.0 / g * (np.cbrt(1.0 + g * y / 2.0) - 1.0) + g / 6.0
    return np.asarray(np.where((g * y < 0.0) & (np.abs(z) > np.abs(y)), y, z))
