"""How much each step changes the weights: too much, next to nothing, or very different from layer to layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import Evidence, median
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._registry import rule
from gradscope.diagnosis._words import factor, listed, names
from gradscope.recording import Site

_WARM = 3
"""The first steps of an adaptive optimizer are larger than those that follow; zero weights have no relative size."""


def learning(evidence: Evidence) -> tuple[list[int], np.ndarray]:
    """The layers that are trained and whose weights are not zero at the start, and their relative updates."""
    ratio = evidence.relative_update
    weight = evidence.by_layer("weight")
    kept = [
        i
        for i, layer in enumerate(evidence.layers)
        if layer.weight.trainable
        and np.isfinite(ratio[:, i]).any()
        and weight[0, i] * np.sqrt(np.prod(layer.weight.shape[1:])) > 1e-2
    ]
    return kept, ratio[:, kept]


@rule(
    "update-too-large",
    limit="relative update times number of layers beyond 1: (1 + r)^L leaves the region in which the gradient tells "
    "what a step does; and the loss does not fall, or rises",
    reference="LeCun et al. (1998), section 4.7",
    needs=("update", "weight"),
)
def update_too_large(evidence: Evidence) -> Iterator[Finding]:
    """Steps so large that they replace the weights instead of mending them."""
    if not evidence.training or not len(evidence.at):
        return
    kept, ratio = learning(evidence)
    if not kept:
        return
    with np.errstate(invalid="ignore"):
        typical = np.array([np.nan if np.isnan(row).all() else np.nanmedian(row) for row in ratio])
        worst = np.array([np.nan if np.isnan(row).all() else np.nanmax(row) for row in ratio])
    limit = evidence.limits.update_total / max(len(kept), 2)
    diverging = _diverging(evidence)
    large = np.flatnonzero((typical > limit) | (worst > 1.0))
    lasting = len(large) >= min(evidence.limits.hysteresis, max(1, len(typical) // 2))
    if diverging is None and not (lasting and not _learns(evidence)):
        return
    if not large.size and not (diverging is not None and np.nanmax(worst, initial=0.0) > limit / 3):
        return
    if not large.size:
        large = np.array([int(np.nanargmax(worst))])
    first = int(large[0])
    value = float(np.nanmax(worst[large]))
    i = int(np.nanargmax(ratio[first]))
    site = evidence.layers[kept[i]].weight
    lr = evidence.notes("lr")[first]
    rate = f" (learning rate {lr:.3g})" if np.isfinite(lr) else ""
    target = _sane(evidence, lr, value, limit)
    said = diverging or "The loss does not fall."
    yield Finding(
        "update-too-large",
        "error" if diverging else "warning",
        f"At step {evidence.step(first)} one step changes {site.name!r} by {value:.2g} times its size{rate}; over "
        f"{len(kept)} layers more than {limit:.2g} is no small step any more. {said}",
        f"lower the learning rate{target}",
        "LeCun et al. (1998), section 4.7",
        direction="both",
        sites=names([site]),
        steps=(evidence.step(first),),
        frontier=site,
        value=value,
        unit="rms of the update over that of the weight",
        limit=limit,
        limit_from=f"1 over {len(kept)} layers",
        expected=1e-3,
        causes=(f"the learning rate{rate}",),
    )


def _sane(evidence: Evidence, lr: float, value: float, limit: float) -> str:
    return f": to about {lr * limit / 10 / value:.1g}" if np.isfinite(lr) and value > 0 else ""


def _diverging(evidence: Evidence) -> str | None:
    """A sentence where the loss has grown far beyond where it began, or the run ended in NaN."""
    loss = evidence.loss
    known = loss[np.isfinite(loss)]
    if evidence.broken_at is not None:
        return f"The run is not finite any more at step {int(evidence.recording.steps[evidence.broken_at])}."
    if len(known) < 4:
        return None
    first, last = float(np.median(known[:3])), float(np.median(known[-3:]))
    spread = float(np.ptp(known[: max(3, len(known) // 2)]))
    if last > first + 3 * abs(first) and last - first > spread / 2:
        return f"The loss has grown from {first:.3g} to {last:.3g}."
    return None


def _learns(evidence: Evidence) -> bool:
    """Whether the loss has fallen by a tenth; taken for granted where it is not noted."""
    known = evidence.loss[np.isfinite(evidence.loss)]
    if len(known) < 4:
        return True
    k = max(1, len(known) // 5)
    first, last = float(np.median(known[:k])), float(np.median(known[-k:]))
    return last < first - 0.1 * abs(first)


@rule(
    "update-too-small",
    limit="no layer's relative update is ever above 1e-6: a million such steps change a weight by its own size, and "
    "float32 keeps one digit of them",
    reference="float32's relative precision, 6·10⁻⁸",
    needs=("update", "weight"),
)
def update_too_small(evidence: Evidence) -> Iterator[Finding]:
    """Steps so small that nothing is learned, in any layer."""
    if not evidence.training or len(evidence.at) < evidence.limits.hysteresis:
        return
    kept, ratio = learning(evidence)
    if not kept or not np.isfinite(ratio).any():
        return
    largest = float(np.nanmax(ratio))
    if largest >= evidence.limits.update_small:
        return
    lr = evidence.notes("lr")
    rate = float(np.nanmax(lr)) if np.isfinite(lr).any() else np.nan
    told = f" at a learning rate of {rate:.3g}" if np.isfinite(rate) else ""
    gradient = evidence.relative_gradient
    vanished = np.isfinite(gradient).any() and float(np.nanmax(gradient)) < 1e-6
    yield Finding(
        "update-too-small",
        "error",
        f"The largest update of any layer is {largest:.1e} of its weight{told}. In the {len(evidence.at)} recorded "
        "steps nothing was learned.",
        f"raise the learning rate: to about {rate * 1e-3 / largest:.1g}"
        if np.isfinite(rate) and largest > 0
        else "raise the learning rate",
        "",
        direction="both",
        sites=names([evidence.layers[i].weight for i in kept]),
        value=largest,
        unit="rms of the update over that of the weight",
        limit=evidence.limits.update_small,
        limit_from="a million steps to change a weight by its own size",
        expected=1e-3,
        causes=("the gradients are tiny beside the weights",) if vanished else ("the learning rate",),
    )


@rule(
    "uneven-learning",
    limit="three decades between the relative updates of layers, or between one layer's and the median of the others",
    reference="Glorot & Bengio (2010); Bengio (2012)",
    needs=("update", "weight"),
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
    spread = float(np.nanmax(level[known]) - np.nanmin(level[known]))
    if spread < evidence.limits.uneven_decades:
        return
    order = np.argsort(np.where(known, level, np.inf))[: int(known.sum())]
    centre = float(np.median(level[known]))
    slow, fast = int(order[0]), int(order[-1])
    odd = fast if level[fast] - centre > centre - level[slow] else slow
    sites = [evidence.layers[kept[i]].weight for i in (fast, slow)]
    chosen: Site = evidence.layers[kept[odd]].weight
    yield Finding(
        "uneven-learning",
        "warning",
        f"A step changes {sites[0].name!r} by {10 ** level[fast]:.1e} of its size and {sites[1].name!r} by "
        f"{10 ** level[slow]:.1e}: {factor(10**spread)} times less. With one learning rate the slow layers stay as "
        "they were.",
        "give every layer weights of the scale its fan asks for, gradscope.init.initialize(model), or its own learning "
        "rate (param_groups); Adam evens out what comes from the gradient alone",
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
