"""What the steps promise to first order, beside what the loss does: too little to lower it, or more than there is.

A loss falls by at most ‖g‖·‖u‖ a step while steps are small, whatever its curvature. Where that is a small share of it
over a whole run the run cannot learn; where each step promises most of the loss, and the loss stays, the steps leap
over what they go for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import Evidence, Floats
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._first_loss import guesses
from gradscope.diagnosis._learning import coherence, learns, promised
from gradscope.diagnosis._outside import changed_outside, inputs_rise

_MANY, _EARLY = 50, 150
"""Steps from which on a loss that stands still means something, and up to which one that does not fall does: later in
a run the steps only keep up with the noise."""

PROMISED_TOGETHER = "‖gradient‖·‖update‖, summed over the steps, over the loss"
PROMISED_EACH = "‖gradient‖·‖update‖ of a step over the first loss"

_PROMISED_AT_LEAST = 0.03
"""Of the loss, by all steps together: less than a third of the least decrease that counts as learning."""

_PROMISED_AT_MOST, _PROMISED_OFTEN, _COUNTED_AT_MOST = 0.75, 0.3, 3.0
"""Of the first loss, by one step, in the mean, and where next to nothing of it is kept; a single one counts no more
than the last, as it may be a spike."""

_KEPT_AT_LEAST = 0.008
"""Of what the steps promised. Measured on five models with eleven rates of three optimizers: of rates that end within
twice the best loss 0.013 and more is kept, of those beyond four times the best less than 0.008."""


def promises_little(evidence: Evidence) -> Iterator[Finding]:
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
        unit=PROMISED_TOGETHER,
        limit=_PROMISED_AT_LEAST,
        limit_from="the loss falls by no more than that, whatever the curvature, as long as the steps are small",
        expected=1.0,
        causes=("the steps are small from the first to the last",),
    )


def promises_too_much(evidence: Evidence) -> Iterator[Finding]:
    """Steps that promise to take away the loss, each of them, and together do not: they leap over what they go for."""
    loss, could = evidence.loss, promised(evidence)
    if len(loss) < 2 * evidence.limits.hysteresis or not evidence.from_the_start or not _is_a_size(loss):
        return
    begun = slice(0, _EARLY)
    first, last = float(loss[:3].min()), float(np.median(loss[begun][-5:]))
    known = np.isfinite(could[begun])
    if not could[begun][known].any() or not last > first / 5:
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
        unit=PROMISED_EACH,
        limit=_PROMISED_AT_MOST,
        limit_from="a loss cannot fall by more than itself: beyond about that the gradient says nothing of a step",
        expected=0.1,
        causes=(f"the learning rate{rate}",),
    )


def _is_a_size(loss: Floats) -> bool:
    """Whether it is above zero throughout, so that a share of it means something."""
    return bool(np.isfinite(loss).all() and (loss > 0).all())
