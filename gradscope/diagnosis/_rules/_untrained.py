"""Parameters that are not trained though they might: frozen at random, held by no optimizer, at a rate of zero."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._learning import thrives
from gradscope.diagnosis._rules._parts import depth, found, states
from gradscope.diagnosis._start import starts
from gradscope.diagnosis._words import listed, names
from gradscope.recording import Site


def frozen(evidence: Evidence) -> Iterator[Finding]:
    """Frozen weights that are still as torch draws them: nobody froze them for what they had learned."""
    trained = [s for s in evidence.parameters if s.trainable]
    frozen = [s for s in evidence.parameters if not s.trainable and len(s.shape) >= 2]
    if not frozen:
        return
    if not trained:
        yield found(
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
        lowest = min(depth(evidence, s) for s in trained)
        amid = [s for s in by_mistake if s.module in _modules_reached(evidence) and depth(evidence, s) > lowest]
        told = amid or by_mistake
        yield found(
            evidence,
            told,
            "warning" if (amid or all(len(s.shape) < 2 for s in trained)) and not thrives(evidence) else "note",
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


def left_out(evidence: Evidence) -> Iterator[Finding]:
    """Trained parameters with a gradient that no optimizer holds, or that never move."""
    known = evidence.facts.get("optimizers")
    if not known or not evidence.training:
        return
    held = {name for one in known for group in one["groups"] for name in group["parameters"]}
    if not held:
        return
    out = [s for s in evidence.parameters if s.trainable and s.name not in held]
    state = states(evidence)
    out = [s for s in out if state[s.name] == "flows"]
    if out:
        yield found(
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
        yield found(
            evidence, still, "error", "The learning rate is 0.", "give the optimizer a learning rate", "learning rate 0"
        )
