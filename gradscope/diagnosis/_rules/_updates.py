"""How much each step changes the weights: too much, next to nothing, or very different from layer to layer."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import Evidence, Floats, median
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._first_loss import guesses
from gradscope.diagnosis._learning import coherence, diverging, learning, learns, promised, shrinking
from gradscope.diagnosis._outside import changed_outside, inputs_rise, undone
from gradscope.diagnosis._registry import lasting, rule
from gradscope.diagnosis._words import factor, listed, names
from gradscope.recording import Site

_MANY, _EARLY = 50, 150
"""Steps from which on a loss that stands still means something, and up to which one that does not fall does: later in
a run the steps only keep up with the noise."""

_PROMISED_TOGETHER = "‖gradient‖·‖update‖, summed over the steps, over the loss"
_PROMISED_EACH = "‖gradient‖·‖update‖ of a step over the first loss"

_PROMISED_AT_LEAST = 0.03
"""Of the loss, by all steps together: less than a third of the least decrease that counts as learning."""

_PROMISED_AT_MOST, _PROMISED_OFTEN, _COUNTED_AT_MOST = 0.7, 0.3, 3.0
"""Of the first loss, by one step, in the mean, and where next to nothing of it is kept; a single one counts no more
than the last, as it may be a spike."""

_KEPT_AT_LEAST = 0.008
"""Of what the steps promised. Measured on five models with eleven rates of three optimizers: of rates that end within
twice the best loss 0.013 and more is kept, of those beyond four times the best less than 0.008."""

_WARM = 3
"""The first steps of an adaptive optimizer are larger than those that follow; zero weights have no relative size."""


@rule(
    "update-too-large",
    limit="relative update times number of layers beyond 1: (1 + r)^L leaves the region in which the gradient tells "
    "what a step does; and the loss does not fall, or rises",
    reference="LeCun et al. (1998), section 4.7",
    needs=("update", "weight"),
    of_the_start=(_PROMISED_EACH,),
)
def update_too_large(evidence: Evidence) -> Iterator[Finding]:
    """Steps so large that they replace the weights instead of mending them."""
    if not evidence.training or not len(evidence.at):
        return
    kept, ratio = learning(evidence)
    if not kept:
        return
    typical, worst = median(ratio.T), np.fmax.reduce(ratio, axis=1)
    limit = evidence.limits.update_total / max(len(kept), 2)
    large = np.flatnonzero((typical > limit) | (worst > 1.0))
    often = len(large) >= min(evidence.limits.hysteresis, max(1, len(typical) // 2))
    replaced = bool(np.nanmax(typical, initial=0.0) > 1.0)
    diverged = diverging(evidence)
    if diverged is not None:
        onset = diverged[0]
        before = np.arange(max(0, onset - evidence.limits.hysteresis), min(max(onset, _WARM), len(worst)))
        if onset < len(worst) and (changed_outside(evidence, onset) or inputs_rise(evidence, onset) > 0.5):
            return  # the loss grew for another reason
        large = before[(typical[before] > limit / 3) | (worst[before] > limit)]
    elif not ((often or replaced) and not learns(evidence)) or shrinking(evidence):
        yield from _promises_too_much(evidence)
        return
    if not large.size or inputs_rise(evidence, int(large[0])) > 0.5:
        return
    first = int(large[0])
    value = float(worst[first])
    i = int(np.nanargmax(ratio[first]))
    site = evidence.layers[kept[i]].weight
    lr = evidence.notes("lr")[first]
    rate = f" (learning rate {lr:.3g})" if np.isfinite(lr) else ""
    target = _sane(evidence, lr, value, limit)
    said = diverged[1] if diverged is not None else "The loss does not fall."
    yield Finding(
        "update-too-large",
        "error" if diverged else "warning",
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


@rule(
    "update-too-small",
    limit="no layer's relative update is ever above 1e-6: a million such steps change a weight by its own size, and "
    "float32 keeps one digit of them",
    reference="float32's relative precision, 6·10⁻⁸",
    needs=("update", "weight"),
    fewest=lasting,
    of_the_start=(_PROMISED_TOGETHER,),
)
def update_too_small(evidence: Evidence) -> Iterator[Finding]:
    """Steps so small that nothing is learned, in any layer."""
    if not evidence.training or len(evidence.at) < evidence.limits.hysteresis:
        return
    kept, ratio = learning(evidence)
    if not kept or not np.isfinite(ratio).any():
        return
    largest = float(np.nanmax(ratio))
    if largest == 0 and not evidence.facts.get("optimizers"):
        return  # gradients are looked at, and nobody trains
    if (rounded := _rounded_away(evidence)) is not None:
        yield rounded
        return
    if (taken := _taken_back(evidence)) is not None:
        yield taken
        return
    if largest >= evidence.limits.update_small:
        resting = list(_came_to_rest(evidence, kept, ratio))
        yield from resting or list(_hardly_moved(evidence, kept, ratio)) or _promises_little(evidence)
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


def _rounded_away(evidence: Evidence) -> Finding | None:
    """Updates smaller than half of what a narrow dtype tells apart at the weight's size: nearly all are zero."""
    still = median(evidence.by_layer("update", "zero_fraction"))
    flows = (
        median(evidence.by_layer("weight_grad", "zero_fraction")) < 0.5 if evidence.has("weight_grad") else still > 0
    )
    narrow = [layer.weight.dtype in ("bfloat16", "float16") for layer in evidence.layers]
    with np.errstate(invalid="ignore"):
        lost = np.array(narrow) & (still > 0.9) & flows
    sites = [layer.weight for layer, bad in zip(evidence.layers, lost.tolist(), strict=True) if bad]
    if 2 * len(sites) <= sum(narrow) or not sites:
        return None
    share = float(still[lost].min())
    return Finding(
        "update-too-small",
        "error",
        f"Of the updates of {listed(names(sites))} {share:.1%} or more are exactly zero, though the gradient is not: "
        f"they are smaller than half of what {sites[0].dtype} tells apart at the weights' size, and are rounded away.",
        f"keep the weights in float32 and compute in {sites[0].dtype} (torch.autocast), or round stochastically",
        "Micikevicius et al. (2018), section 3.1",
        direction="both",
        sites=names(sites),
        frontier=sites[0],
        value=share,
        unit="share of entries that a step does not change",
        limit=0.9,
        limit_from=f"{sites[0].dtype} keeps {8 if sites[0].dtype == 'bfloat16' else 11} binary digits",
        expected=0.0,
        causes=(f"weights in {sites[0].dtype}",),
    )


def _taken_back(evidence: Evidence) -> Finding | None:
    """Updates that something other than the optimizer undoes."""
    sites, share, since = undone(evidence)
    if not sites or learns(evidence):
        return None
    return Finding(
        "update-too-small",
        "error",
        f"Something other than the optimizer takes back {share:.1%} of what each step adds to {listed(names(sites))}: "
        "their means do not move as the updates say.",
        "look for what writes to the weights between the steps: a running average that is copied back, a state_dict "
        "that is loaded, a projection or a clamp",
        "",
        direction="both",
        sites=names(sites),
        steps=(since,) if since > evidence.step(0) else (),
        frontier=sites[0],
        value=share,
        unit="share of each update that is taken back",
        limit=0.9,
        limit_from="a step of which a tenth is left",
        expected=0.0,
        causes=("the weights are written to between the steps",),
    )


def _hardly_moved(evidence: Evidence, kept: list[int], ratio: np.ndarray) -> Iterator[Finding]:
    """A run whose steps together cannot have changed any weight by a thousandth, and whose loss has not fallen."""
    steps = int(evidence.steps[-1] - evidence.steps[0]) + 1
    if not 4 * evidence.limits.hysteresis <= steps or learns(evidence):
        return
    with np.errstate(invalid="ignore"):
        moved = np.nanmean(np.where(np.isfinite(ratio), ratio, np.nan), axis=0) * steps
    most = float(np.nanmax(moved))
    if not most < evidence.limits.update_small * 1000:
        return
    site = evidence.layers[kept[int(np.nanargmax(moved))]].weight
    yield Finding(
        "update-too-small",
        "warning",
        f"All {steps} steps together cannot have changed any weight by more than {most:.1e} of its size (that of "
        f"{site.name!r}), and the loss has not fallen.",
        "raise the learning rate, end the warm-up, or clip less: one of them holds the steps down",
        direction="both",
        sites=names([evidence.layers[i].weight for i in kept]),
        frontier=site,
        value=most,
        unit="relative updates, summed over the run",
        limit=evidence.limits.update_small * 1000,
        limit_from="a thousandth of a weight is the change at which a function of a few layers begins to show one",
        expected=1.0,
        causes=("the steps are small from the first to the last",),
    )


def _promises_little(evidence: Evidence) -> Iterator[Finding]:
    """A run that goes one way from the start, whose steps together can, to first order, hardly lower the loss."""
    loss, could = evidence.loss, promised(evidence)
    if len(loss) < _MANY or not evidence.from_the_start or not _is_a_size(loss) or not np.isfinite(could).all():
        return
    lr = evidence.notes("lr")
    if lr[-1] > 2 * lr[0] or learns(evidence):  # a warm-up begins small
        return
    share = float(could.sum() / np.median(loss))
    if not 0 < share < _PROMISED_AT_LEAST or not (guesses(evidence) or coherence(evidence) > 0.5):
        return
    rate = f" with a learning rate of {lr[-1]:.3g}" if np.isfinite(lr[-1]) else ""
    steps = len(loss) / 2 / share
    yield Finding(
        "update-too-small",
        "warning",
        f"To first order all {len(loss)} steps together can lower the loss by at most {share:.2%}{rate}, and it has "
        f"not fallen; to halve it at this pace takes some {steps:.0g} steps.",
        f"raise the learning rate: to about {lr[-1] * min(1.0 / share, 1e3) / 3:.1g}, and look at the loss again"
        if np.isfinite(lr[-1])
        else "raise the learning rate",
        "Boyd & Vandenberghe (2004), section 9.2",
        direction="both",
        value=share,
        unit=_PROMISED_TOGETHER,
        limit=_PROMISED_AT_LEAST,
        limit_from="the loss falls by no more than that, whatever the curvature, as long as the steps are small",
        expected=1.0,
        causes=("the steps are small from the first to the last",),
    )


def _promises_too_much(evidence: Evidence) -> Iterator[Finding]:
    """Steps that promise to take away the loss, each of them, and together do not: they leap over what they go for."""
    loss, could = evidence.loss, promised(evidence)
    if len(loss) < 2 * evidence.limits.hysteresis or not evidence.from_the_start or not _is_a_size(loss):
        return
    begun = slice(0, _EARLY)
    first, last = float(loss[:3].min()), float(np.median(loss[begun][-5:]))
    known = np.isfinite(could[begun])
    if not could[begun][known].any() or not last > first / 10:
        return
    each = could[begun][known] / first
    typical = float(np.minimum(each, _COUNTED_AT_MOST).mean())
    kept = (first - last) / first / float(each.sum())
    if not (typical > _PROMISED_AT_MOST or (typical > _PROMISED_OFTEN and kept < _KEPT_AT_LEAST)):
        return
    place = int(np.flatnonzero(known)[int(np.argmax(each > _PROMISED_OFTEN))])
    if inputs_rise(evidence, place) > 0.5 or changed_outside(evidence, place):
        return
    lr = evidence.notes("lr")[place]
    rate = f" (learning rate {lr:.3g})" if np.isfinite(lr) else ""
    yield Finding(
        "update-too-large",
        "warning",
        f"To first order each step would take away {typical:.0%} of the loss{rate}, and in {len(loss[begun])} steps "
        f"it went from {first:.3g} to {last:.3g}, {max(kept, 0.0):.1%} of what they promised together: they leap over "
        "what they go for.",
        f"lower the learning rate: to about {lr / 10:.1g}" if np.isfinite(lr) else "lower the learning rate",
        "Cohen et al. (2021), Gradient descent on neural networks typically occurs at the edge of stability",
        direction="both",
        steps=(evidence.step(place),),
        value=typical,
        unit=_PROMISED_EACH,
        limit=_PROMISED_AT_MOST,
        limit_from="a loss cannot fall by more than itself: beyond about that the gradient says nothing of a step",
        expected=0.1,
        causes=(f"the learning rate{rate}",),
    )


def _is_a_size(loss: Floats) -> bool:
    """Whether it is above zero throughout, so that a share of it means something."""
    return bool(np.isfinite(loss).all() and (loss > 0).all())


def _came_to_rest(evidence: Evidence, kept: list[int], ratio: np.ndarray) -> Iterator[Finding]:
    """Updates that were sound and are next to nothing from a step on, while the gradient stays as it was."""
    largest = np.fmax.reduce(ratio, axis=1)  # NaN at a step whose updates are not known
    moving = np.flatnonzero(largest >= evidence.limits.update_small)
    first = int(moving[-1]) + 1
    resting = int(np.isfinite(largest[first:]).sum())
    if resting < max(evidence.limits.hysteresis, len(largest) // 5):
        return
    first += int(np.argmax(np.isfinite(largest[first:])))
    slowest = float(np.nanmax(largest[first:]))
    gradient = evidence.relative_gradient[:, kept]
    with np.errstate(invalid="ignore", divide="ignore"):
        kept_up = float(np.nanmax(median(gradient[first:]) / median(gradient[:first]), initial=0.0))
    if not kept_up > 1e-3:
        return
    site = evidence.layers[kept[0]].weight
    yield Finding(
        "update-too-small",
        "error",
        f"From step {evidence.step(first)} on no weight changes by more than {slowest:.1e} of its size, "
        "though the gradient is as large as before. Nothing is learned since.",
        "look at the learning rate's schedule from that step on, and at what scales or masks the updates",
        direction="both",
        sites=names([evidence.layers[i].weight for i in kept]),
        steps=(evidence.step(first),),
        frontier=site,
        value=slowest,
        unit="rms of the update over that of the weight",
        limit=evidence.limits.update_small,
        limit_from="a million steps to change a weight by its own size",
        expected=1e-3,
        causes=("the learning rate, from that step on",),
    )


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
            alike = fastest - slowest < evidence.limits.uneven_decades / 2
            if fastest < typical - 1.0 or (alike and fastest < typical):
                found |= own
    return found
