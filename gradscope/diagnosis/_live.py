"""The rules while a run goes on: each episode told once when it begins, and once when it is over.

Asking all rules takes some milliseconds. So they are asked after the first recorded steps, then ever more rarely (a
tenth of the steps so far apart), and at once where a step looks unlike those before: an entry that is not finite, or a
total gradient norm a decade beyond the largest of the last steps, which is a comparison of two numbers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gradscope.diagnosis._diagnose import judged
from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._limits import Limits
from gradscope.diagnosis._registry import RULES
from gradscope.recording import Recording

WINDOW = 100
"""Recorded steps that are looked at; what is older has no say in whether a state lasts."""

_Key = tuple[str, str | None]
"""Rule and direction."""

_EACH, _APART = 3, 25
_CLEARED_AFTER = 2


@dataclass
class _Episode:
    """What is open.

    Attributes:
        latest: as it was found last.
        told: whether the user was told when it began.
        missed: looks since then that have not found it.
    """

    latest: Finding
    told: bool = False
    missed: int = 0


class Watch:
    """Diagnoses a growing recording and tells what is new.

    Args:
        on_finding: called with a `Finding` when an episode begins, and again, `cleared` set, when it is over.
        limits: of the rules.
    """

    def __init__(self, on_finding: Callable[[Finding], Any], limits: Limits | None = None) -> None:
        self._on_finding = on_finding
        self._limits = Limits() if limits is None else limits
        self._open: dict[_Key, _Episode] = {}
        self._steps = 0
        self._next = 1
        self._norms: deque[float] = deque(maxlen=50)

    def step_recorded(self, recording: Recording, step: int, notes: Mapping[str, Any]) -> None:
        """A step was added to the recording."""
        self._steps += 1
        if self._steps >= self._next or self._is_unlike(notes):
            self.look(recording, step)
            self._next = self._steps + (1 if self._steps < _EACH else max(_APART, self._steps // 10))

    def look(self, recording: Recording, step: int) -> None:
        """Ask the rules now."""
        evidence = Evidence(recording, self._limits, WINDOW)
        found: dict[_Key, Finding] = {}
        for one in judged(evidence, list(RULES)):  # of several of one rule the worst, which comes first
            found.setdefault((one.rule, one.direction), one)
        for key, one in found.items():
            known = self._open.setdefault(key, _Episode(one))
            known.latest, known.missed = one, 0
            if not known.told and one.severity != "note":
                known.told = True
                self._on_finding(one)
        for key in [key for key in self._open if key not in found]:
            if RULES[key[0]].of_the_start and not evidence.from_the_start:
                continue  # what it reads has left the window: that it is silent says nothing
            gone = self._open[key]
            gone.missed += 1
            if gone.missed >= _CLEARED_AFTER:
                del self._open[key]
                if gone.told:
                    self._on_finding(replace(gone.latest, cleared=step))

    def _is_unlike(self, notes: Mapping[str, Any]) -> bool:
        norm = notes.get("grad_norm")
        if "nonfinite" in notes:
            return True
        if not isinstance(norm, float) or not math.isfinite(norm):
            return False
        unlike = len(self._norms) >= 10 and norm > 10**self._limits.spike_decades * max(self._norms)
        self._norms.append(norm)
        return unlike
