"""Outputs of another size than the loss asks for: in the first step, or in all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._first_loss import (
    OUTSIDE,
    SURPRISE,
    TARGETS,
    classes_of,
    first_loss,
    mean_loss,
    output_site,
    recovers,
)
from gradscope.diagnosis._learning import learns
from gradscope.diagnosis._words import factor

_LONG_ENOUGH = 30
"""Steps in whose second half a range that still grows would show."""


def surprise(evidence: Evidence) -> Iterator[Finding]:
    """A first loss that is far from what a model that knows nothing has."""
    found = first_loss(evidence)
    if found is None:
        return
    nothing = found.expected if found.classes else found.expected**2
    over = evidence.training and (found.outside or found.classes is not None) and recovers(evidence, nothing)
    name = found.last.module
    if found.outside:
        said = (
            f"The first outputs have an rms of {found.size:.3g}, and the targets one of {found.expected:.3g}: the loss "
            "begins far above what zero for an answer costs, and the first steps only bring the outputs down."
        )
        remedy = (
            f"begin with smaller weights before {name or found.last.name!r}: gradscope.init.initialize(model, "
            "inputs=batch); tables (nn.Embedding) with std=0.1 or less"
        )
        limit, limit_from = OUTSIDE * found.expected, f"{OUTSIDE:.0f} times the rms of the targets"
    elif found.classes is None:
        said = (
            f"The targets are about {factor(found.value / found.expected)} times larger than the first outputs: "
            "training begins by moving the last layer's bias and weights to another scale, and every gradient "
            "has that scale."
        )
        remedy = "normalize the targets: (y − mean)/std over the training set"
        limit, limit_from = TARGETS * found.expected, f"{TARGETS:.0f} times the rms of the first outputs"
    else:
        said = (
            f"The loss begins at {found.value:.3g}, where guessing among {found.classes} classes costs "
            f"{found.expected:.2f}: the first logits have an rms of {found.size:.3g}, and are sure of what they cannot "
            "know. The first steps only undo that."
        )
        remedy = f"begin with a small last layer: torch.nn.init.normal_(model.get_submodule({name!r}).weight, std=0.01)"
        limit, limit_from = SURPRISE * found.expected + 1, f"twice ln {found.classes} plus 1"
    yield Finding(
        "output-pairing",
        "note" if over else "warning",
        said,
        remedy,
        "Karpathy (2019), A recipe for training neural networks",
        direction="both",
        sites=(found.last.name,),
        frontier=found.last,
        value=found.value,
        unit="loss" if found.classes else "rms of the outputs" if found.outside else "size of the targets",
        limit=limit,
        limit_from=limit_from,
        expected=found.expected,
        causes=(f"outputs of rms {found.size:.3g}",),
    )


def confined(evidence: Evidence, kinds: Sequence[str]) -> Iterator[Finding]:
    """Logits that have stopped to spread at a range for which cross-entropy is at its floor, far above zero.

    With all C logits within a range R the likeliest class has at most the probability 1/(1 + (C − 1)·exp(−R)).
    """
    loss, output = evidence.loss, output_site(evidence)
    if output is None or len(loss) < _LONG_ENOUGH or not np.isfinite(loss).all() or not evidence.training:
        return
    classes = classes_of(evidence, output) if mean_loss(evidence, kinds).startswith("NllLoss") else None
    if classes is None or classes < 2 or classes == output.shape[0] or not learns(evidence):
        return  # as many as samples: each is the other's class, and cosines are meant to be so near
    at = evidence.sites("activation").index(output)
    spread = (evidence.values("activation", "max") - evidence.values("activation", "min"))[:, at]
    part = len(loss) // 6
    middle, end = slice(len(loss) // 2, len(loss) // 2 + part), slice(-part, None)
    before, now = float(np.median(spread[middle])), float(np.median(spread[end]))
    floor, last = math.log1p((classes - 1) * math.exp(-now)), float(np.median(loss[end]))
    if not (abs(now - before) < 0.1 * before and floor <= last < 2 * floor and last > math.log(classes) / 4):
        return
    yield Finding(
        "output-pairing",
        "warning",
        f"The logits {output.name!r} stay within a range of {now:.3g}, and spread no further: of {classes} classes "
        f"cross-entropy cannot fall below {floor:.2g} then, and is at {last:.2g}.",
        "let the logits grow: multiply cosines or other bounded scores by a scale (10 to 30, or one that is learned), "
        "or leave out what bounds them",
        "Wang et al. (2017), NormFace, section 3.3",
        direction="both",
        sites=(output.name,),
        frontier=output,
        value=now,
        unit="range of the logits",
        limit=math.log((classes - 1) / math.expm1(math.log(classes) / 4)),
        limit_from=f"the range for which the floor is a quarter of ln {classes}",
        expected=None,
        causes=("something bounds the logits",),
    )
