"""`diagnose`: all rules asked of one recording, and what follows from what folded."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from gradscope.diagnosis import _rules  # noqa: F401  # registers them
from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._findings import NO_STEP, NONE_COUNTS, Findings
from gradscope.diagnosis._folding import folded
from gradscope.diagnosis._limits import Limits
from gradscope.diagnosis._registry import RULES
from gradscope.recording import SIGNALS, Recording


def diagnose(recording: Recording, limits: Limits | None = None, rules: Sequence[str] | None = None) -> Findings:
    """What is wrong in a recording, where it starts and why, worst first.

    Verdicts compare layers with each other and with theory, steps with those before, and sizes with what the dtype
    holds: a loss multiplied by a constant, a sum in place of a mean or another batch size change none of them.

    Args:
        recording: of a training run, a probe, or a prediction.
        limits: where the rules draw their lines.
        rules: names of those to ask; None asks all of `rule_names()`.

    Returns:
        One finding for one cause: what follows from it is folded into it. `Findings.unknown` says of each rule that
        could not judge why.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    if not isinstance(recording, Recording):
        raise TypeError(f"recording is of type {type(recording).__name__}; a gradscope.Recording is allowed")
    limits = Limits() if limits is None else limits
    if not isinstance(limits, Limits):
        raise TypeError(f"limits is of type {type(limits).__name__}; a gradscope.diagnosis.Limits is allowed")
    chosen = list(RULES) if rules is None else list(rules)
    for name in chosen:
        if name not in RULES:
            near = difflib.get_close_matches(str(name), RULES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"rules has {name!r}; {', '.join(RULES)} are allowed{hint}")
    return judged(Evidence(recording, limits), chosen)


def judged(evidence: Evidence, chosen: Sequence[str]) -> Findings:
    """What the chosen rules find in the evidence, folded."""
    if not len(evidence.recording.steps):
        return Findings((), dict.fromkeys(chosen, NO_STEP))
    found, unknown = [], {}
    for name in chosen:
        over_steps = "update" in RULES[name].needs or RULES[name].fewest(evidence.limits) > 1
        if over_steps and not evidence.of_a_run:
            unknown[name] = "only a training run tells"
            continue
        asked = evidence.facts.get("signals") or ()  # a signal that was, and has no site, says something by that
        lacking = [s for s in SIGNALS if s in RULES[name].needs and not evidence.has(s) and s not in asked]
        if lacking:
            unknown[name] = f"{', '.join(lacking)} was not recorded"
            continue
        if (steps := len(evidence.at)) < (fewest := RULES[name].fewest(evidence.limits)):
            unknown[name] = NONE_COUNTS
            if steps:
                unknown[name] = f"{steps} of the recorded steps are finite and were not skipped, and it needs {fewest}"
            continue
        if RULES[name].units and not evidence.unit_at.size:
            unknown[name] = "no step that counts has unit moments, which GradScope(slow=True) takes"
            continue
        found += list(RULES[name].function(evidence))
    return Findings(folded(found, evidence), unknown)


def rule_names() -> tuple[str, ...]:
    """The names of all rules, in the order in which they are asked."""
    return tuple(RULES)
