"""NaN and infinity: where the first was made, and what led to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._folding import UNIT_OF_THE_LOSS
from gradscope.diagnosis._registry import no_step, rule
from gradscope.diagnosis._words import INITIALIZE
from gradscope.recording import Signal, Site

_LARGEST = {"float16": 65504.0, "bfloat16": 3.39e38, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
_ORDER: tuple[Signal, ...] = ("weight", "activation", "activation_grad", "weight_grad", "update")


@rule(
    "non-finite",
    limit="one entry that is NaN or infinite in a step that the optimizer did not skip",
    reference="IEEE 754",
    fewest=no_step,
)
def non_finite(evidence: Evidence) -> Iterator[Finding]:
    """NaN or infinity; the layer that made the first one is named, not those that carried it on."""
    loss = _infinite_loss(evidence)
    if loss is not None:
        yield from _of_the_loss("non-finite", *loss) if not _left_its_dtype(loss) else ()
        return
    found = first(evidence)
    if found is None or overflowed(evidence, found) is not None:
        return
    site, sentence, step = found
    yield Finding(
        "non-finite",
        "error",
        f"The first NaN or infinity is at {site.name!r} ({site.module_type}): {sentence}. Everything after step {step} "
        "is its consequence.",
        _remedy(site),
        "",
        direction="backward" if site.signal in ("activation_grad", "weight_grad") else "forward",
        sites=(site.name,),
        steps=(step,),
        frontier=site,
        value=1.0,
        unit="steps with NaN or infinity",
        limit=0.0,
        limit_from="no entry may be",
        expected=0.0,
        causes=(sentence,),
    )


@rule(
    "dtype-overflow",
    limit="infinite entries of a type of reduced precision, where the largest finite one is within two powers of two "
    "of what it can hold",
    reference="Micikevicius et al. (2018)",
    fewest=no_step,
)
def dtype_overflow(evidence: Evidence) -> Iterator[Finding]:
    """Values beyond what the dtype holds: float16 ends at 65,504."""
    loss = _infinite_loss(evidence)
    if loss is not None:
        yield from _of_the_loss("dtype-overflow", *loss) if _left_its_dtype(loss) else ()
        return
    found = first(evidence)
    if found is None:
        yield from _inside(evidence)
        return
    largest = overflowed(evidence, found)
    if largest is None:
        return
    site, sentence, step = found
    limit = _LARGEST[site.dtype]
    yield Finding(
        "dtype-overflow",
        "error",
        f"{site.name!r} ({site.module_type}) is beyond what {site.dtype} holds, {limit:.4g}: {sentence}. What it was "
        f"computed from reached {largest:.3g}.",
        "use bfloat16, which has float32's range, or keep this layer in float32"
        if site.dtype != "bfloat16"
        else f"make the weights before it smaller, {INITIALIZE}, or put a norm layer before it",
        "Micikevicius et al. (2018)",
        direction="forward" if site.signal == "activation" else "backward",
        sites=(site.name,),
        steps=(step,),
        frontier=site,
        value=largest,
        unit="value",
        limit=limit,
        limit_from=f"the largest number of {site.dtype}",
        causes=(sentence,),
    )


def _inside(evidence: Evidence) -> Iterator[Finding]:
    """A module of half precision that returns zeros alone for what is none: x over an infinite norm is 0."""
    if not len(evidence.at) or not evidence.has("activation"):
        return
    sites, zero = evidence.sites("activation"), evidence.values("activation", "zero_fraction")[0]
    largest = evidence.values("activation", "abs_max")[0]
    for i, site in enumerate(sites):
        if i == 0 or site.dtype != "float16" or site.role not in ("norm", "other") or zero[i] < 1.0:
            continue
        entries = float(np.prod(sites[i - 1].shape[1:]))
        if not largest[i - 1] ** 2 * max(entries, 1.0) > _LARGEST["float16"]:
            continue
        yield Finding(
            "dtype-overflow",
            "error",
            f"{site.name!r} ({site.module_type}) returns zeros alone, though what it is computed from reaches "
            f"{largest[i - 1]:.3g}: its squares leave float16, which ends at 65,504, and a number over infinity is 0.",
            "compute this module in float32, or use bfloat16, which has float32's range",
            "Micikevicius et al. (2018)",
            direction="forward",
            sites=(site.name,),
            frontier=site,
            value=float(largest[i - 1]),
            unit="value",
            limit=_LARGEST["float16"] ** 0.5,
            limit_from="the square root of the largest number of float16",
        )
        return


def _infinite_loss(evidence: Evidence) -> tuple[Site, int, str] | None:
    """The model's last output, and the step at which the loss is infinite or NaN, and which, though whatever was
    observed is finite."""
    known = np.flatnonzero(np.isfinite(evidence.loss))
    at = np.flatnonzero(np.isinf(evidence.loss))
    sites = evidence.sites("activation")
    nan = np.flatnonzero(np.isnan(evidence.loss[known[0] :])) + known[0] if known.size else known
    if nan.size and (not at.size or nan[0] < at[0]) and "loss" in evidence.recording.notes_at(int(evidence.at[nan[0]])):
        at = nan  # and not one that was not noted
    if not at.size or not sites:
        return None
    which = "infinite" if np.isinf(evidence.loss[at[0]]) else "NaN"
    return max(sites, key=lambda s: s.depth), evidence.step(int(at[0])), which


def _left_its_dtype(found: tuple[Site, int, str]) -> bool:
    return found[0].dtype == "float16" and found[2] == "infinite"


def _of_the_loss(rule_name: str, output: Site, step: int, which: str) -> Iterator[Finding]:
    half = output.dtype == "float16" and which == "infinite"
    remedy = "look into the loss function: an exponential, a division or a logarithm without an epsilon or a limit"
    if which == "NaN":
        remedy = "look into the loss function: a mean over no target (all ignored or masked), 0/0, ∞ − ∞"
    if half:
        remedy = (
            f"compute the loss in float32: loss_fn(output.float(), target), and a mean in place of a sum; "
            f"{output.name!r} is float16"
        )
    yield Finding(
        rule_name,
        "error",
        f"At step {step} the loss is {which}, while every output of the model is finite: the loss function makes it"
        + (", and float16 ends at 65,504." if half else "."),
        remedy,
        "Micikevicius et al. (2018)" if half else "IEEE 754",
        direction="forward",
        sites=(output.name,),
        steps=(step,),
        frontier=output,
        value=1.0,
        unit=UNIT_OF_THE_LOSS,
        limit=0.0,
        limit_from="no loss may be",
        expected=0.0,
        causes=("made behind the model, by the loss function",),
    )


def first(evidence: Evidence) -> tuple[Site, str, int] | None:
    """The site of the first entry that is not finite, a sentence on it, and its step."""
    if evidence.broken_at is None:
        return None
    recording, at = evidence.recording, evidence.broken_at
    step = int(recording.steps[at])
    known: dict[str, Any] | None = evidence.facts.get("first_nonfinite")
    if known and known["step"] == step:
        for site in recording.sites_of(known["signal"]):
            if site.name == known["site"]:
                return site, known["sentence"].partition(": ")[2], step
    for signal in _ORDER:
        bad = recording.values(signal, "nonfinite_count", [at])[0] if recording.sites_of(signal) else np.zeros(0)
        places = np.flatnonzero(bad > 0)
        if places.size:
            sites = recording.sites_of(signal)
            site = sites[int(places[-1 if signal == "activation_grad" else 0])]
            return site, f"{int(bad[places].sum())} entries of the {signal} are not finite", step
    return None


def overflowed(evidence: Evidence, found: tuple[Site, str, int]) -> float | None:
    """The largest finite number at the site or just before it, where that is near the end of its dtype."""
    site, _, _ = found
    limit = _LARGEST.get(site.dtype)
    if limit is None or site.signal not in ("activation", "activation_grad") or evidence.broken_at is None:
        return None
    recording, at = evidence.recording, evidence.broken_at
    sites = recording.sites_of(site.signal)
    infs = _infs(recording, site, at)
    if not infs:
        return None
    largest = recording.values(site.signal, "abs_max", [at])[0]
    place = sites.index(site)
    near = largest[max(0, place - 1) : place + 2]
    near = near[np.isfinite(near)]
    if not near.size:
        return None
    top = float(near.max())
    return top if top > limit / 4 else None


def _infs(recording: Any, site: Site, at: int) -> int:
    sites, moments = recording.moments(site.signal, at)
    for one, infs in zip(sites, moments.infs.tolist(), strict=True):
        if one == site:
            return int(infs)
    return 0


def _remedy(site: Site) -> str:
    if site.signal == "activation" and site.role == "input":
        return "look at the batch: it holds NaN or infinity before the model sees it"
    if site.signal == "activation":
        return (
            f"look into {site.module!r}: a division, logarithm, root or exponential without an epsilon or a limit; "
            "GradScope(..., on_nonfinite='dump') keeps the batch"
        )
    if site.signal == "activation_grad":
        return f"look at what follows {site.module!r}: a root or norm at 0, 0·∞ behind where(), a logarithm of 0"
    if site.signal == "weight":
        return "look at the step before: an update made it"
    if site.signal == "update":
        return "the optimizer makes it: a larger eps, weights in float32 rather than float16, a lower learning rate"
    return "torch.autograd.set_detect_anomaly(True) names the operation"
