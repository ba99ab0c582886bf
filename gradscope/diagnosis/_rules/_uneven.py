"""Layers that learn at wildly different speeds."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import Evidence, Floats, median
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._learning import learning, learns
from gradscope.diagnosis._registry import lasting, rule
from gradscope.diagnosis._words import INITIALIZE, factor, listed, names
from gradscope.recording import Site

_WARM = 3
"""The first steps of an adaptive optimizer are larger than those that follow."""


@rule(
    "uneven-learning",
    limit="three decades between the relative updates of layers, or between one layer's and the median of the others",
    reference="Glorot & Bengio (2010); Bengio (2012)",
    needs=("update", "weight"),
    fewest=lasting,
)
def uneven_learning(evidence: Evidence) -> Iterator[Finding]:
    """Layers learn at wildly different speeds."""
    if not evidence.training or len(evidence.at) < evidence.limits.hysteresis:
        return
    kept, ratio = learning(evidence)
    if len(kept) < 2:
        return
    level = np.full(len(kept), np.nan)
    typical = median(ratio[min(_WARM, len(ratio) - 1) :])
    with np.errstate(divide="ignore"):
        level = np.log10(typical)
    known = np.isfinite(level)
    if known.sum() < 2:
        return
    if learns(evidence) and np.isfinite(evidence.loss).any():  # then nothing is too fast, and some kinds are slow
        known &= ~_excused(evidence, kept, level)
        level = np.where(known, level, np.nan)
        if known.sum() < 2:
            return
    spread = float(np.nanmax(level[known]) - np.nanmin(level[known]))
    if spread < evidence.limits.uneven_decades:
        return
    order = np.argsort(np.where(known, level, np.inf))[: int(known.sum())]
    centre = float(np.median(level[known]))
    slow, fast = int(order[0]), int(order[-1])
    sound = -4.0 < level[fast] < -1.0, -4.0 < level[slow] < -1.0
    odd = fast if level[fast] - centre > centre - level[slow] else slow
    if sound[0] != sound[1]:  # a step of a thousandth is what is usual
        odd = slow if sound[0] else fast
    sites = [evidence.layers[kept[i]].weight for i in (fast, slow)]
    chosen: Site = evidence.layers[kept[odd]].weight
    yield Finding(
        "uneven-learning",
        "warning",
        f"A step changes {sites[0].name!r} by {10 ** level[fast]:.1e} of its size and {sites[1].name!r} by "
        f"{10 ** level[slow]:.1e}: {factor(10**spread)} times less. With one learning rate the slow layers stay as "
        "they were.",
        f"give every layer weights of the scale its fan asks for, {INITIALIZE}, or its own learning rate "
        "(param_groups); Adam evens out what comes from the gradient alone",
        "Bengio (2012)",
        direction="backward",
        sites=names([chosen, *(s for s in sites if s is not chosen)]),
        frontier=chosen,
        value=spread,
        unit="decades between relative updates",
        limit=evidence.limits.uneven_decades,
        limit_from="three decades: a thousand steps of one layer are one of the other",
        expected=0.0,
        causes=(f"odd one out: {listed([chosen.name])}",),
    )


def _excused(evidence: Evidence, kept: list[int], level: Floats) -> np.ndarray:
    """Layers of a kind all of whose members, one in each of several blocks, are slow.

    Queries and keys whose attention is still even, and what stands behind a gain that begins at nearly zero, are slow
    by design, in each block; what loses its gradient over the depth is slow in some blocks, and not in others.
    """
    kinds = [re.sub(r"\d+", "#", evidence.layers[i].module) for i in kept]
    typical = float(np.nanmedian(level[np.isfinite(level)]))
    found = np.zeros(len(kept), dtype=bool)
    for kind in set(kinds):
        own = np.array([one == kind for one in kinds])
        if own.sum() >= 2 and not own.all():
            slowest, fastest = np.nanmin(level[own]), np.nanmax(level[own])
            if not np.isfinite(slowest):
                continue  # a layer that does not move at all is none of a kind
            alike = fastest - slowest < evidence.limits.uneven_decades / 2
            if fastest < typical - 1.0 or (alike and fastest < typical):
                found |= own
    return found
