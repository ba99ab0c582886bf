"""Whether a remedy helped, and which of those that did comes first. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradscope.diagnosis._condition import Condition
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._trials import Trial

LESS = 0.5
"""A finding is clearly less where at most this share of what it was beyond its limit is left."""

AS_GOOD, ALIKE = 0.1, 0.2
"""Losses that differ by less than these shares, of what the best one won and of the best one, are equally good."""


def room(start: float, best: float) -> float:
    """By how much a loss may be above the best one and be as good, after so few steps."""
    won = AS_GOOD * (start - best) if math.isfinite(start) and start > best else 0.0
    return min(won, ALIKE * abs(best))


def has_helped(finding: Finding, before: Condition, after: Condition) -> bool:
    """The finding gone or clearly less, no new error, and a loss lower by more than the noise.

    A finding that does not show in these steps cannot be seen to go; one that is folded into another is still there.
    And what ends no lower than it began has learned nothing, unless it was the model as it is that went up.
    """
    if not after.finite or _errors(after) > _errors(before) or not _shows(finding.rule, before):
        return False
    same = [one for one in after.findings if one.rule == finding.rule]
    if not all(_less(finding, one) for one in same) or (not same and _shows(finding.rule, after)):
        return False
    return _is_lower(before, after)


def _is_lower(before: Condition, after: Condition) -> bool:
    if before.last_loss > before.first_loss + after.noise:
        # How far a run strays that goes up is no measure for one that does not; a trained model may have little to win.
        return after.last_loss <= min(before.first_loss, before.last_loss - after.noise)
    noise = max(before.noise, after.noise)
    starts = [loss for loss in (before.first_loss, after.first_loss) if math.isfinite(loss)]
    return after.last_loss < before.last_loss - noise and all(after.last_loss < one - after.noise for one in starts)


def _shows(rule: str, one: Condition) -> bool:
    """Whether it was found, by itself or as what follows from another, or is given as its cause."""
    told = [text for found in one.findings for text in (found.rule, *found.consequences, *found.causes)]
    return any(text == rule or text.startswith((f"{rule} at", f"{rule},", f"{rule}:")) for text in told)


def _errors(one: Condition) -> int:
    return sum(finding.severity == "error" for finding in one.findings)


def _less(before: Finding, after: Finding) -> bool:
    return _beyond(after) <= LESS * _beyond(before)


def _beyond(one: Finding) -> float:
    """How many times beyond its limit, less one; either way, since some values are too small."""
    if not one.value or not one.limit or not math.isfinite(one.value):
        return 1.0
    ratio = abs(one.value / one.limit)
    return max(ratio, 1 / ratio) - 1


def ranked(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Best first.

    Those that helped by their loss; those as good as the best one (`room`) by the findings left, then the least
    invasive first. Then those that did not help, those that failed, and advice.
    """
    helped = [one for one in trials if one.helped and one.after is not None]
    first = min(helped, key=_loss, default=None)
    best = math.inf if first is None else _loss(first)
    start = math.nan if first is None or first.after is None else first.after.first_loss

    def key(one: Trial) -> tuple[float, ...]:
        if one.helped and one.after is not None:
            good = _loss(one) <= best + room(start, best)
            left = float(len(one.after.findings))
            return (0, 0, left, one.invasive, _loss(one)) if good else (0, 1, _loss(one))
        if one.after is not None:
            return (1, _loss(one))
        return (2,) if one.error else (3,)

    return tuple(sorted(trials, key=key))


def _loss(one: Trial) -> float:
    return math.inf if one.after is None else one.after.last_loss
