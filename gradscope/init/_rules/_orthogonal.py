"""Orthogonal weights of layers with more outputs than inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from gradscope.diagnosis import Finding
from gradscope.init._audited import Audited, audit_rule
from gradscope.init._rules._matrices import orthogonal_size
from gradscope.init._rules._words import NOTABLE, names, severity


@audit_rule("expanding-orthogonal")
def expanding_orthogonal(audited: Audited) -> Iterator[Finding]:
    """Orthogonal columns keep the norm, and spread it over more units: the mean square shrinks by in/out."""
    found = [
        w
        for w in audited.weights
        if isinstance(w.module, nn.Linear)
        and w.fans.fan_out > NOTABLE * w.fans.fan_in
        and w.forward * NOTABLE < w.usual
        and orthogonal_size(w.value) is not None
    ]
    if found:
        w = found[0]
        rows = [[one for one in found if one in stretch.weights] for stretch in map(audited.stretch_of, found)]
        lost = [sum(0.5 * math.log10(one.forward / one.usual) for one in row) for row in rows]
        decades, weight = min(zip(lost, found, strict=True), key=lambda pair: pair[0])
        factors = [(one.path, round(math.sqrt(one.usual / one.forward), 4)) for one in found]
        yield Finding(
            "expanding-orthogonal",
            severity(decades, audited.stretch_of(weight)),
            "An orthogonal matrix keeps the norm, which is then spread over more units: the mean square of "
            f"{w.name}'s outputs is {w.forward:.3g} of its inputs'; in/out is {w.fans.fan_in / w.fans.fan_out:.3g}.",
            f"for name, factor in {factors!r}: model.get_parameter(name).data.mul_(factor)  # √(out/in)",
            "Saxe et al. (2014); pytorch#10672",
            direction="forward",
            sites=names(found),
            value=w.forward,
            unit="fan_in·variance",
            expected=w.usual,
        )
