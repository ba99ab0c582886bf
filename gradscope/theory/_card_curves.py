"""An activation's card as curves: its gains and slopes against the length q, and the fates of the usual gains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.activations import Activation
from gradscope.theory._card import Card, card
from gradscope.theory._gain import elementwise
from gradscope.theory._moments import layer_moments
from gradscope.theory._propagate import propagate

Array = NDArray[np.float64]

_DECADES, _POINTS = 2.0, 61
"""Of q to either side of 1."""
_DEPTH = 50
_WIDTH = 256
"""The profile of a fate does not depend on it."""


@dataclass(frozen=True, eq=False)
class FateCurve:
    """A plain network without biases under one gain, of an input of mean square 1.

    Attributes:
        title: whose gain it is.
        gain: √(fan_in·(variance of one weight)).
        log10_q: log10 of the pre-activations' mean square, layer by layer, `(depth,)`.
        log10_p: of their gradient's, 0 at the last layer, `(depth,)`.
    """

    title: str
    gain: float
    log10_q: Array
    log10_p: Array


@dataclass(frozen=True, eq=False)
class CardCurves:
    """What a card's numbers are at other lengths and depths.

    Attributes:
        card: the card, of the length 1 unless asked otherwise.
        q: lengths, from 0.01 to 100 times the card's, `(points,)`.
        forward_gain: √(q/E[f²]), `(points,)`.
        backward_gain: 1/√E[f'²], `(points,)`.
        chi: their ratio squared: factor of a gradient's mean square per layer where the length q is kept, `(points,)`.
        length_slope: V'(q) under the forward gain, `(points,)`; below 1 a length comes back to q.
        fates: of the gains in common use, over 50 layers.
    """

    card: Card
    q: Array
    forward_gain: Array
    backward_gain: Array
    chi: Array
    length_slope: Array
    fates: tuple[FateCurve, ...]


def card_curves(activation: str | Activation | None, q: float = 1.0) -> CardCurves:
    """The curves of an activation's card.

    Args:
        activation: a name as `activations.get` takes it; elementwise.
        q: mean square of the pre-activations on the card, above 0.

    Raises:
        ValueError: as `card`.

    >>> curves = card_curves("relu")
    >>> bool(np.allclose(curves.forward_gain, np.sqrt(2))), round(float(curves.fates[2].log10_q[-1]), 5)
    (True, 0.30103)
    """
    found = elementwise(activation)
    whole = card(found, q)
    lengths = q * 10.0 ** np.linspace(-_DECADES, _DECADES, _POINTS)
    moments = [layer_moments(found, math.log(one)) for one in lengths.tolist()]
    log_f2, log_d2 = (np.array([getattr(one, name) for one in moments]) for name in ("log_f2", "log_d2"))
    return CardCurves(
        card=whole,
        q=lengths,
        forward_gain=np.sqrt(lengths) * np.exp(-0.5 * log_f2),
        backward_gain=np.exp(-0.5 * log_d2),
        chi=lengths * np.exp(log_d2 - log_f2),
        length_slope=np.array([one.f_slope for one in moments]),
        fates=tuple(_fate(found, one.title, one.gain) for one in whole.fates),
    )


def _fate(activation: Activation, title: str, gain: float) -> FateCurve:
    found = propagate(activation, _DEPTH, weight_variance=gain**2 / _WIDTH, fan_in=_WIDTH)
    return FateCurve(title, gain, 2.0 * found.pre, 2.0 * found.pre_grad)
