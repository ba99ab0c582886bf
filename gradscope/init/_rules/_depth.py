"""Activations that keep no length: He before GELU, SiLU, Mish or hardswish is right for a layer and wrong for fifty."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from gradscope.activations import Activation
from gradscope.diagnosis import Finding
from gradscope.init._audit_weight import Weight
from gradscope.init._audited import Audited, Stretch, audit_rule
from gradscope.init._rules._gain import OTHER_CAUSES
from gradscope.init._rules._passage import passage
from gradscope.init._rules._words import HEALTHY_BAND, LOST, names
from gradscope.theory import CriticalPoint, card, critical_at, propagate
from gradscope.theory._moments import layer_moments

_LENGTHS = (4.0, 6.0, 9.0, 14.0, 20.0)
"""Where on the critical line a length is looked for that attracts: from the smallest."""


@audit_rule("drifting-length")
def drifting_length(audited: Audited) -> Iterator[Finding]:
    """Rows so deep that lengths have left the healthy band, for the fixed point of the length map repels."""
    explained = audited.sites(*OTHER_CAUSES, "gain-mismatch")
    rows = [
        (stretch, way)
        for stretch in audited.stretches
        if any(map(_repels, stretch.row)) and not any(w.name in explained for w in stretch.row)
        if abs((way := passage(stretch.row, biases=True)).forward) >= HEALTHY_BAND
    ]
    if not rows:
        return
    stretch, way = max(rows, key=lambda one: abs(one[1].forward))
    row = stretch.row
    first = next(place for place, decades in enumerate(way.after, 1) if abs(decades) >= HEALTHY_BAND)
    worst = next(w.activation for w in row if w.activation is not None and _repels(w))
    known = card(worst)
    yield Finding(
        "drifting-length",
        "warning" if abs(way.forward) >= LOST and not stretch.closed else "note",
        f"{len(row)} layers with {worst.name} have no norm and no residual sum in between. A length that is off goes "
        f"further off (slope of the length map {known.length_slope:.3g} at the gain {known.forward_gain:.3g} that "
        f"keeps it): behind layer {first} the activations' rms is out of the healthy band, at the end it has "
        f"{'lost' if way.forward < 0.0 else 'gained'} {abs(way.forward):.1f} decades, and the gradient's "
        f"{abs(way.backward):.1f}. One network may stray from that by a factor of ten.",
        _remedy(stretch, worst),
        "Hayou, Doucet & Rousseau (2019); Hanin & Nica (2020)",
        direction="forward",
        sites=names(row),
        value=way.forward,
        unit="decades of rms",
        limit=HEALTHY_BAND,
        limit_from="the healthy band",
    )


def _repels(weight: Weight) -> bool:
    """Whether under the gain that keeps a length others leave it: V' above 1."""
    return weight.activation is not None and layer_moments(weight.activation, 0.0).f_slope > 1.0 + 1e-6


def _remedy(stretch: Stretch, activation: Activation) -> str:
    """Weights and biases of a critical point that attracts, where one keeps this row in the band; else words."""
    words = "put a norm before the activations, or residual sums around them"
    row = stretch.row
    kinds = sorted({type(w.module).__name__ for w in row})
    usual = all(type(w.module) is getattr(nn, type(w.module).__name__, None) and w.bias is not None for w in row)
    point = _attracting(activation, len(row))
    if point is None or not usual or any(w.activation != activation for w in row):
        return f"# {words}"
    scheme = f'gradscope.init.VarianceScaling({point.sigma_w2:.4g}, "fan_in", "normal")'
    biases = f"nn.init.normal_(m.bias, std={math.sqrt(point.sigma_b2):.3g})"
    which = " | ".join(f"nn.{kind}" for kind in kinds)
    return (
        f"gradscope.init.initialize(model, {scheme}); "
        f"[{biases} for m in model.modules() if isinstance(m, {which}) and m.bias is not None]  # or {words}"
    )


def _attracting(activation: Activation, depth: int) -> CriticalPoint | None:
    """A critical point at which so many layers keep the length 1 in the healthy band."""
    for q in _LENGTHS:
        point = critical_at(activation, q)
        if point is None or not point.attracts:
            continue
        found = propagate(activation, depth, weight_variance=point.sigma_w2, fan_in=1, bias_variance=point.sigma_b2)
        if abs(found.pre[-1] - found.pre[0]) < 0.5 * HEALTHY_BAND:
            return point
    return None
