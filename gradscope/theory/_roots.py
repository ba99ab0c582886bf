"""Zeros of a function of one variable, to the last digit."""

from __future__ import annotations

import math
from collections.abc import Callable


def crossings(function: Callable[[float], float], low: float, high: float, spacing: float) -> list[float]:
    """Where a continuous function changes its sign, looked for on a grid and then closed in on.

    Two zeros between neighbours of the grid are not seen.
    """
    steps = math.ceil((high - low) / spacing)
    places = [low + (high - low) * i / steps for i in range(steps + 1)]
    values = [function(x) for x in places]
    found = []
    for a, b, at_a, at_b in zip(places, places[1:], values, values[1:], strict=False):
        if at_a == 0.0:
            found.append(a)
        elif at_a * at_b < 0.0:
            found.append(_closed_in(function, a, b, at_a, at_b))
    return [*found, places[-1]] if values[-1] == 0.0 else found


def _closed_in(function: Callable[[float], float], a: float, b: float, at_a: float, at_b: float) -> float:
    """Regula falsi, the value at an end that stays halved each time (Illinois), until it moves no more."""
    side, last = 0, math.inf
    for _ in range(200):
        middle = (a * at_b - b * at_a) / (at_b - at_a)
        if not min(a, b) < middle < max(a, b):
            middle = 0.5 * (a + b)
        at_middle = function(middle)
        if at_middle == 0.0 or abs(middle - last) <= 1e-16 * abs(middle):
            return middle
        last = middle
        if at_a * at_middle < 0.0:
            b, at_b = middle, at_middle
            at_a = at_a / 2 if side == 1 else at_a
            side = 1
        else:
            a, at_a = middle, at_middle
            at_b = at_b / 2 if side == -1 else at_b
            side = -1
    return 0.5 * (a + b)
