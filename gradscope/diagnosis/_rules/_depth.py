"""Signals that shrink or grow on their way through the depth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np

from gradscope.diagnosis._causes import causes_of_depth, remedy_of
from gradscope.diagnosis._evidence import END, Evidence, median
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._first_loss import first_loss
from gradscope.diagnosis._learning import learning, learns
from gradscope.diagnosis._passage import Passage, passage
from gradscope.diagnosis._registry import rule
from gradscope.diagnosis._steps import over_steps
from gradscope.diagnosis._whole import forgotten, over_the_model
from gradscope.diagnosis._words import names, worse

Moving = Literal["activation", "activation_grad"]

_WORDS = {
    ("activation", True): ("activation", "shrinks", "of it is left at the end"),
    ("activation", False): ("activation", "grows", "of it arrives at the end"),
    ("activation_grad", True): ("gradient", "shrinks", "of it reaches the first layers"),
    ("activation_grad", False): ("gradient", "grows", "of it reaches the first layers"),
}


@rule(
    "vanishing-gradient",
    limit="two decades of the gradient's norm lost towards the input at every site beyond, and half of that by the "
    "relative gradients of the weights: the first layers learn a hundred times slower than the last; never less than "
    "five standard deviations of what chance does at these widths",
    reference="Glorot & Bengio (2010); Hanin (2018)",
    needs=("activation_grad",),
)
def vanishing_gradient(evidence: Evidence) -> Iterator[Finding]:
    """The backpropagated gradient shrinks towards the input, and no way round it stays."""
    yield from _over_depth(evidence, "activation_grad", lost=True)
    yield from forgotten(evidence)


@rule(
    "exploding-gradient",
    limit="two decades of the gradient's norm won towards the input at every site beyond, and 0.05 for each layer, "
    "four at most",
    reference="Pascanu et al. (2013); Yang et al. (2019)",
    needs=("activation_grad",),
)
def exploding_gradient(evidence: Evidence) -> Iterator[Finding]:
    """The backpropagated gradient grows towards the input."""
    yield from _over_depth(evidence, "activation_grad", lost=False)


@rule(
    "vanishing-activation",
    limit="three decades of rms lost at every site beyond, the last layer's output left out",
    reference="He et al. (2015), eq. 10; Hanin (2018)",
    needs=("activation",),
)
def vanishing_activation(evidence: Evidence) -> Iterator[Finding]:
    """The activation shrinks, with depth or from step to step, and no norm or residual stream keeps it up."""
    yield from _over_depth(evidence, "activation", lost=True)
    yield from over_steps(evidence, lost=True)


@rule(
    "exploding-activation",
    limit="three decades of rms won at every pre-activation and residual sum beyond",
    reference="He et al. (2015), eq. 10; Hanin (2018)",
    needs=("activation",),
)
def exploding_activation(evidence: Evidence) -> Iterator[Finding]:
    """The activation grows, with depth or from step to step."""
    yield from _over_depth(evidence, "activation", lost=False)
    yield from over_steps(evidence, lost=False)
    yield from over_the_model(evidence)


def _over_depth(evidence: Evidence, signal: Moving, *, lost: bool) -> Iterator[Finding]:
    if not evidence.has(signal) or not len(evidence.at):
        return
    found = passage(evidence, signal, lost=lost)
    if not found.sites:
        return
    limits = evidence.limits
    if signal == "activation_grad":
        limit = limits.gradient_decades
        if not lost:  # with batch norm and residual sums sound networks win 0.06 decades a layer
            limit = min(limits.explosion_decades, limit + 0.05 * found.layers)
    else:
        limit = limits.activation_decades
    if signal == "activation" and not lost and first_loss(evidence) is not None:
        limit /= 2  # the loss itself says that it has grown too much
    else:
        limit = max(limit, min(2 * limit, limits.sigmas * _spread(found)))  # what is lost by chance is lost too
    one_grows = signal == "activation_grad" and not lost and _of_one_layer(found)
    if one_grows or min(found.layers, len(evidence.layers) or found.layers) < 3:  # what one layer does is no depth yet
        limit *= 2
    start, end = found.at_start, found.at_end
    if start >= limit and _confirmed(evidence, signal, slice(0, 1), limit / 2, lost=lost):
        yield _finding(evidence, found, start, limit, slice(0, 1), since=None)
        return
    late = max(limits.late_decades, limit) + max(start, 0.0)
    since = _since(found.total, late, limits.hysteresis)
    if since is None or not end >= late:
        return
    if _confirmed(evidence, signal, slice(-END, None), late / 2, lost=lost):
        yield _finding(evidence, found, end, late, slice(-END, None), since=since)


def _of_one_layer(found: Passage) -> bool:
    """Whether it is no more than one layer's output that is sick: a norm behind small weights does that, by design."""
    sick = found.frontier(slice(0, 1))[1]
    return (
        sum(site.role == "pre-activation" for site in sick) < 2 and found.layers > 2 and not any(s.call for s in sick)
    )


def _since(total: np.ndarray, limit: float, hysteresis: int) -> int | None:
    """Place of the first step from which it stays beyond the limit to the end, for long enough."""
    below = np.flatnonzero(~(total >= limit))
    first = 0 if not below.size else int(below[-1]) + 1
    return first if 0 < first <= len(total) - hysteresis else None


def _confirmed(evidence: Evidence, signal: Moving, steps: slice, limit: float, *, lost: bool) -> bool:
    """For a gradient that is lost: whether the weights of the layers lose theirs too, where these were recorded.

    A pooling averages gradients, and the convolution behind it sums them again; only a loss that the weights feel is
    one. Where the activation shrinks as well, a weight's gradient (their product) does not tell.
    """
    if signal != "activation_grad" or not lost or not evidence.has("weight_grad"):
        return True
    sites = evidence.sites("activation_grad")
    if 2 * sum(site.call > 0 for site in sites) > len(sites):  # through time: all calls share their weights
        return True
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.log10(median(evidence.relative_gradient[steps]))
    level = level[np.isfinite(level)]
    if len(level) < 2:
        return True
    kept = np.maximum.accumulate(level)
    if level.max() - kept[0] >= limit:
        return True
    forward = passage(evidence, "activation", lost=True) if evidence.has("activation") else None
    return forward is not None and float(median(forward.total[steps])) >= evidence.limits.activation_decades / 2


def evened_out(evidence: Evidence) -> bool:
    """Whether the layers' relative updates are within a decade of each other and the loss falls: Adam does that."""
    if not evidence.training or len(evidence.at) < evidence.limits.hysteresis or not learns(evidence):
        return False
    kept, ratio = learning(evidence)
    typical = median(ratio)
    typical = typical[np.isfinite(typical) & (typical > 0)]
    return len(typical) == len(kept) > 1 and float(typical.max() / typical.min()) < 10


def _spread(found: Passage) -> float:
    """Standard deviation, in decades of rms, that chance gives a chain of these widths: v = Σ 5/n of the log of a
    mean square (ReLU's, the largest of the usual activations)."""
    widths = [max(site.shape[1:], default=1) for site in found.sites if site.role == "pre-activation"]
    return math.sqrt(sum(5.0 / max(width, 1) for width in widths)) / 2 / math.log(10)


def _finding(
    evidence: Evidence, found: Passage, decades: float, limit: float, steps: slice, since: int | None
) -> Finding:
    word, moves, left = _WORDS[found.signal, found.lost]
    frontier, sick = found.frontier(steps)
    kind = f"{'vanishing' if found.lost else 'exploding'}-{word}"
    sign = "−" if found.lost else "+"
    first = f" from {frontier.name!r} on" if frontier is not None else ""
    amount = f"10^{sign}{decades:.1f}"
    when = "" if since is None else f" This began at step {evidence.step(since)}."
    consequence = f"Over {found.layers} layers {amount} {left}." if found.layers > 1 else f"{amount} {left}."
    causes = causes_of_depth(evidence, found, sick, since)
    severity = worse(decades, max(evidence.limits.error_decades, limit))
    if found.signal == "activation_grad" and found.lost and evened_out(evidence):
        severity = "warning" if severity == "error" else "note"
        consequence = f"{consequence} The optimizer evens it out: all layers learn alike, and well."
    return Finding(
        kind,
        severity,
        f"The {word} {moves}{first}. {consequence}{when}",
        remedy_of(causes),
        "Glorot & Bengio (2010); He et al. (2015)",
        direction="backward" if found.signal == "activation_grad" else "forward",
        sites=names(sick),
        steps=() if since is None else (evidence.step(since),),
        frontier=frontier,
        value=-decades if found.lost else decades,
        unit="decades of rms over the depth" if word == "activation" else "decades of the norm over the depth",
        limit=-limit if found.lost else limit,
        limit_from=f"{limit:.1f} decades; chance alone gives ±{_spread(found):.2f} at these widths",
        expected=0.0,
        causes=tuple(cause.sentence for cause in causes),
    )
