"""Units that do nothing: saturated, dead, all alike, or the same for every input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gradscope.diagnosis._evidence import START, Evidence, Floats, lasting_since, median
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._learning import thrives
from gradscope.diagnosis._registry import rule
from gradscope.diagnosis._words import INITIALIZE, count, names, width
from gradscope.recording import Site

_PICKS_ONE, _FEWEST_CHOICES = 0.9, 4


@rule(
    "saturated-units",
    limit="half of a hidden layer's entries have a slope below a hundredth of the largest: the gradient loses at least "
    "a factor of two in mean square there, at every such layer; a softmax within the model whose squares sum up to 0.9",
    reference="Glorot & Bengio (2010), section 3",
    needs=("activation",),
    units=True,
)
def saturated_units(evidence: Evidence) -> Iterator[Finding]:
    """Logistic, tanh and other bounded units lie where their slope is gone; a softmax within the model picks one."""
    yield from _one_hot(evidence)
    hidden, begins = _is_hidden(evidence), _begins_saturated(evidence)
    limit = np.where(hidden, 1.0, 0.8) * evidence.limits.saturated_share  # an output that was beyond it may come back
    found, when = _sick(evidence, evidence.unit("saturated_fraction"), limit, hidden | begins)
    if not found:
        return
    sites = [site for site, _ in found]
    worst = max(share for _, share in found)
    kinds = sorted({site.module_type for site in sites})
    step = "" if when is None else f" This began at step {when}."
    yield Finding(
        "saturated-units",
        "error" if worst > 0.9 else "note" if thrives(evidence) else "warning",
        f"In {count(len(found), 'layer')} of {', '.join(kinds)} up to {worst:.0%} of the entries lie where the slope "
        f"is below a hundredth of the largest, first in {sites[0].name!r}. No gradient comes through them.{step}",
        f"make what arrives smaller: normalize the inputs, and {INITIALIZE}"
        if when is None
        else "lower the learning rate, or put a norm layer before the activation",
        "Glorot & Bengio (2010)",
        direction="backward",
        sites=names(sites),
        steps=() if when is None else (when,),
        frontier=sites[0],
        value=worst,
        unit="share of entries",
        limit=evidence.limits.saturated_share,
        limit_from="half of the entries: a factor of two in the mean square of the gradient",
        expected=0.0,
        causes=_why_saturated(evidence, sites, when),
    )


def _one_hot(evidence: Evidence) -> Iterator[Finding]:
    """A softmax behind which layers come, attention's above all, that gives all its weight to one.

    The slopes of a softmax sum up to Σ p(1 − p) = 1 − Σ p², and Σ p² is n times the mean square of its n entries.
    """
    sites = evidence.sites("activation")
    last = max((s.depth for s in sites if s.role == "pre-activation"), default=0)
    chosen = [
        i
        for i, s in enumerate(sites)
        if s.module_type == "Softmax" and s.depth < last and len(s.shape) >= 2 and s.shape[-1] >= _FEWEST_CHOICES
    ]
    lasting = evidence.limits.hysteresis
    if not chosen or not len(evidence.at):
        return
    picked = evidence.values("activation")[:, chosen] ** 2 * np.array([sites[i].shape[-1] for i in chosen])
    bad = picked > _PICKS_ONE
    found = np.flatnonzero(bad[-lasting:].all(axis=0))
    if not found.size:
        return
    since = lasting_since(bad[:, found])
    which = [sites[chosen[i]] for i in found]
    worst = float(picked[-1][found].max())
    when = "" if since == 0 else f" This began at step {evidence.step(since)}."
    yield Finding(
        "saturated-units",
        "warning",
        f"{which[0].name!r} is a softmax that gives nearly all its weight to one of {which[0].shape[-1]}: the sum of "
        f"its squares is {worst:.2f} in the mean, and 1 − {worst:.2f} is what is left of its slope.{when}",
        "divide the scores by √(width of a head), or normalize queries and keys (nn.LayerNorm, nn.RMSNorm)"
        if since == 0
        else "lower the learning rate, or normalize queries and keys",
        "Vaswani et al. (2017), section 3.2.1",
        direction="backward",
        sites=names(which),
        steps=() if since == 0 else (evidence.step(since),),
        frontier=which[0],
        value=worst,
        unit="sum of the squares of a softmax",
        limit=_PICKS_ONE,
        limit_from="a tenth of the slope is left",
        expected=1 / which[0].shape[-1],
        causes=("the scores are too large for a softmax",) if since == 0 else ("the weights grew in training",),
    )


def _why_saturated(evidence: Evidence, sites: Sequence[Site], when: int | None) -> tuple[str, ...]:
    if when is not None:
        return ("the weights grew in training: an update was too large",)
    inputs = [
        v
        for s, v in zip(
            evidence.sites("activation"), median(evidence.values("activation")[:START]).tolist(), strict=True
        )
        if s.role == "input"
    ]
    if inputs and max(inputs) > evidence.limits.input_scale / 2:
        return (f"the inputs have an rms of {max(inputs):.3g}",)
    return ("the first weights are too large for what arrives",)


@rule(
    "dead-units",
    limit="three quarters of a layer's units are zero for every input, or the half that chance may leave silent in a "
    "deep sound network plus five standard deviations of it",
    reference="Lu et al. (2019), Dying ReLU and initialization",
    needs=("activation",),
    units=True,
)
def dead_units(evidence: Evidence) -> Iterator[Finding]:
    """Units of ReLU and its like that are zero for every input seen."""
    if not evidence.unit_at.size:
        return
    sites = evidence.sites("activation")
    relus = np.array([s.role == "activation" and _has_a_zero_side(s) for s in sites])
    widths = np.array([width(s) for s in sites], dtype=np.float64)
    limit = np.maximum(evidence.limits.dead_share, 0.5 + evidence.limits.sigmas * np.sqrt(0.25 / widths))
    limit = np.where(limit < 1.0, limit, 0.999)  # of few units half may be silent by chance: all of them are dead
    shares = _where_many_samples(evidence, evidence.unit("silent_fraction"))
    found, when = _sick(evidence, shares, limit, relus)
    if not found:
        return
    dead = [site for site, _ in found]
    worst = max(share for _, share in found)
    biased = _negative_biases(evidence) if when is None else []
    begun = [
        s for s in sites if biased and s.role == "activation" and s.depth > biased[0][1] and s.depth <= dead[0].depth
    ]
    frontier = begun[0] if begun else dead[0]
    step = "" if when is None else f" This began at step {when}."
    reads = len(evidence.unit_at)
    over = "the batch" if reads == 1 else f"{min(reads, 10)} batches"
    yield Finding(
        "dead-units",
        "error" if worst > 0.95 else "warning",
        f"In {count(len(found), 'layer')} up to {worst:.0%} of the units are zero for every input of {over}, first in "
        f"{frontier.name!r}. They pass no gradient on and do not learn any more.{step}",
        f"set the biases to zero and draw the weights anew, {INITIALIZE}; with a lower learning rate, or LeakyReLU, "
        "units that die come back",
        "Lu et al. (2019)",
        direction="backward",
        sites=names(dead),
        steps=() if when is None else (when,),
        frontier=frontier,
        value=worst,
        unit="share of units",
        limit=float(min(limit[i] for i, s in enumerate(sites) if s in dead)),
        limit_from="a half may be silent by chance; five standard deviations of the share at this width",
        expected=0.5,
        causes=_why_dead(evidence, dead, when),
    )


def _why_dead(evidence: Evidence, dead: Sequence[Site], when: int | None) -> tuple[str, ...]:
    if when is not None:
        return ("an update threw the units to where their slope is zero",)
    return tuple(f"the biases {name!r} are {mean:.2g} on average" for name, _, mean in _negative_biases(evidence)[:1])


def _negative_biases(evidence: Evidence) -> list[tuple[str, int, float]]:
    """Name, depth and mean of the biases that begin clearly below zero."""
    means = evidence.values("weight", "mean")[:1] if evidence.has("weight") else np.zeros((0, 0))
    if not len(means):
        return []
    return [
        (site.name, site.depth, float(mean))
        for site, mean in zip(evidence.sites("weight"), means[0].tolist(), strict=True)
        if site.param == "bias" and mean < -0.5
    ]


def _has_a_zero_side(site: Site) -> bool:
    return ("relu" in site.module_type.lower() and "leaky" not in site.module_type.lower()) or site.name.endswith(
        "relu"
    )


def _where_many_samples(evidence: Evidence, shares: Floats) -> Floats:
    """Nothing is said of a batch of a few entries a unit: in one of four, many sound units are silent."""
    sites = evidence.sites("activation")
    entries = np.array([np.prod(s.shape) / max(width(s), 1) for s in sites])
    return np.where(entries[None, :] >= 32, shares, np.nan)


def _is_hidden(evidence: Evidence) -> np.ndarray:
    """Activations behind which another layer comes: an output may saturate, it is what the loss asks of it."""
    sites = evidence.sites("activation")
    last = max((s.depth for s in sites if s.role == "pre-activation"), default=0)
    return np.array([s.role == "activation" and s.depth < last for s in sites], dtype=bool)


def _begins_saturated(evidence: Evidence) -> np.ndarray:
    """Activations that are the output, and saturated before anything was learned."""
    sites, shares = evidence.sites("activation"), evidence.unit("saturated_fraction")
    if not evidence.from_the_start or not evidence.training or not len(shares) or evidence.unit_at[0] != 0:
        return np.zeros(len(sites), dtype=bool)
    with np.errstate(invalid="ignore"):
        begins = shares[0] > evidence.limits.saturated_share
    found: np.ndarray = np.array([s.role == "activation" for s in sites], dtype=bool) & begins
    return found


def _sick(
    evidence: Evidence, shares: Floats, limit: Floats, chosen: np.ndarray
) -> tuple[list[tuple[Site, float]], int | None]:
    """The sites whose share is beyond the limit at the end of the recording, and since when, None from the start."""
    sites = evidence.sites("activation")
    if not len(shares):
        return [], None
    bad = (shares >= limit) & chosen
    latest = median(shares[-2:])
    lasting = bad[-2:].all(axis=0)
    found = [(sites[i], float(latest[i])) for i in np.flatnonzero(lasting)]
    if not found:
        return [], None
    first = lasting_since(bad[:, lasting] | np.isnan(shares[:, lasting]))
    return found, None if first == 0 else int(evidence.steps[evidence.unit_at[first]])
