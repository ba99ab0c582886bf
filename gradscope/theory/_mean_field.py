"""The maps of a wide plain network, their fixed points, and how many layers a signal survives.

    h' = W f(h) + b,   W_ij ~ N(0, sigma_w2/fan_in),   b_i ~ N(0, sigma_b2)

    q'  = V(q) = sigma_w2·E[f(√q z)²] + sigma_b2                       length of h, per unit
    c'  = (sigma_w2·E[f(u₁) f(u₂)] + sigma_b2)/√(V(q₁) V(q₂))          correlation of two inputs' h
    chi = sigma_w2·E[f'(u₁) f'(u₂)]                                    slope of c', factor of a gradient's mean square

with u₁, u₂ of variances q₁, q₂ and correlation c (Poole et al. 2016; Schoenholz et al. 2017). The slope of the
*length* map, V'(q), is another thing than chi: it says whether a length is kept, chi whether a gradient is.
"""

from __future__ import annotations

import functools
import math
from contextlib import suppress
from dataclasses import dataclass

from gradscope.activations import Activation
from gradscope.theory._gain import elementwise, second_moment, slope_moment
from gradscope.theory._moments import is_homogeneous, layer_moments
from gradscope.theory._pair import expect_pair
from gradscope.theory._roots import crossings

_LOWEST, _HIGHEST = -70.0, (70.0, 20.0, 8.0)  # of ln q: beyond, E[f²] is a power law
_SPACING = 0.5
_CRITICAL = 1e-10
"""So close to 1 a slope counts as 1."""

TRAINABLE = 6.0
"""Depth to which plain networks could be trained, in units of xi_c (Schoenholz et al. 2017, section 5)."""


@dataclass(frozen=True)
class FixedPoint:
    """A length that a layer keeps.

    Attributes:
        q: mean square of a pre-activation.
        slope: V'(q): a deviation from q is multiplied by it in each layer.
    """

    q: float
    slope: float

    @property
    def attracts(self) -> bool:
        """Whether lengths beside it come nearer."""
        return abs(self.slope) < 1.0 - _CRITICAL

    @property
    def xi_q(self) -> float:
        """Layers in which a deviation shrinks to 1/e; infinite where it does not."""
        return _depth(abs(self.slope))


@dataclass(frozen=True)
class DepthScales:
    """What becomes of a signal at a fixed length.

    Attributes:
        q: the length.
        xi_q: layers in which a deviation from it shrinks to 1/e.
        chi: sigma_w2·E[f'²]: factor of a gradient's mean square per layer. Above 1 is chaos, below 1 order.
        xi_grad: layers in which the gradient's mean square changes by e; infinite at chi = 1.
        c: correlation that two inputs come to.
        xi_c: layers in which a deviation from that shrinks to 1/e.
    """

    q: float
    xi_q: float
    chi: float
    xi_grad: float
    c: float
    xi_c: float

    @property
    def trainable_depth(self) -> float:
        """About 6 xi_c: deeper plain networks of this kind could not be trained (Schoenholz et al. 2017)."""
        return TRAINABLE * self.xi_c


@dataclass(frozen=True)
class MeanField:
    """A layer of a wide network, by its activation and the variances of its weights and biases.

    Args:
        activation: a name as `activations.get` takes it, or an `Activation`; elementwise.
        sigma_w2: fan_in·(variance of one weight); above 0.
        sigma_b2: variance of one bias; 0 or more.

    Raises:
        ValueError: a variance out of its range, an unknown activation, or one that is not elementwise.

    >>> he = MeanField("relu", 2.0)
    >>> round(he.length(3.0), 12), round(he.chi(3.0), 12)
    (3.0, 1.0)
    >>> tanh = MeanField("tanh", 1.3, 0.05).depth_scales()
    >>> round(tanh.q, 8), round(tanh.chi, 8), round(tanh.trainable_depth, 1)
    (0.31531648, 0.88016351, 47.0)
    """

    activation: Activation
    sigma_w2: float
    sigma_b2: float = 0.0

    def __init__(self, activation: str | Activation | None, sigma_w2: float, sigma_b2: float = 0.0) -> None:
        if not (math.isfinite(sigma_w2) and sigma_w2 > 0.0):
            raise ValueError(f"sigma_w2={sigma_w2!r} must be finite and above 0")
        if not (math.isfinite(sigma_b2) and sigma_b2 >= 0.0):
            raise ValueError(f"sigma_b2={sigma_b2!r} must be finite and at least 0")
        object.__setattr__(self, "activation", elementwise(activation))
        object.__setattr__(self, "sigma_w2", float(sigma_w2))
        object.__setattr__(self, "sigma_b2", float(sigma_b2))

    def length(self, q: float) -> float:
        """V(q): the length after one more layer."""
        return self.sigma_w2 * second_moment(self.activation, q) + self.sigma_b2

    def length_slope(self, q: float) -> float:
        """V'(q) = sigma_w2·E[(z² − 1) f(√q z)²]/(2q), for q above 0 (Stein's lemma)."""
        found = layer_moments(self.activation, math.log(q))
        return self.sigma_w2 * math.exp(found.log_f2 - math.log(q)) * found.f_slope

    def correlation(self, c: float, q1: float, q2: float | None = None) -> float:
        """The correlation of two inputs' pre-activations after one more layer.

        Args:
            c: before it.
            q1: length of the one.
            q2: of the other; the same by default.
        """
        q2 = q1 if q2 is None else q2
        norm = math.sqrt(self.length(q1) * self.length(q2))
        return (self.sigma_w2 * self.second_moment(c, q1, q2) + self.sigma_b2) / norm

    def second_moment(self, c: float, q1: float, q2: float | None = None) -> float:
        """E[f(u₁) f(u₂)]: the mean product of two inputs' activations."""
        f = self.activation
        return expect_pair(f.function, f.function, q1, q1 if q2 is None else q2, c, f.kinks, f.kinks)

    def chi(self, q: float, c: float = 1.0, q2: float | None = None) -> float:
        """sigma_w2·E[f'(u₁) f'(u₂)]; at c = 1 the factor of a gradient's mean square on its way back."""
        f = self.activation
        if c == 1.0 and q2 in (None, q):
            return self.sigma_w2 * slope_moment(f, q)
        slopes = expect_pair(f.derivative, f.derivative, q, q if q2 is None else q2, c, f.kinks, f.kinks)
        return self.sigma_w2 * slopes

    @property
    def keeps_any_length(self) -> bool:
        """Whether every q is a fixed point: f(s h) = s f(h) for s > 0, as ReLU, at just the right variance."""
        return self._is_power_law and abs(self.length(1.0) - 1.0) <= _CRITICAL

    @property
    def _is_power_law(self) -> bool:
        return is_homogeneous(self.activation) and self.sigma_b2 == 0.0

    def fixed_points(self) -> tuple[FixedPoint, ...]:
        """The lengths that a layer keeps, from the smallest; 0 is one where f(0) = 0 and there are no biases.

        Where `keeps_any_length`, they are not listed.
        """
        found = []
        if self.sigma_b2 == 0.0 and second_moment(self.activation, 0.0) == 0.0:
            found.append(FixedPoint(0.0, math.exp(self._log_growth(_LOWEST))))
        if not self._is_power_law:
            roots = crossings(self._log_growth, _LOWEST, highest(self.activation), _SPACING)
            found += [FixedPoint(math.exp(x), self.length_slope(math.exp(x))) for x in roots if self._crosses(x)]
        return () if self.keeps_any_length else tuple(found)

    def _crosses(self, log_q: float) -> bool:
        """Whether the growth is more than rounding beside its zero: tanh's, at sigma_w2 = 1, is −2q for small q."""
        return max(abs(self._log_growth(log_q - 1.0)), abs(self._log_growth(log_q + 1.0))) > _CRITICAL

    def _log_growth(self, log_q: float) -> float:
        """ln(V(q)/q), also where q leaves float64."""
        log_w = math.log(self.sigma_w2) + layer_moments(self.activation, log_q).log_f2
        if self.sigma_b2 == 0.0:
            return log_w - log_q
        log_b = math.log(self.sigma_b2)
        return max(log_w, log_b) + math.log1p(math.exp(-abs(log_w - log_b))) - log_q

    def settles_at(self, q: float = 1.0) -> FixedPoint:
        """Where lengths end that begin at q: the nearest fixed point in the direction in which V takes it.

        A length that grows without end comes to `FixedPoint(inf, …)`.
        """
        if self.keeps_any_length:
            return FixedPoint(q, 1.0)
        growth = self._log_growth(math.log(q))
        points = self.fixed_points()
        if abs(growth) <= _CRITICAL:
            return FixedPoint(q, self.length_slope(q))
        ahead = [p for p in points if (p.q > q if growth > 0.0 else p.q < q)]
        if ahead:
            return min(ahead, key=lambda p: abs(p.q - q))
        return FixedPoint(math.inf, math.exp(self._log_growth(highest(self.activation))))

    def settles_at_correlation(self, q: float) -> float:
        """The correlation that two different inputs of this length, a fixed point, come to.

        c' is a power series in c with coefficients of one sign, and 1 is a fixed point of it: where chi ≤ 1 it is the
        only one in [0, 1]; else there is one more, which attracts.
        """
        if self.chi(q) <= 1.0 + _CRITICAL:
            return 1.0
        c = 0.0
        for _ in range(100):  # Newton's method climbs a convex function's nearest root from the left
            step = (self.correlation(c, q) - c) / (1.0 - self._correlation_slope(c, q))
            c += step
            if step <= 1e-14:
                break
        return c

    def _correlation_slope(self, c: float, q: float) -> float:
        return self.chi(q, c) * q / self.length(q)

    def depth_scales(self, q: float | None = None) -> DepthScales:
        """What becomes of a signal at a fixed length, by default at that where the length 1 settles.

        Raises:
            ValueError: lengths settle nowhere, or at 0.
        """
        if q is None:
            q = self.settles_at().q
            if q == 0.0 or math.isinf(q):
                fate = "vanish" if q == 0.0 else "grow without end"
                raise ValueError(f"lengths {fate} under {self}: there is no length to settle at; give q")
        chi, c = self.chi(q), self.settles_at_correlation(q)
        slope = self._correlation_slope(c, q)
        return DepthScales(
            q=q,
            xi_q=_depth(abs(self.length_slope(q))),
            chi=chi,
            xi_grad=_depth(chi),
            c=c,
            xi_c=_depth(slope),
        )

    def __str__(self) -> str:
        return f"{self.activation.name}, sigma_w2={self.sigma_w2:g}, sigma_b2={self.sigma_b2:g}"


@functools.lru_cache(maxsize=256)
def highest(activation: Activation) -> float:
    """The largest ln q that is looked at: of a wave, which no quadrature resolves at any length, a smaller one."""
    for log_q in _HIGHEST:
        with suppress(ArithmeticError):
            layer_moments(activation, log_q)
            return log_q
    raise ArithmeticError(f"activation={activation.name!r} varies too fast: its moments cannot be computed")


def _depth(slope: float) -> float:
    """−1/ln slope, without its sign: the layers in which what is multiplied by it changes by e."""
    if slope == 0.0:
        return 0.0
    return math.inf if abs(slope - 1.0) <= _CRITICAL else abs(1.0 / math.log(slope))
