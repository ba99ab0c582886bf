"""Gains: a variance that is not what the activation behind needs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradscope.diagnosis import SEVERITIES, Direction, Finding
from gradscope.init._audit_weight import Weight
from gradscope.init._audited import Audited, Stretch, audit_rule
from gradscope.init._rules._passage import asked, passage, with_measured
from gradscope.init._rules._words import HEALTHY_BAND, NOTABLE, count, names, severity
from gradscope.theory import slope_moment

OTHER_CAUSES = ("default-init", "swapped-fans", "magic-gain", "expanding-orthogonal")
"""Rules that explain a variance; where one does, no other says that it is wrong."""

_TOO_FAR = 1.5
_LEAST = 0.5
"""Decades of rms that are worth a word: a factor of three."""

_MAGIC = (
    ("selu", 0.75, "SELU with gain 3/4 does not normalize itself: activations settle at a standard deviation of 0.20."),
    ("tanh", 5.0 / 3.0, "tanh with gain 5/3 is chaotic: a gradient's mean square grows by 1.21 in each layer."),
)


@audit_rule("magic-gain")
def magic_gain(audited: Audited) -> Iterator[Finding]:
    """torch's gains for SELU and tanh: the one does not normalize itself, the other is chaotic."""
    for name, gain, said in _MAGIC:
        found = [
            w
            for w in audited.weights
            if w.activation is not None and w.activation.name == name and w.has(gain**2 / w.fans.fan_in)
        ]
        if found:
            in_a_row = max(sum(w in found for w in one.row) for one in (*audited.stretches, Stretch(())))
            yield Finding(
                "magic-gain",
                "warning" if in_a_row > 5 else "note",
                f"{len(found)} layers before {name} have the gain of torch.nn.init.calculate_gain. {said}",
                audited.initialize,
                "Klambauer et al. (2017); pytorch#24991" if name == "selu" else "Schoenholz et al. (2017)",
                direction="both",
                sites=names(found),
                value=found[0].forward,
                unit="fan_in·variance",
                expected=found[0].asked,
            )


@audit_rule("gain-mismatch")
def gain_mismatch(audited: Audited) -> Iterator[Finding]:
    """Layers whose variance costs decades that the recommended one would not, and that no other rule explains."""
    explained = audited.sites(*OTHER_CAUSES)
    rows = []
    for stretch in audited.stretches:
        if _made_up_by_biases(stretch):
            continue
        blamed = [w for w in stretch.row if w.name not in explained and _is_off(w)]
        cost, direction, decades = _cost(stretch, blamed)
        if blamed and cost >= (HEALTHY_BAND if stretch.closed else _LEAST):
            rows.append((stretch, blamed, direction, decades))
    if not rows:
        return
    stretch, blamed, direction, decades = max(
        rows, key=lambda row: (-SEVERITIES.index(severity(row[3], row[0])), abs(row[3]))
    )
    every = [w for _, ones, _, _ in rows for w in ones]
    worst = max(blamed, key=lambda w: abs(math.log(w.forward / w.asked)))
    kinds = sorted({w.activation.name for w in every if w.activation is not None})
    what = "the activations' rms" if direction == "forward" else "the gradient's rms on its way back"
    yield Finding(
        "gain-mismatch",
        severity(decades, stretch),
        f"The variance of {count(len(names(every)), 'weight')} before {', '.join(kinds)} is not what the activation "
        f"asks for: in a row {count(len(blamed), 'layer', 'loses' if decades < 0.0 else 'adds')} "
        f"{abs(decades):.1f} decades of {what}. At {worst.name} fan_in·variance is {worst.forward:.3g}, where "
        f"{worst.asked:.3g} is usual.",
        audited.initialize,
        "He et al. (2015), eq. 10 and 14",
        direction=direction,
        sites=names(every),
        value=worst.forward,
        unit="fan_in·variance",
        expected=worst.asked,
    )


def _is_off(w: Weight) -> bool:
    """Whether the variance is neither about the recommended one, by either fan, nor one that keeps a mean square."""
    if w.activation is not None and w.activation.name == "sin":
        return False  # a frequency within the sine sets the scale (SIREN's 30), and no weight tells it
    levels = [(w.usual, _TOO_FAR), (w.needed, NOTABLE)]
    if w.activation is not None:
        levels.append((1.0 / slope_moment(w.activation), NOTABLE))
    fans = (w.fans.fan_in, w.fans.fan_out, w.fans.fan_avg)
    return all(not 1.0 / far < w.square * fan / level < far for level, far in levels for fan in fans)


def _made_up_by_biases(stretch: Stretch) -> bool:
    """Whether random biases are part of the design, and with them nothing is lost (the edge of chaos, `propagate`)."""
    if not any(w.bias_square > 0.0 for w in stretch.row):
        return False
    whole = passage(stretch.row, biases=True)
    return max(abs(whole.forward), abs(whole.backward)) < _LEAST


def _cost(stretch: Stretch, blamed: list[Weight]) -> tuple[float, Direction, float]:
    """By how many decades the row is further from 0 than it would be, which way, and the decades themselves."""
    ours, usual = passage(stretch.row, with_measured(blamed)), passage(stretch.row, asked)
    costs: list[tuple[float, Direction, float]] = [
        (abs(ours.forward) - abs(usual.forward), "forward", ours.forward - usual.forward),
        (abs(ours.backward) - abs(usual.backward), "backward", ours.backward - usual.backward),
    ]
    return max(costs)
