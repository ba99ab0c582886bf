"""How much each step changes the weights: too much, next to nothing, or very different from layer to layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import Evidence, median
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._learning import diverging, learning, learns, shrinking
from gradscope.diagnosis._outside import changed_outside, inputs_rise, undone
from gradscope.diagnosis._promises import PROMISED_EACH, PROMISED_TOGETHER, promises_little, promises_too_much
from gradscope.diagnosis._registry import lasting, rule
from gradscope.diagnosis._words import count, listed, names

_WARM = 3
"""The first steps of an adaptive optimizer are larger than those that follow; zero weights have no relative size."""


_ROUNDED_AWAY = 0.8
"""Share of a weight's entries that a step does not change: a sound run in bfloat16 leaves three in ten."""


@rule(
    "update-too-large",
    limit="relative update times number of layers beyond 1: (1 + r)^L leaves the region in which the gradient tells "
    "what a step does; and the loss does not fall, or rises; or steps that to first order each take three quarters "
    "of the loss (three, where less than 0.8 % of that comes true), and a fifth of it or more is left",
    reference="LeCun et al. (1998), section 4.7",
    needs=("update", "weight"),
    of_the_start=(PROMISED_EACH,),
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
        yield from promises_too_much(evidence)
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
        f"At step {evidence.step(first)} one step changes {site.name!r} by {value:.2g} times its size{rate}. "
        f"In a model of {count(len(kept), 'layer')} a small step stays below {limit:.2g} of each, "
        f"{evidence.limits.update_total:.2g} in all. {said}",
        f"begin with fresh weights, as those that were thrown do not come back, and lower the learning rate{target}"
        if diverged
        else f"lower the learning rate{target}",
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
    "float32 keeps one digit of them; or fifty steps and more that to first order can lower the loss by 3 % at most, "
    "all together; or something takes back nine tenths of each update",
    reference="float32's relative precision, 6·10⁻⁸",
    needs=("update", "weight"),
    fewest=lasting,
    of_the_start=(PROMISED_TOGETHER,),
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
        yield from resting or list(_hardly_moved(evidence, kept, ratio)) or promises_little(evidence)
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
        lost = np.array(narrow) & (still > _ROUNDED_AWAY) & flows
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
        limit=_ROUNDED_AWAY,
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
