"""A fault in words: where it is, how large, and what could be wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradscope.activations import Activation
from gradscope.testing._match import Direction, TheoryMatch
from gradscope.testing._places import Between, Weights

_CLEARLY = 1.1
"""A factor, of mean squares, from which the weights' own is worth a word."""
_TINY = 1e-37
"""Below this rms float32 has lost digits: its smallest normal number is 1.2e-38."""


def explained(
    match: TheoryMatch,
    place: int,
    direction: Direction,
    z: float,
    layers: Sequence[Weights],
    between: Sequence[Between],
    activations: Sequence[Activation],
    w2: Sequence[float],
) -> str:
    """The message of a failed assertion.

    Args:
        match: all scores.
        place: which is off, as an index into `match.places`.
        direction: that in which it is the first.
        z: the limit.
        layers, between: what was measured.
        activations, w2: what was expected.
    """
    index, is_between = divmod(place, 2)
    layer = layers[index]
    if is_between:
        gap = between[index]
        where = f"between {gap.before!r} and {gap.after!r} ({activations[index].name}), after layer {index + 1}"
        reasons = _of_gap(gap, activations[index])
    else:
        where = f"{layer.layer!r} ({layer.kind}), layer {index + 1}"
        reasons = _of_layer(layer, w2[index])
    lines = [
        f"{where} of {len(layers)}, is not what theory expects, {direction} the first to be so:",
        _line("forward", match.forward[place], match.forward_expected[place], match.forward_z[place]),
        _line("backward", match.backward[place], match.backward_expected[place], match.backward_z[place]),
        f"  both together: z = {match.both_z[place]:+.1f}; allowed is ±{z:g}",
    ]
    reasons += _of_numbers(layer, between[index] if is_between else None)
    reasons = reasons or [
        "something here changes the signal that is no part of a plain chain, or the weights are not independent numbers"
        " of mean 0, as those of a trained network",
    ]
    others = sum(
        any(abs(score[i]) > z for score in (match.forward_z, match.backward_z, match.both_z))
        for i in range(len(match.places))
        if i != place
    )
    if others:
        reasons.append(f"{others} more of {len(match.places)} places are off too")
    return "\n".join([*lines, *(f"  · {reason}" for reason in reasons)])


def _line(direction: Direction, measured: float, expected: float, z: float) -> str:
    what = "mean square" if direction == "forward" else "gradient's mean square"
    return f"  {direction}: the {what} is multiplied by {measured:.4g}, expected is {expected:.4g} (z = {z:+.1f})"


def _of_gap(gap: Between, expected: Activation) -> list[str]:
    reasons = []
    if gap.found.name != expected.name:
        reasons.append(f"the activation found here is {gap.found.name}, where {expected.name} is expected")
    for note in gap.notes:
        reasons.append(f"there is {note}" + ("; model.eval() turns it off" if "dropout" in note else ""))
    return reasons


def _of_layer(layer: Weights, expected: float) -> list[str]:
    reasons = []
    ratio = layer.w2 / expected if expected > 0.0 else math.inf
    if not 1.0 / _CLEARLY < ratio < _CLEARLY:
        reasons.append(f"the mean square of its weights is {layer.w2:.4g}, {ratio:.3g} times what is expected")
    entries = math.prod(layer.shape)
    if layer.w2 > 0.0 and abs(layer.mean) * math.sqrt(entries) > 6.0 * math.sqrt(layer.w2):
        reasons.append(f"its weights have the mean {layer.mean:.3g}, where theory has 0")
    return reasons


def _of_numbers(layer: Weights, gap: Between | None) -> list[str]:
    forward, backward = (layer.returned, layer.grad_returned) if gap is None else (gap.returned, gap.grad_returned)
    reasons = []
    for what, square in (("signal", forward), ("gradient", backward)):
        if not math.isfinite(square):
            reasons.append(f"the {what} is not finite")
        elif square < _TINY**2:
            reasons.append(f"the {what}'s rms is {math.sqrt(square):.3g}: float32 cannot hold it, model.double() can")
    return reasons
