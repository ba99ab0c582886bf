"""The correlation map c → c' of an activation at the length that a layer keeps, for a few variances of the weights.

c' = (sigma_w2·E[f(u₁) f(u₂)] + sigma_b2)/q leaves 1 where it is and has the slope chi there: in the ordered phase two
inputs become one, in the chaotic phase they come to the correlation c* where the curve meets the diagonal (Poole et
al. 2016; Schoenholz et al. 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.activations import Activation
from gradscope.theory._critical import CriticalPoint, attracts_from, critical_at, phase
from gradscope.theory._gain import elementwise, gain
from gradscope.theory._mean_field import MeanField
from gradscope.theory._moments import is_homogeneous

Array = NDArray[np.float64]

_FACTORS = (0.6, 1.0, 1.6)
"""On the critical sigma_w: one curve in the ordered phase, one on the line, one in the chaotic phase."""
_BIAS = 0.5
"""sigma_b of the ordered curve of ReLU and its like, whose critical point has none and whose lengths vanish without."""
_POINTS = 41
_LARGEST = 4.0
"""Beyond this sigma_w nobody draws weights: a logistic unit would be critical at 10."""


@dataclass(frozen=True, eq=False)
class CorrelationCurve:
    """The correlation map of one layer.

    Attributes:
        sigma_w, sigma_b: the variances' roots.
        q: length of both inputs, which the layer keeps.
        phase: `ordered`, `critical` or `chaotic`.
        chi: slope of the curve at c = 1.
        c: correlation before the layer, from 0 to 1, `(points,)`.
        after: correlation behind it, `(points,)`.
        fixed: c*, to which every correlation in [0, 1) comes.
    """

    sigma_w: float
    sigma_b: float
    q: float
    phase: str
    chi: float
    c: Array
    after: Array
    fixed: float


@dataclass(frozen=True)
class Unsettled:
    """Variances without a curve, since lengths settle nowhere: they `vanish`, or `grow without end`."""

    sigma_w: float
    sigma_b: float
    fate: str


@dataclass(frozen=True, eq=False)
class CorrelationCurves:
    """The correlation maps of an activation.

    Attributes:
        activation: whose.
        curves: by increasing sigma_w.
        unsettled: variances that were asked for and have no curve.
    """

    activation: Activation
    curves: tuple[CorrelationCurve, ...]
    unsettled: tuple[Unsettled, ...]


def correlation_curves(activation: str | Activation | None) -> CorrelationCurves:
    """Curves at 0.6, 1 and 1.6 times a critical sigma_w, with the same biases.

    The critical point is that of the length 1, where it attracts; else one where the critical line does. An activation
    that is critical nowhere, or only beyond sigma_w = 4, has curves at these multiples of its forward gain, without
    biases.

    Args:
        activation: a name as `activations.get` takes it; elementwise.

    Raises:
        ValueError: an unknown activation, or one that is not elementwise.

    >>> tanh = correlation_curves("tanh")
    >>> [(curve.phase, round(curve.fixed, 3)) for curve in tanh.curves]
    [('ordered', 1.0), ('critical', 1.0), ('chaotic', 0.23)]
    """
    found = elementwise(activation)
    curves, unsettled = list[CorrelationCurve](), list[Unsettled]()
    for sigma_w, sigma_b in _variances(found):
        field = MeanField(found, sigma_w**2, sigma_b**2)
        q = field.settles_at().q
        if q == 0.0 or math.isinf(q):
            unsettled.append(Unsettled(sigma_w, sigma_b, "vanish" if q == 0.0 else "grow without end"))
        else:
            curves.append(_curve(field, sigma_w, sigma_b, q))
    return CorrelationCurves(found, tuple(curves), tuple(unsettled))


def _variances(activation: Activation) -> list[tuple[float, float]]:
    point = _reference(activation)
    if point is None:
        own = gain(activation)
        return [(factor * own, 0.0) for factor in _FACTORS]
    sigma_w, sigma_b = math.sqrt(point.sigma_w2), math.sqrt(point.sigma_b2)
    if is_homogeneous(activation):
        return [(factor * sigma_w, _BIAS if factor < 1.0 else 0.0) for factor in _FACTORS]
    return [(factor * sigma_w, sigma_b) for factor in _FACTORS]


def _reference(activation: Activation) -> CriticalPoint | None:
    """A critical point whose length is kept, not only a fixed point, with weights of a usual size."""
    point = critical_at(activation)
    if not is_homogeneous(activation) and (point is None or not point.attracts):
        begins = attracts_from(activation)
        point = None if begins is None else critical_at(activation, 2.0 * begins.q)
    return None if point is None or point.sigma_w2 > _LARGEST**2 else point


def _curve(field: MeanField, sigma_w: float, sigma_b: float, q: float) -> CorrelationCurve:
    c = np.linspace(0.0, 1.0, _POINTS)
    after = np.array([*(field.correlation(at, q) for at in c[:-1].tolist()), 1.0])
    kind = phase(field, q)
    return CorrelationCurve(sigma_w, sigma_b, q, kind, field.chi(q), c, after, field.settles_at_correlation(q))
