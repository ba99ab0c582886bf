"""Units, or samples, that are all alike: what a layer could tell apart is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gradscope.diagnosis._evidence import START, Evidence, Floats, median
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._first_loss import kinds_of
from gradscope.diagnosis._learning import learns
from gradscope.diagnosis._registry import rule
from gradscope.diagnosis._words import INITIALIZE, count, listed, names, width
from gradscope.recording import Site


@rule(
    "symmetric-units",
    limit="units differ by less than a millionth of their size, ten times what float32 rounds",
    reference="Goodfellow et al. (2016), section 8.4",
    needs=("activation",),
)
def symmetric_units(evidence: Evidence) -> Iterator[Finding]:
    """All units of a layer compute the same: it is one unit, and stays one; or all rows of a parameter began equal."""
    yield from _alike_rows(evidence)
    sites = evidence.sites("activation")
    found, when = [], None
    if evidence.unit_at.size:
        spread = evidence.unit("unit_spread")
        wide = np.array([width(s) > 1 and (s.role == "pre-activation" or _is_recurrent(s)) for s in sites])
        alike = (spread <= evidence.limits.symmetric_spread) & wide
        constant = _constant_weights(evidence)
        found = [s for s, same in zip(sites, alike.any(axis=0).tolist(), strict=True) if same and s.module in constant]
        since = int(np.argmax(alike[:, [sites.index(s) for s in found]].any(axis=1))) if found else 0
        when = int(evidence.steps[evidence.unit_at[since]]) if since else None
    zero = _all_zero(evidence)
    if not found and len(zero) < 2 and not (zero and len(evidence.at) >= evidence.limits.hysteresis):
        return
    where = found or zero
    how = "are zero" if not found else "are all equal"
    yield Finding(
        "symmetric-units",
        "error",
        f"The weights of {count(len(where), 'layer')} {how}, first of {where[0].name!r}: every unit computes the same "
        "and gets the same gradient. Such a layer stays one unit, however wide it is."
        + ("" if when is None else f" This began by step {when}."),
        INITIALIZE,
        "Goodfellow et al. (2016), section 8.4",
        direction="both",
        sites=names(where),
        steps=() if when is None else (when,),
        frontier=where[0],
        value=0.0,
        unit="variance between units over mean square",
        limit=evidence.limits.symmetric_spread,
        limit_from="ten times what float32 rounds",
        causes=(f"first weights that {how}",),
    )


def _alike_rows(evidence: Evidence) -> Iterator[Finding]:
    """Rows of a parameter (latents, slots, components) that began equal, are trained, and are equal still."""
    fact = evidence.facts.get("alike_rows") or {}
    if fact.get("looks", 0) < 2 or not evidence.training:
        return
    layers = {s.module for s in evidence.sites("activation") if s.role == "pre-activation"}
    moved = np.nansum(evidence.values("update"), axis=0) > 0
    sites = [
        s
        for s, moves in zip(evidence.sites("update"), moved.tolist(), strict=True)
        if moves and s.name in fact["parameters"] and s.module not in layers  # a layer's are told of by its units
    ]
    if not sites:
        return
    rows = sites[0].shape[0]
    yield Finding(
        "symmetric-units",
        "error",
        f"The {rows} rows of {sites[0].name!r} began equal, and are alike still at step {fact['step']}, though each "
        "step changes them: they get the same gradient, and are one row.",
        f"begin with rows that differ: torch.nn.init.normal_(model.get_parameter({sites[0].name!r}), std=0.02)",
        "Goodfellow et al. (2016), section 8.4",
        direction="both",
        sites=names(sites),
        frontier=sites[0],
        value=0.0,
        unit="difference between rows",
        limit=0.0,
        limit_from=f"looked at {fact['looks']} times",
        causes=("first values that are all equal",),
    )


def _is_recurrent(site: Site) -> bool:
    return site.module_type.removesuffix("Cell") in ("RNN", "LSTM", "GRU") and site.output == 0


def _constant_weights(evidence: Evidence) -> set[str]:
    """Modules whose weights had no spread at some step, or began at zero."""
    if not evidence.has("weight"):
        return {layer.module for layer in evidence.layers}
    std, rms = evidence.by_layer("weight", "std"), evidence.by_layer("weight")
    zero = rms[0] == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        least = np.argmin(np.where(rms > 0, std / rms, np.inf), axis=0)
    std, rms = std[least, range(len(least))], rms[least, range(len(least))]
    return {
        layer.module
        for layer, s, r in zip(evidence.layers, std.tolist(), rms.tolist(), strict=True)
        if r > 0 and s <= 1e-6 * r
    } | {layer.module for layer, nothing in zip(evidence.layers, zero.tolist(), strict=True) if nothing}


def _all_zero(evidence: Evidence) -> list[Site]:
    """Layers whose weights are zero at the start and at the end: two in a row never get a gradient."""
    if not evidence.has("weight") or not len(evidence.at):
        return []
    rms = evidence.by_layer("weight")
    # What is cut off stays at zero for that reason.
    known = np.isfinite(evidence.by_layer("weight_grad"))
    reached = [bool(column.any()) or not evidence.has("weight_grad") for column in known.T]
    return [
        layer.site
        for i, layer in enumerate(evidence.layers)
        if rms[0, i] == 0 and rms[-1, i] == 0 and layer.site is not None and layer.weight.trainable and reached[i]
    ]


@rule(
    "collapsed-batch",
    limit="the samples differ by less than a ten-thousandth of a layer's mean square, and so much less than the inputs "
    "do, at every layer beyond",
    reference="Schoenholz et al. (2017); Dong et al. (2021)",
    needs=("activation",),
    units=True,
)
def collapsed_batch(evidence: Evidence) -> Iterator[Finding]:
    """A layer gives nearly the same output for every input."""
    if not evidence.unit_at.size:
        return
    sites = evidence.sites("activation")
    spread = evidence.unit("batch_spread")
    inputs = [i for i, s in enumerate(sites) if s.role == "input"]
    first = 1.0 if not inputs else float(np.nanmax(np.nan_to_num(median(spread[:START])[inputs], nan=0.0)))
    if (alike := _alike_inputs(evidence, inputs)) is not None:
        yield alike
        return
    if inputs and first < 1e-3:  # the inputs are all alike: nothing to tell apart
        return
    limit = evidence.limits.collapsed_spread * min(first, 1.0)
    chosen = [i for i, s in enumerate(sites) if s.role in ("pre-activation", "block") and len(s.shape) >= 2]
    if len(chosen) < 2:
        return
    there = np.nan_to_num(spread[:, chosen], nan=-1.0)
    beyond = np.maximum.accumulate(there[:, ::-1], axis=1)[:, ::-1]
    sick = (beyond <= limit) & (beyond >= 0)
    start, end = sick[0], sick[-1]
    lasting = end & (sick[-3:].all(axis=0))
    if not lasting.any():
        yield from _collapsed_output(evidence, sites[chosen[-1]], there[:, -1])
        return
    kept = [sites[i] for i, bad in zip(chosen, lasting.tolist(), strict=True) if bad]
    when = None if start.any() else int(evidence.steps[evidence.unit_at[int(np.argmax(sick.any(axis=1)))]])
    value = float(beyond[-1][lasting].max())
    at_once = _at_once(there, chosen.index(sites.index(kept[0])), first)
    step = "" if when is None else f" This began at step {when}."
    yield Finding(
        "collapsed-batch",
        "error" if at_once else "warning",
        f"From {kept[0].name!r} on the outputs are nearly the same for every input: they differ by {value:.1e} of "
        f"their mean square, the inputs by {first:.2g}. What the samples have of their own is lost there.{step}",
        f"{INITIALIZE}, with biases at zero; a norm layer or residual branches keep samples apart"
        if when is None
        else "lower the learning rate: the layers have died or saturated",
        "Schoenholz et al. (2017)",
        direction="forward",
        sites=names(kept),
        steps=() if when is None else (when,),
        frontier=kept[0],
        value=value,
        unit="variance between samples over mean square",
        limit=limit,
        limit_from="a ten-thousandth of what tells the inputs apart",
        expected=first,
        causes=(
            f"first weights too small beside the biases, or too many layers that pull inputs together: "
            f"{listed(names(kept))}",
        )
        if when is None
        else (),
    )


def _alike_inputs(evidence: Evidence, inputs: Sequence[int]) -> Finding | None:
    """An input that is the same for every sample of each batch, where the run does not learn."""
    sites, spread = evidence.sites("activation"), evidence.unit("batch_spread")
    found = [
        sites[i]
        for i in inputs
        if len(sites[i].shape) >= 2
        and sites[i].shape[0] >= 4
        and np.isfinite(spread[:, i]).all()
        and (spread[:, i] < _ALIKE).all()
    ]
    if not found or not evidence.training or len(spread) < 2 or learns(evidence):
        return None
    return Finding(
        "collapsed-batch",
        "warning",
        f"{found[0].name!r} is the same for every sample of the batch, in each of {len(spread)} batches that were "
        "looked at: there is nothing in it to tell them apart by, and the loss does not fall.",
        "look at how the batch is made: an index that is not used, one sample that is repeated, features that are "
        "all ones",
        "",
        direction="forward",
        sites=names(found),
        frontier=found[0],
        value=float(spread[-1, sites.index(found[0])]),
        unit="variance between samples over mean square",
        limit=_ALIKE,
        limit_from="ten times what float32 rounds",
        expected=1.0,
        causes=("inputs that are all alike",),
    )


def _at_once(spread: Floats, place: int, inputs: float) -> bool:
    """Whether the layer before still told the samples apart: then it is no matter of depth."""
    before = inputs if place == 0 else float(spread[-1, place - 1])
    return before > 1e-3 and float(spread[-1, place]) < 1e-10


_ALIKE = 1e-6

_SUPERVISED = ("NllLoss", "NllLoss2D", "MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy",
               "BinaryCrossEntropyWithLogits")  # fmt: skip


def _collapsed_output(evidence: Evidence, site: Site, spread: Floats) -> Iterator[Finding]:
    """An output that came to be the same for all, under a loss that has no target: representations collapse so."""
    kinds, nodes = kinds_of(evidence), evidence.facts.get("loss_graph") or []
    taught = any(k in _SUPERVISED and not node.get("both") for k, node in zip(kinds, nodes, strict=True))
    if not kinds or taught or len(spread) < 3:
        return
    known = spread >= 0
    limit = 1e-2 * float(spread[0])
    if not known.all() or not spread[0] > 0 or not max(spread[-1], np.median(spread[-3:])) < limit:
        return
    first = int(np.argmax(spread < limit))
    step = int(evidence.steps[evidence.unit_at[first]])
    yield Finding(
        "collapsed-batch",
        "warning",
        f"The output {site.name!r} has become nearly the same for every input: the samples differ by "
        f"{spread[-1]:.1e} of its mean square, and did by {spread[0]:.2g}. The loss has no target that would keep them "
        "apart.",
        "give the loss what keeps samples apart: negatives, a variance term, a stopped gradient with a predictor",
        "Chen & He (2021); Bardes et al. (2022)",
        direction="forward",
        sites=(site.name,),
        steps=(step,),
        frontier=site,
        value=float(spread[-1]),
        unit="variance between samples over mean square",
        limit=limit,
        limit_from="a hundredth of what it was at the start",
        expected=float(spread[0]),
    )
