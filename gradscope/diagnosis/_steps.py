"""Signals that grow or shrink from step to step, and not from layer to layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import Evidence, lasting_since
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._first_loss import last_site
from gradscope.diagnosis._learning import shrinking
from gradscope.diagnosis._words import names


def over_steps(evidence: Evidence, *, lost: bool) -> Iterator[Finding]:
    """A layer whose activation has left its first size by decades, and stays there to the end."""
    if not evidence.training or len(evidence.at) < 2 * evidence.limits.hysteresis:
        return
    sites = evidence.sites("activation")
    last = last_site(evidence)  # an output grows to what the loss asks of it
    chosen = [i for i, s in enumerate(sites) if s.role in ("pre-activation", "block") and s is not last]
    if not chosen:
        return
    level = evidence.level("activation")[:, chosen]
    first = level[0]
    if not lost:  # a layer that begins at nothing and comes up to the others has not grown beyond them
        first = np.maximum(first, np.nanmedian(first[np.isfinite(first)]) if np.isfinite(first).any() else 0.0)
    with np.errstate(invalid="ignore"):
        change = level - first
    limit = evidence.limits.activation_decades
    if lost and shrinking(evidence):
        limit /= 3
    sign, kind, word = (-1, "vanishing-activation", "shrunk") if lost else (1, "exploding-activation", "grown")
    beyond = sign * change >= limit
    lasting = np.all(beyond[-evidence.limits.hysteresis :], axis=0)
    if not lasting.any():
        return
    kept = [sites[i] for i, bad in zip(chosen, lasting.tolist(), strict=True) if bad]
    since = lasting_since(beyond[:, lasting])
    value = float(np.nanmax(sign * change[-1][lasting]))
    if not np.isfinite(value):
        value = limit
    yield Finding(
        kind,
        "error",
        f"In training the activation of {kept[0].name!r} has {word} by {value:.1f} decades, and since step "
        f"{evidence.step(since)} it is beyond {limit:.2g}.",
        "lower the learning rate, or clip the gradient" if sign > 0 else "lower the weight decay",
        "",
        direction="forward",
        sites=names(kept),
        steps=(evidence.step(since),),
        frontier=kept[0],
        value=sign * value,
        unit="decades of rms over the steps",
        limit=sign * limit,
        limit_from="of the first step",
        expected=0.0,
        causes=("the weights grew",) if sign > 0 else ("the weights shrank",),
    )
