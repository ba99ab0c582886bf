"""The critical line: the variances at which a gradient's mean square is kept, chi = 1 (the edge of chaos).

    sigma_w2 = 1/E[f'(√q z)²],   sigma_b2 = q − sigma_w2·E[f(√q z)²]

one point for each length q that has sigma_b2 ≥ 0 (Poole et al. 2016; Hayou, Doucet & Rousseau 2019). At a point of
it the length q is a fixed point, but not always one that attracts: below some q the lengths of a GELU, SiLU, Mish or
hardswish network leave it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from gradscope.activations import Activation
from gradscope.theory._gain import elementwise
from gradscope.theory._mean_field import MeanField, highest
from gradscope.theory._moments import is_homogeneous, layer_moments
from gradscope.theory._roots import crossings

_LOWEST, _HIGHEST, _SPACING = -20.0, 20.0, 0.25  # of ln q
_NOTHING = 1e-13
"""A bias variance this part of q is the rounding of 0."""


@dataclass(frozen=True)
class CriticalPoint:
    """Variances at which the gradient is kept.

    Attributes:
        q: the length that a layer keeps.
        sigma_w2: fan_in·(variance of one weight).
        sigma_b2: variance of one bias.
        slope: V'(q), below 1 where that length attracts.
    """

    q: float
    sigma_w2: float
    sigma_b2: float
    slope: float

    @property
    def attracts(self) -> bool:
        """Whether lengths beside q come nearer; at 1, as for ReLU, they stay where they are."""
        return self.slope < 1.0 - 1e-10


def critical_at(activation: str | Activation | None, q: float = 1.0) -> CriticalPoint | None:
    """The point of the critical line at a length; None where it would take biases of negative variance.

    Args:
        activation: a name as `activations.get` takes it; elementwise.
        q: the length, above 0.

    Raises:
        ValueError: an unknown activation, or one that is not elementwise; q not above 0.

    >>> point = critical_at("tanh", 0.5700478816)
    >>> round(point.sigma_w2, 6), round(point.sigma_b2, 6)  # Schoenholz et al. (2017): 1.76 at 0.05
    (1.760955, 0.05)
    """
    if not (math.isfinite(q) and q > 0.0):
        raise ValueError(f"q={q!r} must be finite and above 0")
    found = elementwise(activation)
    moments = layer_moments(found, math.log(q))
    share = math.exp(moments.log_f2 - moments.log_d2 - math.log(q))  # of the weights in q
    sigma_b2 = 0.0 if abs(1.0 - share) <= _NOTHING else q * (1.0 - share)
    if sigma_b2 < 0.0:
        return None
    return CriticalPoint(q, math.exp(-moments.log_d2), sigma_b2, share * moments.f_slope)


def critical_points(activation: str | Activation | None, sigma_b2: float) -> tuple[CriticalPoint, ...]:
    """The points of the critical line with this variance of the biases, from the smallest q in 2e-9 … 5e8.

    Homogeneous activations (identity, ReLU, leaky ReLU) have every q at sigma_b2 = 0, of which q = 1 stands for all,
    and none beside. Without biases tanh and its like are critical only in the limit q → 0, sigma_w2 → 1/f'(0)²: such
    a limit is no point.

    Raises:
        ValueError: as `critical_at`; sigma_b2 negative or not finite.
    """
    if not (math.isfinite(sigma_b2) and sigma_b2 >= 0.0):
        raise ValueError(f"sigma_b2={sigma_b2!r} must be finite and at least 0")
    found = elementwise(activation)
    if is_homogeneous(found):
        point = critical_at(found)
        return () if point is None or sigma_b2 > 0.0 else (point,)

    def excess(log_q: float) -> float:
        """Of the bias variance that this length takes, in units of q."""
        moments = layer_moments(found, log_q)
        return -math.expm1(moments.log_f2 - moments.log_d2 - log_q) - sigma_b2 * math.exp(-log_q)

    points = (critical_at(found, math.exp(x)) for x in crossings(excess, _LOWEST, _top(found), _SPACING))
    return tuple(point for point in points if point is not None)


def attracts_from(activation: str | Activation | None) -> CriticalPoint | None:
    """Where on the critical line, from small lengths to large, lengths begin to attract; None if they nowhere do.

    For tanh and its like that is its beginning, at sigma_b2 = 0: the smallest q that is looked at, 2e-9.
    """
    found = elementwise(activation)
    return _attracts_from(found)


@functools.lru_cache(maxsize=256)
def _attracts_from(activation: Activation) -> CriticalPoint | None:
    if is_homogeneous(activation):
        return None

    def slope(log_q: float) -> float:
        moments = layer_moments(activation, log_q)
        return math.exp(moments.log_f2 - moments.log_d2 - log_q) * moments.f_slope - (1.0 - 1e-9)

    def usable(log_q: float) -> CriticalPoint | None:
        point = critical_at(activation, math.exp(log_q))
        return point if point is not None and point.attracts else None

    starts = [_LOWEST, *crossings(slope, _LOWEST, _top(activation), _SPACING)]
    starts += crossings(lambda x: _bias_share(activation, x), _LOWEST, _top(activation), _SPACING)
    for start in sorted(starts):
        point = usable(start + 1e-9)
        if point is not None:
            return point
    return None


def _top(activation: Activation) -> float:
    return min(_HIGHEST, highest(activation))


def _bias_share(activation: Activation, log_q: float) -> float:
    moments = layer_moments(activation, log_q)
    return -math.expm1(moments.log_f2 - moments.log_d2 - log_q)


def phase(field: MeanField, q: float | None = None) -> str:
    """`ordered`, `chaotic` or `critical`: whether gradients vanish, explode or stay, at the length that is kept.

    Args:
        field: the layer.
        q: the length; by default where the length 1 settles.
    """
    chi = field.depth_scales(q).chi
    return "critical" if abs(chi - 1.0) < 1e-6 else "ordered" if chi < 1.0 else "chaotic"
