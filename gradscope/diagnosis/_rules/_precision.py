"""What a type of reduced precision loses, and the loss scale that is to keep it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import Evidence, median
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._first_loss import classes_of, is_a_mean_term, kinds_of, last_site, mean_loss
from gradscope.diagnosis._learning import is_adaptive, learns, optimizers_of
from gradscope.diagnosis._registry import no_step, rule
from gradscope.diagnosis._words import factor, names

_TOO_SMALL = 30.0
"""No untrained model guesses so well by chance; and most batches are larger than that."""

_SMALLEST = {"float16": 5.96e-8, "bfloat16": 9.2e-41, "float32": 1.4e-45}


@rule(
    "dtype-underflow",
    limit="half of a gradient's entries zero or subnormal in its dtype where the layers above have fewer than a tenth, "
    "or half subnormal",
    reference="Micikevicius et al. (2018), section 3.2",
    needs=("activation_grad",),
)
def dtype_underflow(evidence: Evidence) -> Iterator[Finding]:
    """Gradients below what their dtype can hold: float16 ends at 6·10⁻⁸."""
    if not len(evidence.at):
        return
    for signal in ("activation_grad", "weight_grad"):
        if not evidence.has(signal):
            continue
        sites = evidence.sites(signal)
        zero = median(evidence.values(signal, "zero_fraction"))
        subnormal = np.nan_to_num(median(evidence.values(signal, "subnormal_fraction")), nan=0.0)
        rms = median(evidence.values(signal))
        low = np.array([s.dtype in ("float16", "bfloat16") or s.dtype.startswith("float8") for s in sites])
        small = np.array([_SMALLEST.get(s.dtype, 0.0) for s in sites])
        with np.errstate(invalid="ignore"):
            near = rms < 1e3 * small
            lost = low & ((subnormal > 0.5) | ((zero + subnormal > 0.5) & (near | (subnormal > 0.02))))
            lost |= ~low & (subnormal > 0.5)
        found = [s for s, bad in zip(sites, lost.tolist(), strict=True) if bad]
        if not found:
            continue
        first = found[-1]
        share = float(np.nanmax((zero + subnormal)[lost]))
        yield Finding(
            "dtype-underflow",
            "note" if _trains(evidence) else "error" if share > 0.9 else "warning",
            f"Up to {share:.0%} of the entries of the gradient are zero or subnormal in {first.dtype}, first at "
            f"{first.name!r} on the way back. They are below what the type holds.",
            "scale the loss: torch.amp.GradScaler; or use bfloat16, which has float32's range"
            if first.dtype == "float16"
            else "multiply the loss by a constant, or compute in a wider type",
            "Micikevicius et al. (2018), section 3.2",
            direction="backward",
            sites=names(found),
            frontier=first,
            value=share,
            unit="share of entries",
            limit=0.5,
            limit_from=f"{first.dtype}'s smallest number is {_SMALLEST.get(first.dtype, 0):.1e}",
            expected=0.0,
        )
        return


def _trains(evidence: Evidence) -> bool:
    """Whether the loss is known, and falls: what is lost is then no more than it can spare."""
    return evidence.training and int(np.isfinite(evidence.loss).sum()) >= 4 and learns(evidence)


@rule(
    "loss-scale",
    limit="a fifth of the steps skipped after the first ten, or a scale that has fallen below 1; without a scaler, a "
    "first loss below a thirtieth of what guessing costs, and plain gradient descent that does not learn of it",
    reference="torch.amp.GradScaler",
    fewest=no_step,
)
def loss_scale(evidence: Evidence) -> Iterator[Finding]:
    """The gradient scaler skips steps all the time, or has no scale left; or the loss itself is divided by too much."""
    yield from _of_the_scaler(evidence)
    yield from _divided(evidence)
    yield from _drowned(evidence)


def _divided(evidence: Evidence) -> Iterator[Finding]:
    """A loss that is a mean, and divided again: with a rate made for means plain gradient descent stands still."""
    kind, last = mean_loss(evidence, kinds_of(evidence)), last_site(evidence)
    known = evidence.loss[np.isfinite(evidence.loss)]
    if last is None or not known.size or not evidence.from_the_start or not evidence.training or learns(evidence):
        return
    if any(is_adaptive(one["class"]) for one in optimizers_of(evidence)):
        return  # a constant factor of the gradient does not matter to them
    size = float(evidence.values("activation")[0, evidence.sites("activation").index(last)])
    classes = 2 if kind.startswith("BinaryCrossEntropy") else classes_of(evidence, last)
    if not kind.startswith(("NllLoss", "BinaryCrossEntropy")) or not classes or classes < 2 or size > 2:
        return
    guess, first = math.log(classes), float(known[0])
    if not 0 < first < guess / _TOO_SMALL:
        return
    yield Finding(
        "loss-scale",
        "warning",
        f"The loss begins at {first:.3g}, where guessing costs {guess:.2g}: something divides it by "
        f"{factor(guess / first)}, and every gradient and step with it. The loss does not fall.",
        "take the mean once: a loss with reduction='mean' is not to be divided by the batch size or the number of "
        "pixels again; or raise the learning rate by that factor",
        "",
        direction="backward",
        sites=(last.name,),
        frontier=last,
        value=first,
        unit="loss",
        limit=guess / _TOO_SMALL,
        limit_from=f"a thirtieth of ln {classes}",
        expected=guess,
        causes=("the loss is divided twice",),
    )


def _drowned(evidence: Evidence) -> Iterator[Finding]:
    """A loss of several terms, one of which is so large that nothing is left of the one that teaches."""
    nodes, kinds, last = evidence.facts.get("loss_graph") or [], kinds_of(evidence), last_site(evidence)
    known = evidence.loss[np.isfinite(evidence.loss)]
    if last is None or len(known) < 10 or not evidence.from_the_start or not evidence.training:
        return
    outside = [i for i, node in enumerate(nodes) if not node.get("inside")]
    kind = ("NllLoss", "BinaryCrossEntropyWithLogits")
    terms = [i for i in outside if kinds[i].startswith(kind) and is_a_mean_term(nodes, kinds, i)]
    size = float(evidence.values("activation")[0, evidence.sites("activation").index(last)])
    if len(terms) != 1 or size > 2:
        return
    classes = 2 if kinds[terms[0]].startswith("Binary") else classes_of(evidence, last)
    if not classes or classes < 2:
        return
    guess, first, late = math.log(classes), float(known[0]), float(np.median(known[-5:]))
    if not (first > _TOO_SMALL * guess and late > _TOO_SMALL * guess):
        return
    yield Finding(
        "loss-scale",
        "warning",
        f"The loss begins at {first:.3g}, of which the cross-entropy of {classes} classes is about {guess:.2g}: "
        f"another term is {factor(first / guess)} times larger, still is at the end, and the steps go by it alone.",
        "weigh the terms: a KL divergence is divided by the number of samples (or batches) it is shared by, a penalty "
        "has a factor for which its gradient is below that of the data",
        "Blundell et al. (2015), eq. 8",
        direction="backward",
        sites=(last.name,),
        frontier=last,
        value=first / guess,
        unit="the loss over its term of classes",
        limit=_TOO_SMALL,
        limit_from="a term of a thirtieth is no more than the noise of a batch",
        expected=1.0,
        causes=("one term of the loss is far larger than the other",),
    )


def _of_the_scaler(evidence: Evidence) -> Iterator[Finding]:
    recording, window = evidence.recording, evidence.window
    skipped = recording.skipped[window]
    scale = evidence.notes_of_all("loss_scale")
    known = scale[np.isfinite(scale)]
    if not known.size:
        return
    late = skipped[10:] if len(skipped) > 20 else skipped
    share = float(late.mean()) if len(late) else 0.0
    lowest = float(known[-1])
    few = len(skipped) < 2 * evidence.limits.hysteresis
    if few or not (share > 0.2 or lowest < 1.0):
        return
    yield Finding(
        "loss-scale",
        "error" if share > 0.5 or lowest < 1e-3 else "warning",
        f"The gradient scaler skipped {share:.0%} of the steps, and its scale is {lowest:.3g} at the end. A sound run "
        "skips a few in the beginning, and then one in two thousand.",
        "look for the layer whose float16 gradient overflows (the findings name it), or use bfloat16, which needs no "
        "scaler",
        "torch.amp.GradScaler",
        direction="backward",
        steps=tuple(int(s) for s in recording.steps[window][skipped][:8]),
        value=share,
        unit="share of steps skipped",
        limit=0.2,
        limit_from="GradScaler grows its scale each 2,000 steps and tries once",
        expected=1 / 2000,
    )
