"""Parameters that get no gradient: detached, unused, frozen, left out by the optimizer, or all zero."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._registry import rule
from gradscope.diagnosis._start import starts
from gradscope.diagnosis._words import count, listed, names
from gradscope.recording import Site


@rule(
    "no-gradient",
    limit="no entry that is not zero arrives at a trained parameter in any of the recorded steps",
    reference="torch.autograd: detach, requires_grad, no_grad",
    needs=("weight_grad",),
)
def no_gradient(evidence: Evidence) -> Iterator[Finding]:
    """Parameters to which no gradient comes, by the reason: detached, unused, frozen, not in the optimizer, zero."""
    if not len(evidence.at) or not evidence.parameters:
        return
    yield from _without(evidence)
    yield from _stopped(evidence)
    yield from _frozen(evidence)
    yield from _left_out(evidence)


def _without(evidence: Evidence) -> Iterator[Finding]:
    state = _states(evidence)
    unused = [s for s in evidence.parameters if state[s.name] == "unused"]
    zero = [s for s in evidence.parameters if state[s.name] == "zero"]
    detached, never_called, elsewhere = [], [], []
    ran = {s.module for signal in ("activation", "activation_grad") for s in evidence.sites(signal)}
    known = bool(ran)
    observed = {s.module: s.depth for s in evidence.sites("activation_grad") if s.name in evidence.reached}
    nearest = min(observed.values(), default=0)
    for site in unused:
        if known and site.module not in ran:
            never_called.append(site)
        elif _depth(evidence, site) < nearest:  # no gradient comes to any layer before the cut
            detached.append(site)
        else:
            elsewhere.append(site)
    everything = bool(unused) and not any(v in ("flows", "zero") for v in state.values())
    if everything:
        yield _found(
            evidence,
            unused,
            "error",
            "No parameter of the model has a gradient: the loss does not depend on it, or was computed without it "
            "(detach, no_grad, .item(), numpy).",
            "compute the loss from the model's output by torch's operations alone, with gradients on",
            "detached",
        )
        return
    if detached:
        last = max(detached, key=lambda s: _depth(evidence, s))
        behind = min((d, m) for m, d in observed.items() if d > _depth(evidence, last))[1]
        yield _found(
            evidence,
            detached,
            "error",
            f"The gradient ends between {last.module!r} and {behind!r}: what {last.module!r} returns is used "
            f"there, but detached (detach, no_grad, .data, numpy, an integer). {count(len(detached), 'parameter')} "
            "below never change.",
            f"remove the detach or no_grad between {last.module!r} and {behind!r}",
            "detached",
            frontier=last,
        )
    if elsewhere:
        yield _found(
            evidence,
            elsewhere,
            "warning" if any(len(s.shape) >= 2 for s in elsewhere) else "note",  # a bias alone may have no part in it
            f"{_modules(elsewhere)} ran, but what it returned does not reach the loss, or only detached."
            if known
            else f"No gradient reaches {_modules(elsewhere)}: it does not run, or its output has no part in the loss.",
            "use its output in the loss, or take it out of the model",
            "unused",
            frontier=elsewhere[0],
        )
    if never_called:
        yield _found(
            evidence,
            never_called,
            "warning",
            f"{_modules(never_called)} is never called in a forward pass, so that "
            f"{count(len(never_called), 'parameter')} never get a gradient.",
            "call it, or take it out of the model",
            "unused",
            frontier=never_called[0],
        )
    if zero:
        yield from _zero(evidence, zero)
    if not detached:
        yield from _between_calls(evidence)


def _between_calls(evidence: Evidence) -> Iterator[Finding]:
    """A module called several times whose later calls have a gradient, and its earlier ones none."""
    reached = evidence.reached
    calls: dict[str, list[Site]] = defaultdict(list)
    for site in evidence.sites("activation"):
        if site.output == 0 and site.trainable:
            calls[site.module].append(site)
    for module, sites in calls.items():
        without = [s for s in sites if s.name not in reached]
        if len(sites) < 3 or not without or len(without) == len(sites):
            continue
        last = without[-1]
        behind = [s for s in sites if s.depth > last.depth]
        if not behind or len(without) < 2:
            continue
        yield _found(
            evidence,
            without,
            "error",
            f"{module!r} is called {len(sites)} times in a forward pass, and no gradient reaches its first "
            f"{len(without)} calls: what call {last.call} returns is detached before call {behind[0].call} uses it.",
            f"remove the detach between the calls of {module!r}; truncated backpropagation through time cuts each few "
            "dozen calls, not each one",
            "detached between calls",
            frontier=last,
        )
        return


def _stopped(evidence: Evidence) -> Iterator[Finding]:
    """Parameters that had a gradient, and have none from a step on to the end."""
    sites, zeros = evidence.sites("weight_grad"), evidence.values("weight_grad", "zero_fraction")
    lasting = max(evidence.limits.hysteresis, len(evidence.at) // 5)
    flows = zeros < 1.0
    if len(flows) < 2 * evidence.limits.hysteresis or not flows[-lasting:].any():
        return
    last = np.where(flows.any(axis=0), len(flows) - 1 - np.argmax(flows[::-1], axis=0), len(flows))
    stopped = (last < len(flows) - lasting) & (flows.sum(axis=0) >= np.maximum(last, 1) / 2)
    found = [s for s, one in zip(sites, stopped.tolist(), strict=True) if one and s.trainable and len(s.shape) >= 2]
    if not found:
        return
    first = max(found, key=lambda s: _depth(evidence, s))
    since = evidence.step(int(last[sites.index(first)]) + 1)
    yield _found(
        evidence,
        found,
        "error",
        f"Up to step {since - 1} a gradient came to {listed(names(found))}, and none has since: something behind "
        f"{first.module!r} is detached from then on, or multiplies by zero.",
        f"look for what changes at step {since}: a detach, a no_grad, a mask, a branch of the loss",
        f"detached from step {since} on",
        frontier=first,
        since=since,
    )


def _zero(evidence: Evidence, zero: list[Site]) -> Iterator[Finding]:
    """All of the gradient is exactly zero, in every step."""
    weights = [s for s in zero if len(s.shape) >= 2]
    if not weights or len(evidence.at) < 2:  # a head that begins at zero passes nothing on in its first step
        return
    first = max(weights, key=lambda s: _depth(evidence, s))
    for site in evidence.sites("activation"):
        if site.module_type == "Softmax" and site.shape[-1:] == (1,):
            yield _found(
                evidence,
                weights,
                "error",
                f"{site.name!r} is a softmax over one unit, which is 1 whatever comes in: no gradient comes back.",
                f"a sigmoid in place of {site.module!r}, with binary cross-entropy, or two units",
                "softmax of one",
                frontier=site,
            )
            return
    yield _found(
        evidence,
        weights,
        "error",
        f"The gradient of {listed(names(weights))} is exactly zero in each of {len(evidence.at)} recorded steps: "
        f"something behind {first.module!r} has no slope, or multiplies by zero.",
        f"look at what follows {first.module!r}: a mask of zeros, round, argmax, sign, a clamp that is always active, "
        "dead units, a weight of zero",
        "zero",
        frontier=first,
    )


def _frozen(evidence: Evidence) -> Iterator[Finding]:
    """Frozen weights that are still as torch draws them: nobody froze them for what they had learned."""
    trained = [s for s in evidence.parameters if s.trainable]
    frozen = [s for s in evidence.parameters if not s.trainable and len(s.shape) >= 2]
    if not frozen:
        return
    if not trained:
        yield _found(
            evidence,
            frozen,
            "error",
            "Every parameter is frozen (requires_grad is False): nothing can be learned.",
            "model.requires_grad_(True), or that of the layers to train",
            "frozen",
        )
        return
    random = {s.layer.weight.name for s in starts(evidence) if s.is_default}
    by_mistake = [s for s in frozen if s.name in random and not _has_adapter(s, trained)]
    if by_mistake:
        # A target or a teacher runs without gradient, and random features stand before all that is trained; but a layer
        # that passes a gradient on to trained layers below it was hardly meant to stay random.
        lowest = min(_depth(evidence, s) for s in trained)
        amid = [s for s in by_mistake if s.module in _modules_reached(evidence) and _depth(evidence, s) > lowest]
        told = amid or by_mistake
        yield _found(
            evidence,
            told,
            "warning" if amid or all(len(s.shape) < 2 for s in trained) else "note",
            f"{listed(names(told))} {'is' if len(told) == 1 else 'are'} frozen while still as torch draws it at "
            "random: it was not frozen for what it has learned.",
            f"model.get_parameter({told[0].name!r}).requires_grad_(True), or load the weights it should have",
            "frozen",
            frontier=told[0],
        )


def _modules_reached(evidence: Evidence) -> set[str]:
    return {s.module for s in evidence.sites("activation_grad") if s.name in evidence.reached}


def _has_adapter(site: Site, trained: list[Site]) -> bool:
    """A trained weight beside or below it, as LoRA's factors are."""
    parent = site.module.rpartition(".")[0]
    return any(len(s.shape) >= 2 and parent and s.module.startswith(parent + ".") for s in trained)


def _left_out(evidence: Evidence) -> Iterator[Finding]:
    """Trained parameters with a gradient that no optimizer holds, or that never move."""
    known = evidence.facts.get("optimizers")
    if not known or not evidence.training:
        return
    held = {name for one in known for group in one["groups"] for name in group["parameters"]}
    if not held:
        return
    out = [s for s in evidence.parameters if s.trainable and s.name not in held]
    state = _states(evidence)
    out = [s for s in out if state[s.name] == "flows"]
    if out:
        yield _found(
            evidence,
            out,
            "error",
            f"No optimizer holds {listed(names(out))}: the gradient arrives, and nothing uses it.",
            "give all of model.parameters() to the optimizer, after the last layer was made or replaced",
            "missing from the optimizer",
            frontier=out[0],
        )
    rates = {
        name: float(group.get("lr", np.nan)) for one in known for group in one["groups"] for name in group["parameters"]
    }
    still = [s for s in evidence.parameters if rates.get(s.name) == 0.0 and s.trainable]
    if still and not any(np.isfinite(v) and v > 0 for v in evidence.notes("lr")):
        yield _found(
            evidence, still, "error", "The learning rate is 0.", "give the optimizer a learning rate", "learning rate 0"
        )


def _states(evidence: Evidence) -> dict[str, str]:
    """By parameter, over all steps that count: flows, zero, unused or frozen."""
    zeros = dict(
        zip(
            (s.name for s in evidence.sites("weight_grad")),
            evidence.values("weight_grad", "zero_fraction").T,
            strict=True,
        )
    )
    found = {}
    for site in evidence.parameters:
        share = zeros.get(site.name)
        if not site.trainable:
            found[site.name] = "frozen"
        elif share is None or np.isnan(share).all():
            found[site.name] = "unused"
        else:
            found[site.name] = "zero" if (share[~np.isnan(share)] == 1.0).all() else "flows"
    return found


def _depth(evidence: Evidence, site: Site) -> int:
    by_module: dict[str, int] = defaultdict(int)
    for s in evidence.sites("activation"):
        by_module.setdefault(s.module, s.depth)
    return by_module.get(site.module, site.depth)


def _modules(sites: list[Site]) -> str:
    return listed(tuple(dict.fromkeys(s.module for s in sites)))


def _found(
    evidence: Evidence,
    sites: list[Site],
    severity: str,
    explanation: str,
    remedy: str,
    cause: str,
    frontier: Site | None = None,
    since: int = 0,
) -> Finding:
    return Finding(
        "no-gradient",
        severity,  # type: ignore[arg-type]
        explanation,
        remedy,
        "",
        direction="backward",
        sites=names(sites),
        steps=(since,) if since else (),
        frontier=frontier,
        value=float(len(sites)),
        unit="parameters without a gradient",
        limit=0.0,
        limit_from=f"in all of {len(evidence.at)} recorded steps",
        expected=0.0,
        causes=(cause,),
    )
