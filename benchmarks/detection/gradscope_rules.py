"""GradScope's own rules: findings of severity error and warning, worst first."""

from __future__ import annotations

from benchmarks.detection.alarm import Alarm
from gradscope.recording import Recording


def gradscope(recording: Recording) -> tuple[Alarm, ...]:
    """Every finding that is more than a note, in the order of `diagnose`.

    Raises:
        ImportError: this gradscope has no `diagnose`.
    """
    from gradscope.diagnosis import diagnose  # type: ignore[attr-defined, unused-ignore]

    found = []
    for one in diagnose(recording):
        if one.severity in ("error", "warning"):
            frontier = () if one.frontier is None else (one.frontier.name, one.frontier.module)
            found.append(Alarm(one.rule, (*frontier, *one.sites), min(one.steps, default=0)))
    return tuple(found)
