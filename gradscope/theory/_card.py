"""All that mean-field theory says of one activation, on one card."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradscope.activations import Activation
from gradscope.theory._callable import activation_of
from gradscope.theory._critical import CriticalPoint, attracts_from, critical_at
from gradscope.theory._gain import elementwise
from gradscope.theory._mean_field import FixedPoint, MeanField, highest
from gradscope.theory._moments import is_homogeneous, layer_moments
from gradscope.theory._quadrature import expect

_TORCH_GAINS = {"tanh": 5.0 / 3.0, "selu": 0.75}
"""Those of `torch.nn.init.calculate_gain` that follow from no moment of the activation."""


@dataclass(frozen=True)
class Fate:
    """What becomes of a deep plain network without biases under one gain.

    Attributes:
        title: whose gain it is.
        gain: √sigma_w2 = √(fan_in·(variance of one weight)).
        settles: the length to which the length 1 comes.
        chi: factor of the gradient's mean square per layer there.
    """

    title: str
    gain: float
    settles: FixedPoint
    chi: float


@dataclass(frozen=True)
class Card:
    """An activation behind pre-activations h = √q z, z ~ N(0, 1).

    Attributes:
        activation: which.
        q: mean square of the pre-activations.
        mean: E[f].
        second_moment: E[f²].
        slope_moment: E[f'²].
        forward_gain: √(q/E[f²]): with weights of variance gain²/fan_in the next layer has the length q again.
        backward_gain: 1/√E[f'²]: with gain²/fan_out a gradient's mean square is kept.
        length_slope: V'(q) under the forward gain, d ln E[f²]/d ln q: below 1 lengths come back to q, above 1 they
            leave it.
        kappa_f: E[f⁴]/E[f²]² − 1: per layer of n units it adds kappa_f/n to the variance of the log of the length.
        kappa_b: 3·E[f'⁴]/E[f'²]² − 1: likewise of the gradient.
        layer_norm_rate: factor of the gradient's mean square per layer of Linear, LayerNorm (or RMSNorm) and f.
        batch_norm_rate: likewise with BatchNorm over a large batch, E[f'²]/Var f at q = 1; never below 1 (Yang et
            al. 2019).
        critical: the variances that keep the gradient at this length; None where none do.
        attracts_from: where on the critical line lengths begin to attract; None where they nowhere do.
        fates: of the gains in common use.
    """

    activation: Activation
    q: float
    mean: float
    second_moment: float
    slope_moment: float
    forward_gain: float
    backward_gain: float
    length_slope: float
    kappa_f: float
    kappa_b: float
    layer_norm_rate: float
    batch_norm_rate: float
    critical: CriticalPoint | None
    attracts_from: CriticalPoint | None
    fates: tuple[Fate, ...]

    @property
    def chi(self) -> float:
        """(forward_gain/backward_gain)²: factor of the gradient's mean square per layer where lengths are kept."""
        return (self.forward_gain / self.backward_gain) ** 2

    @property
    def keeps_any_length(self) -> bool:
        """Whether the gain is the same for every q: ReLU, leaky ReLU, identity."""
        return is_homogeneous(self.activation)

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do with it in a deep network, in sentences."""
        return tuple(_advice(self))

    def __str__(self) -> str:
        rows = [
            ("E[f], E[f²], E[f'²]", f"{_number(self.mean)}, {self.second_moment:.6g}, {self.slope_moment:.6g}"),
            ("gain forward, backward", f"{self.forward_gain:.6g}, {self.backward_gain:.6g}"),
            ("chi where lengths are kept", f"{self.chi:.6g}"),
            ("slope of the length map", f"{self.length_slope:.6g}"),
            ("spread per layer of n units", f"{self.kappa_f:.4g}/n forward, {self.kappa_b:.4g}/n backward"),
            ("gradient per layer, LayerNorm", f"×{self.layer_norm_rate:.6g} in mean square"),
            ("gradient per layer, BatchNorm", f"×{self.batch_norm_rate:.6g} in mean square"),
            ("critical at this length", _words(self.critical)),
            ("critical and attracting", "everywhere" if self.keeps_any_length else _from(self.attracts_from)),
        ]
        rows += [(f"{fate.title}, gain {fate.gain:.4g}", _fate_words(fate)) for fate in self.fates]
        width = max(len(left) for left, _ in rows)
        head = f"{self.activation.name} behind pre-activations of mean square q = {self.q:g}"
        said = [line for sentence in self.advice for line in textwrap.wrap(sentence, 110)]
        return "\n".join([head, *(f"  {left:<{width}}  {right}" for left, right in rows), *said])


def card(activation: str | Activation | Callable[..., Any] | None, q: float = 1.0) -> Card:
    """The card of an activation, also of a function of your own; `activation_of` names one and takes its slope.

    Args:
        activation: a name as `activations.get` takes it, an `Activation`, or a numpy function; elementwise.
        q: mean square of the pre-activations, above 0.

    Raises:
        ValueError: an unknown activation, or one that is not elementwise; q not above 0.

    >>> relu = card("relu")
    >>> round(relu.forward_gain, 12), round(relu.chi, 12), round(relu.batch_norm_rate, 5)
    (1.414213562373, 1.0, 1.46694)
    >>> card("gelu").length_slope > 1, card("tanh").length_slope < 1
    (True, True)
    """
    if not (math.isfinite(q) and q > 0.0):
        raise ValueError(f"q={q!r} must be finite and above 0")
    own = callable(activation) and not isinstance(activation, Activation)
    found = elementwise(activation_of(activation) if own else activation)  # type: ignore[arg-type]
    here, at_one = layer_moments(found, math.log(q)), layer_moments(found, 0.0)
    one_mean = expect(found.function, 1.0, found.kinks)
    second = math.exp(here.log_f2)
    return Card(
        activation=found,
        q=q,
        mean=expect(found.function, q, found.kinks),
        second_moment=second,
        slope_moment=math.exp(here.log_d2),
        forward_gain=math.sqrt(q / second),
        backward_gain=math.exp(-0.5 * here.log_d2),
        length_slope=here.f_slope,
        kappa_f=here.kappa_f,
        kappa_b=here.kappa_b,
        layer_norm_rate=math.exp(at_one.log_d2 - at_one.log_f2),
        batch_norm_rate=math.exp(at_one.log_d2) / (math.exp(at_one.log_f2) - one_mean**2),
        critical=critical_at(found, q),
        attracts_from=attracts_from(found),
        fates=tuple(_fate(found, title, gain) for title, gain in _usual_gains(found)),
    )


def _usual_gains(activation: Activation) -> list[tuple[str, float]]:
    own = math.exp(-0.5 * layer_moments(activation, 0.0).log_f2)
    gains = [
        ("torch's default of Linear", 1.0 / math.sqrt(3.0)),
        ("LeCun, or Glorot of equal fans", 1.0),
        ("He", math.sqrt(2.0)),
        ("1/√E[f²] at q = 1", own),
    ]
    if activation.name in _TORCH_GAINS:
        gains.append(("torch's calculate_gain", _TORCH_GAINS[activation.name]))
    return gains


def _fate(activation: Activation, title: str, gain: float) -> Fate:
    field = MeanField(activation, gain**2)
    settles = field.settles_at()
    top = highest(activation)
    log_q = -70.0 if settles.q == 0.0 else min(math.log(settles.q), top)
    return Fate(title, gain, settles, gain**2 * math.exp(layer_moments(activation, log_q).log_d2))


def _advice(card: Card) -> list[str]:
    said = []
    if not card.keeps_any_length and card.length_slope > 1.0:
        said.append(
            "Lengths leave this q, whatever the gain: a deep plain network drifts to 0 or to infinity. "
            "Put a norm layer before the activation, or use residual branches"
            + (
                f", or biases: from sigma_w = {math.sqrt(card.attracts_from.sigma_w2):.4g} and sigma_b = "
                f"{math.sqrt(card.attracts_from.sigma_b2):.4g} on along the critical line lengths are kept."
                if card.attracts_from is not None
                else "."
            )
        )
    elif not card.keeps_any_length:
        rate = math.log10(card.chi)
        if abs(rate) > 0.001 and card.critical is not None:
            said.append(
                f"With the forward gain the gradient's mean square changes by {rate:+.3f} decades per layer; "
                f"sigma_w = {math.sqrt(card.critical.sigma_w2):.4g} with biases of sigma_b = "
                f"{math.sqrt(card.critical.sigma_b2):.4g} keeps both."
            )
        elif card.critical is None:
            said.append(
                f"No variances keep length and gradient at this q: with the forward gain the gradient's mean square "
                f"changes by {rate:+.3f} decades per layer. Use a norm layer, residual branches, or another activation."
            )
    if card.batch_norm_rate > 1.01:
        said.append(
            f"Behind BatchNorm the gradient's mean square grows by {math.log10(card.batch_norm_rate):.3f} decades "
            "per layer at any weights: residual branches keep it."
        )
    return said


def _number(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-14 else value:.6g}"


def _words(point: CriticalPoint | None) -> str:
    if point is None:
        return "never: it would take biases of negative variance"
    kind = "attracting" if point.attracts else "not attracting"
    return f"sigma_w = {math.sqrt(point.sigma_w2):.6g}, sigma_b = {math.sqrt(point.sigma_b2):.6g}, {kind}"


def _from(point: CriticalPoint | None) -> str:
    if point is None:
        return "nowhere"
    return (
        f"from q = {point.q:.5g}: sigma_w = {math.sqrt(point.sigma_w2):.6g}, sigma_b = {math.sqrt(point.sigma_b2):.6g}"
    )


def _fate_words(fate: Fate) -> str:
    q = fate.settles.q
    length = "vanishes" if q == 0.0 else "grows without end" if math.isinf(q) else f"settles at q = {q:.6g}"
    return f"length {length}, gradient ×{fate.chi:.6g} per layer there"
