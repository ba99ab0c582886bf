"""Parameters that get no gradient: detached, unused, frozen, left out by the optimizer, or all zero."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._registry import rule
from gradscope.diagnosis._rules._parts import depth, found, states
from gradscope.diagnosis._rules._untrained import frozen, left_out
from gradscope.diagnosis._users import Users, owner
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
    yield from frozen(evidence)
    yield from left_out(evidence)


def _without(evidence: Evidence) -> Iterator[Finding]:
    state = states(evidence)
    unused = [s for s in evidence.parameters if state[s.name] == "unused"]
    zero = [s for s in evidence.parameters if state[s.name] == "zero"]
    users = Users(evidence)
    detached, never_called, elsewhere = [], [], []
    observed = {s.module: s.depth for s in evidence.sites("activation_grad") if s.name in evidence.reached}
    nearest = min(observed.values(), default=0)
    for site in unused:
        if users.place(site)[1] < nearest:  # no gradient comes to any layer before the cut
            detached.append(site)
        elif users.never_called(site):
            never_called.append(site)
        else:
            elsewhere.append(site)
    everything = bool(unused) and not any(v in ("flows", "zero") for v in state.values())
    if everything:
        yield found(
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
        last = max(detached, key=lambda s: (users.place(s)[1], users.called(s)))
        before, depth = users.place(last)
        behind = min((d, m) for m, d in observed.items() if d > depth)[1]
        yield found(
            evidence,
            detached,
            "error",
            f"The gradient ends between {before!r} and {behind!r}: what {before!r} returns is used "
            f"there, but detached (detach, no_grad, .data, numpy, an integer). {count(len(detached), 'parameter')} "
            f"below never {_verb(detached, 'change')}.",
            f"remove the detach or no_grad between {before!r} and {behind!r}",
            "detached",
            frontier=last,
        )
    if elsewhere:
        used = {owner(s) for s in evidence.parameters if state[s.name] in ("flows", "zero")}
        ran = all(users.called(s) and owner(s) not in used for s in elsewhere)
        yield found(
            evidence,
            elsewhere,
            # A bias alone may have no part in it.
            "warning"
            if any(len(s.shape) >= 2 for s in elsewhere) and not _last_of_a_row(evidence, elsewhere)
            else "note",
            f"{_modules(elsewhere)} ran, but what {_it(elsewhere)} returned does not reach the loss, or only detached."
            if ran
            else f"No gradient reaches {listed(names(elsewhere))}: not used, or in what has no part in the loss, or "
            "only detached (detach, no_grad, .data).",
            "use it with its gradient in the loss, or take it out of the model",
            "unused",
            frontier=elsewhere[0],
        )
    if never_called:
        one = len(dict.fromkeys(map(owner, never_called))) == 1
        yield found(
            evidence,
            never_called,
            "warning",
            f"{_modules(never_called)} {'is' if one else 'are'} never called in a forward pass, and no gradient "
            f"comes to {'its' if one else 'their'} parameters by another way: {count(len(never_called), 'parameter')} "
            f"never {_verb(never_called, 'change')}.",
            "call it, or take it out of the model; or, where its parameters are read by another way, without no_grad",
            "unused",
            frontier=never_called[0],
        )
    if zero:
        yield from _zero(evidence, zero)
    if not detached:
        yield from _between_calls(evidence)


def _last_of_a_row(evidence: Evidence, sites: list[Site]) -> bool:
    """Whether all belong to the last of several blocks that are built alike, the others of which have a gradient: what
    it hands on to a next one is not needed."""
    state = states(evidence)

    def place(site: Site) -> tuple[str, tuple[int, ...]]:
        return re.sub(r"\d+", "#", site.name), tuple(int(n) for n in re.findall(r"\d+", site.name))

    flows = [place(s) for s in evidence.parameters if state[s.name] == "flows"]
    return all(
        any(kind == own and others < numbers for own, others in flows)
        and not any(kind == own and others > numbers for own, others in flows)
        for kind, numbers in map(place, sites)
    )


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
        yield found(
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
    ended = [s for s, one in zip(sites, stopped.tolist(), strict=True) if one and s.trainable and len(s.shape) >= 2]
    if not ended:
        return
    first = max(ended, key=lambda s: depth(evidence, s))
    since = evidence.step(int(last[sites.index(first)]) + 1)
    yield found(
        evidence,
        ended,
        "error",
        f"Up to step {since - 1} a gradient came to {listed(names(ended))}, and none has since: something behind "
        f"{owner(first)!r} is detached from then on, or multiplies by zero.",
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
    first = max(weights, key=lambda s: depth(evidence, s))
    for site in evidence.sites("activation"):
        if site.module_type == "Softmax" and site.shape[-1:] == (1,):
            yield found(
                evidence,
                weights,
                "error",
                f"{site.name!r} is a softmax over one unit, which is 1 whatever comes in: no gradient comes back.",
                f"a sigmoid in place of {site.module!r}, with binary cross-entropy, or two units",
                "softmax of one",
                frontier=site,
            )
            return
    yield found(
        evidence,
        weights,
        "error",
        f"The gradient of {listed(names(weights))} is exactly zero in each of {len(evidence.at)} recorded steps: "
        f"something behind {owner(first)!r} has no slope, or multiplies by zero.",
        f"look at what follows {owner(first)!r}: a mask of zeros, round, argmax, sign, a clamp that is always active, "
        "dead units, a weight of zero",
        "zero",
        frontier=first,
    )


def _modules(sites: list[Site]) -> str:
    return listed(tuple(dict.fromkeys(map(owner, sites))))


def _it(sites: list[Site]) -> str:
    return "it" if len(set(map(owner, sites))) == 1 else "they"


def _verb(sites: list[Site], plural: str) -> str:
    return f"{plural}s" if len(sites) == 1 else plural
