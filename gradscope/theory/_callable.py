"""Any callable as an activation: its kinks found by bisection, its slope by differences that never cross one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gradscope._activation import Activation

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

_REACH = 40.0
"""Kinks are looked for in |h| up to it."""
_NODES = 24
_SMOOTH = 1e-13
"""A panel is resolved where the last coefficients of its Legendre series are this part of its values."""
_ROUNDING = 1e-15
"""And here they are nothing but rounding."""
_SMALL = 1e-3
"""Below this part of what it is in |h| ≤ 1, a function is looked at no closer: there its rounding looks like kinks."""
_NARROW = 0.02
"""A smooth function of an activation's scale is resolved by panels of half this width: what is not, has a kink."""
_MOST = 64
"""Kinks a function may have."""
_STEP = 0.02
"""Of the differences: their error, of the order of step⁸, is there below their rounding."""
_WEIGHTS = (4 / 5, -1 / 5, 4 / 105, -1 / 280)
"""Of f(h + k·step) − f(h − k·step), k = 1 … 4: the central difference of eighth order."""


def activation_of(
    function: Function, derivative: Function | None = None, kinks: tuple[float, ...] | None = None, name: str = ""
) -> Activation:
    """An activation of a numpy function, for `card`, `MeanField`, `propagate` and all the rest.

    Args:
        function: z -> f(z), elementwise on float64 arrays.
        derivative: z -> f'(z); by default differences of the function, good to about twelve digits.
        kinks: where f or f' jumps; by default what bisection finds in |z| ≤ 40.
        name: what it is called in tables; by default the function's own name.

    Raises:
        ValueError: the function gives values of another shape, or such that are not finite.

    >>> bent = activation_of(lambda z: np.where(z > 0.5, z - 0.5, 0.0), name="shifted relu")
    >>> [round(kink, 9) for kink in bent.kinks]
    [0.5]
    """
    called = name or getattr(function, "__name__", "") or "activation"
    probe = np.linspace(-_REACH, _REACH, 7)
    values = np.asarray(function(probe), dtype=np.float64)
    if values.shape != probe.shape or not np.isfinite(values).all():
        raise ValueError(f"function={called!r} must map an array to finite values of its shape, elementwise")
    found = find_kinks(function) if kinks is None else tuple(sorted(map(float, kinks)))
    slope = derivative or _Slope(function, found)
    return Activation(name=called, function=function, derivative=slope, kinks=found)


def find_kinks(function: Function) -> tuple[float, ...]:
    """Where in |h| ≤ 40 a function, its slope or its curvature jumps, from the smallest.

    Panels that 24 nodes do not resolve are halved; where that has no end there is a kink, and it is closed in on: the
    half that holds it is the rougher one.

    Raises:
        ArithmeticError: there are more than 64, or the function varies faster than an activation does.
    """
    ends = np.linspace(-_REACH, _REACH, 61) + 0.0127  # kinks at round numbers lie within panels
    low, high, found = ends[:-1], ends[1:], list[tuple[float, float]]()
    floor = _SMALL * float(np.abs(_values(function, np.array([-1.0]), np.array([1.0]))).max())
    while low.size:
        rough = _roughness(function, low, high, floor) > _SMOOTH
        narrow = high - low < _NARROW * (1.0 + np.abs(low))
        found += zip(low[rough & narrow].tolist(), high[rough & narrow].tolist(), strict=True)
        again = rough & ~narrow
        middle = 0.5 * (low + high)[again]
        low, high = np.concatenate([low[again], middle]), np.concatenate([middle, high[again]])
        if len(found) > _MOST or low.size > 4 * _MOST * 8:
            raise ArithmeticError(f"the function varies too fast: it has more than {_MOST} kinks")
    return tuple(sorted({_closed_in(function, a, b, floor) for a, b in found}))


def _values(function: Function, low: Array, high: Array) -> Array:
    half = 0.5 * (high - low)[:, None]
    return np.asarray(function(low[:, None] + half + half * _series()[0]), dtype=np.float64)


@functools.cache
def _series() -> tuple[Array, Array]:
    """The nodes, and what makes of the values there the last four Legendre coefficients."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    matrix = weights[:, None] * np.polynomial.legendre.legvander(nodes, _NODES - 1) * (np.arange(_NODES) + 0.5)
    return nodes, matrix[:, -4:]


def _roughness(function: Function, low: Array, high: Array, floor: float) -> Array:
    """The last coefficients over the size of the function, for each panel."""
    values = _values(function, low, high)
    rough: Array = np.abs(values @ _series()[1]).max(1) / np.maximum(np.abs(values).max(1), floor)
    return rough


def _closed_in(function: Function, low: float, high: float, floor: float) -> float:
    """The place of the kink in a panel, as well as rounding allows; a round number where it may be one."""
    while True:
        middle = 0.5 * (low + high)
        left, right = _roughness(function, np.array([low, middle]), np.array([middle, high]), floor)
        if max(left, right) < _ROUNDING or high - low < 1e-14 * (1.0 + abs(middle)):
            break
        low, high = (low, middle) if left > right else (middle, high)
    for digits in range(10):
        short = round(middle, digits)
        if abs(short - middle) <= high - low:
            return short + 0.0
    return middle


class _Slope:
    """The derivative by central differences whose steps stay on one side of every kink.

    At a kink itself it is the mean of both sides' slopes' limits, as far as a step reaches.
    """

    def __init__(self, function: Function, kinks: tuple[float, ...]) -> None:
        self._function = function
        self._kinks = np.array(kinks)

    def __call__(self, h: Array) -> Array:
        h = np.asarray(h, dtype=np.float64)
        step = _STEP * np.maximum(1.0, np.abs(h) / 100.0)
        if self._kinks.size:
            near = np.abs(h[..., None] - self._kinks).min(-1)
            step = np.where(near > 0.0, np.minimum(step, near / 4.5), step)
        step = 2.0 ** np.floor(np.log2(step))  # h ± k·step without rounding, where h is not much larger
        slope = np.zeros(h.shape)
        for k, weight in enumerate(_WEIGHTS, start=1):
            slope += weight * (self._function(h + k * step) - self._function(h - k * step))
        return np.asarray(slope / step)
