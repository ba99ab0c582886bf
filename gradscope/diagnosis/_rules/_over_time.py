"""What happens to the gradient's norm from step to step: spikes, clipping, growth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import Evidence, Floats, median
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._learning import is_adaptive, learns, optimizers_of
from gradscope.diagnosis._outside import changed_outside, inputs_rise, risen
from gradscope.diagnosis._registry import lasting_twice, rule
from gradscope.diagnosis._words import factor
from gradscope.recording import Site

_WINDOW, _FEWEST = 50, 10


def gradient_norm(evidence: Evidence) -> Floats:
    """Of all parameters, before clipping, at each step that counts."""
    noted = evidence.notes("grad_norm")
    if np.isfinite(noted).any() or not evidence.has("weight_grad"):
        return noted
    size = evidence.values("weight_grad") * np.sqrt(evidence.values("weight_grad", "count"))
    return np.asarray(np.hypot.reduce(np.nan_to_num(size, nan=0.0), axis=1), dtype=np.float64)


@rule(
    "gradient-spike",
    limit="a decade above every norm of the fifty steps before, and eight of their robust standard deviations (1.48 · "
    "median absolute deviation of the logarithms); a quarter of a decade where the loss jumps likewise, and stays",
    reference="Chowdhery et al. (2022), section 5.1",
    needs=("weight_grad",),
    fewest=lambda limits: _FEWEST + 1,
)
def gradient_spike(evidence: Evidence) -> Iterator[Finding]:
    """The gradient of one step, or of some, is far above those before it."""
    if not evidence.of_a_run or len(evidence.at) <= _FEWEST:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.log10(gradient_norm(evidence))
    spikes = _spikes(level, evidence)
    if not spikes:
        yield from _first_step(evidence, level)
        return
    at = max(spikes, key=lambda place: spikes[place])
    first = min(spikes)
    site, by = _who(evidence, first)
    before = level[max(0, first - _WINDOW) : first]
    usual = float(np.nanmedian(before))
    cause, remedy = _why(evidence, first)
    more = f" There are {len(spikes)} such steps." if len(spikes) > 1 else ""
    where = "" if site is None or not by else f" It grows most at {site.name!r}, {factor(10**by)} times."
    yield Finding(
        "gradient-spike",
        "warning",
        f"At step {evidence.step(first)} the gradient's norm is {factor(10 ** (level[first] - usual))} times what it "
        f"was in the {len(before)} steps before.{where}{more}",
        remedy
        or f"clip: torch.nn.utils.clip_grad_norm_(model.parameters(), {10 ** float(np.nanquantile(before, 0.9)):.2g})",
        "Chowdhery et al. (2022), section 5.1",
        direction="backward",
        sites=() if site is None else (site.name,),
        steps=tuple(evidence.step(i) for i in sorted(spikes)),
        frontier=site,
        value=float(spikes[at]),
        unit="decades above the median before",
        limit=evidence.limits.spike_decades,
        limit_from="a decade above the largest, and eight robust standard deviations above the median, of the steps "
        "before",
        expected=0.0,
        causes=(cause,) if cause else (),
    )


def _first_step(evidence: Evidence, level: Floats) -> Iterator[Finding]:
    """A first gradient that is decades above those ten steps later: no layer had time to change by as much."""
    soon = slice(_FEWEST, 2 * _FEWEST)
    behind, loss = level[soon][np.isfinite(level[soon])], evidence.loss
    if not evidence.from_the_start or len(behind) < _FEWEST / 2 or not np.isfinite(level[0]):
        return
    above, after = float(level[0] - behind.max()), float(median(loss[soon]))
    limit = 3 * evidence.limits.spike_decades
    if above < limit or not loss[0] > 100 * abs(after):
        return
    site = _largest(evidence, 0)
    yield Finding(
        "gradient-spike",
        "warning",
        f"The first gradient is {factor(10**above)} times those of ten steps later, and the loss falls from "
        f"{loss[0]:.3g} to {after:.3g} in them: it was close to where it is infinite (the logarithm of nearly 0, a "
        "division by nearly 0), and each sample that comes near again throws the weights.",
        "keep what the loss divides by, or takes the logarithm of, away from 0: softplus or exp in place of ReLU, a "
        "larger epsilon",
        "Chowdhery et al. (2022), section 5.1",
        direction="backward",
        sites=() if site is None else (site.name,),
        frontier=site,
        value=above,
        unit="decades above those of ten steps later",
        limit=limit,
        limit_from="what a loss that is finite everywhere does not do in ten steps",
        expected=0.0,
        causes=("the loss has a pole near the first outputs",),
    )


def _largest(evidence: Evidence, place: int) -> Site | None:
    """The site whose gradient is the largest at a step."""
    sites, rms = evidence.sites("activation_grad"), evidence.values("activation_grad")
    if not sites or not np.isfinite(rms[place]).any():
        return None
    return sites[int(np.nanargmax(rms[place]))]


def _spikes(level: Floats, evidence: Evidence) -> dict[int, float]:
    """Place → decades above the median before; a level that stays is a new one, and told once."""
    found: dict[int, float] = {}
    usual = np.isfinite(level)
    for i in np.flatnonzero(usual).tolist():
        window = slice(max(0, i - _WINDOW), i)
        before = level[window][usual[window]]
        if len(before) < _FEWEST:
            continue
        lately = float(level[i] - before[-2 * _FEWEST :].max())
        if lately <= evidence.limits.spike_decades / 4:
            continue
        beyond = float(level[i] - before.max())
        centre = float(np.median(before))
        spread = 1.4826 * float(np.median(np.abs(before - centre)))
        above = float(level[i]) - centre
        sure = above > evidence.limits.spike_sigmas * spread
        if (beyond > evidence.limits.spike_decades and sure) or (
            lately > evidence.limits.spike_decades / 4 and _loss_jumps(evidence.loss, i, evidence.limits.hysteresis)
        ):
            found[i] = above
            usual[i] = False
    return found


def _loss_jumps(loss: Floats, place: int, lasting: int) -> bool:
    """Whether the loss is, from a place on and for some steps, above twice all of those before: a second witness."""
    before = loss[max(0, place - _FEWEST) : place]
    after = loss[place : place + lasting]
    known = before[np.isfinite(before)]
    if len(after) < lasting or len(known) < _FEWEST or not np.isfinite(after).all():
        return False
    centre = float(np.median(known))
    spread = 1.4826 * float(np.median(np.abs(known - centre)))
    return bool((after > centre + max(5 * spread, abs(centre))).all() and (after > known.max()).all())


def _who(evidence: Evidence, place: int) -> tuple[Site | None, float]:
    """What was changed, or the batch; else, among the sites whose gradient has risen as much as any, the nearest to
    the loss."""
    for changed in changed_outside(evidence, place):
        return changed, 0.0
    if inputs_rise(evidence, place) > 0.5:
        return next(s for s in evidence.sites("activation") if s.role == "input"), 0.0
    if not evidence.has("activation_grad"):
        return None, 0.0
    sites = evidence.sites("activation_grad")
    level = evidence.level("activation_grad")
    rise = risen(level, place, max(0, place - _WINDOW))
    rise = np.where(np.isfinite(rise), rise, -np.inf)
    if not np.isfinite(rise).any():
        return None, 0.0
    best = float(rise.max())
    # The gradient comes from the loss: the first on its way that has risen by nearly as much as any began it.
    for i in range(len(sites) - 1, -1, -1):
        if rise[i] > best - 0.5:
            return sites[i], float(rise[i])
    return None, 0.0


def _why(evidence: Evidence, place: int) -> tuple[str, str]:
    changed = changed_outside(evidence, place)
    if changed:
        return (
            f"before step {evidence.step(place)} {changed[0].name!r} was changed by something other than the optimizer",
            "look for what writes to the weights at that step: a checkpoint that is loaded, an average, a clamp",
        )
    rise = inputs_rise(evidence, place)
    if rise > 0.5:
        return (
            f"the batch of step {evidence.step(place)} is {factor(10**rise)} times larger than those before",
            "look at that batch: data that are not normalized, or broken",
        )
    if evidence.has("update") and place > 0:
        moved = evidence.relative_update[max(0, place - 2) : place]
        usual = evidence.relative_update[: max(1, place - 2)]
        with np.errstate(invalid="ignore", divide="ignore"):
            grown = moved.max(axis=0) / np.maximum(median(usual), 1e-30)
        if np.isfinite(grown).any() and float(np.nanmax(grown)) > 5 and float(np.nanmax(moved)) > 0.01:
            return (
                f"the update moved first: at step {evidence.step(place - 1)} it was {factor(float(np.nanmax(grown)))} "
                "times what it was before",
                "look at the learning rate's schedule; clip the gradient",
            )
    return "", ""


@rule(
    "clipping-always",
    limit="clipped at 95 % of the steps, to less than a tenth in the median: the limit, and not the learning rate, "
    "sets the step's size",
    reference="Pascanu et al. (2013)",
    needs=("weight_grad",),
    fewest=lasting_twice,
)
def clipping_always(evidence: Evidence) -> Iterator[Finding]:
    """Gradients are clipped at nearly every step, and by much."""
    factors = evidence.notes("clip_coefficient")
    norm, clipped = gradient_norm(evidence), evidence.notes("grad_norm_clipped")
    with np.errstate(invalid="ignore", divide="ignore"):
        factors = np.where(np.isnan(factors), clipped / norm, factors)
    known = factors[np.isfinite(factors)]
    if len(known) < 2 * evidence.limits.hysteresis:
        return
    share, typical = float((known < 1 - 1e-6).mean()), float(np.median(known))
    if share < evidence.limits.clipped_share or typical >= evidence.limits.clipped_to:
        return
    quantile = float(np.nanquantile(norm, 0.9))
    adaptive = any(is_adaptive(one["class"]) for one in optimizers_of(evidence))
    yield Finding(
        "clipping-always",
        "note" if adaptive and typical > 1e-3 and learns(evidence) else "warning",  # a constant factor is nothing to it
        f"The gradients were clipped at {share:.0%} of the steps, in the median to {typical:.2g} of their size. The "
        "limit sets the size of each step, and the direction of large batches counts no more than that of small ones.",
        f"raise max_norm to about {quantile:.2g} (nine of ten steps then pass), and lower the learning rate by as much",
        "Pascanu et al. (2013)",
        direction="backward",
        value=typical,
        unit="factor of clipping, median",
        limit=evidence.limits.clipped_to,
        limit_from=f"of {len(known)} steps",
        expected=1.0,
    )
