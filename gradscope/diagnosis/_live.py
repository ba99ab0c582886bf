"""The rules while a run goes on: each episode told once when it begins, and once when it is over.

Asking all rules takes some milliseconds. So they are asked after the first recorded steps, then ever more rarely (a
tenth of the steps so far apart), and at once where a step looks unlike those before, which takes a comparison of a few
numbers: an entry that is not finite, a total gradient norm a decade above or below all of the last ones, a loss that
jumps, a gradient that is all zero where it was not. What is odd is looked at again soon, since a state has to last to
be told, and for some steps unit moments are asked for, which tell whether units have died.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from gradscope.diagnosis._diagnose import judged
from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._limits import Limits
from gradscope.diagnosis._registry import RULES
from gradscope.diagnosis._rows import Rows
from gradscope.recording import Recording

WINDOW = 100
"""Recorded steps that are looked at; what is older has no say in whether a state lasts."""

_Key = tuple[str, str | None]
"""Rule and direction."""

_FIRST, _APART = (1, 2, 3, 6, 11, 21), 25
"""Behind how many recorded steps the rules are asked at first, and how far apart from then on."""

_AGAIN = (1, 2, 4, 8, 16)
"""Recorded steps behind one that is unlike those before at which the rules are asked again."""

_UNITS_AFTER = 3
"""Steps behind it for which unit moments are asked for: two in a row say that a unit stays as it is."""

_FEWEST, _LATEST = 10, 50
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
        self._looks = deque(_FIRST)
        self._norms: deque[float] = deque(maxlen=_LATEST)
        self._losses: deque[float] = deque(maxlen=_FEWEST + 1)
        self._without: deque[int] = deque(maxlen=_LATEST)
        self._odd_at: int | None = None
        self._rows: Rows | None = None

    @property
    def wants_units(self) -> bool:
        """Whether unit moments of the next step would help to say what has just happened."""
        return self._odd_at is not None and self._steps - self._odd_at < _UNITS_AFTER

    def step_recorded(self, recording: Recording, step: int, notes: Mapping[str, Any], without: int = 0) -> None:
        """A step was added to the recording, in which so many gradients of parameters were all zero."""
        self._steps += 1
        odd = self._is_unlike(notes, without)
        if odd:
            self._odd_at = self._steps
            self._looks = deque(self._steps + further for further in _AGAIN)
        if odd or self._steps >= self._looks[0]:
            while self._looks and self._looks[0] <= self._steps:
                self._looks.popleft()
            if not self._looks:
                self._looks.append(self._steps + max(_APART, self._steps // 10))
            self.look(recording, step)

    def end(self, recording: Recording) -> None:
        """The recording is complete: the rules are asked a last time.

        What is found is open still, and not told again: `diagnose` of the recording tells it.
        """
        if self._steps:
            self.look(recording, int(recording.steps[-1]))

    def look(self, recording: Recording, step: int) -> None:
        """Ask the rules now."""
        if self._rows is None or self._rows.recording is not recording:
            self._rows = Rows(recording)
        evidence = Evidence(recording, self._limits, WINDOW, self._rows)
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
            gone = self._open[key]
            if RULES[key[0]].reads_the_start(gone.latest) and not evidence.from_the_start:
                continue  # what it reads has left the window: that it is silent says nothing
            gone.missed += 1
            if gone.missed >= _CLEARED_AFTER:
                del self._open[key]
                if gone.told:
                    self._on_finding(replace(gone.latest, cleared=step))

    def _is_unlike(self, notes: Mapping[str, Any], without: int) -> bool:
        norm, loss = notes.get("grad_norm"), notes.get("loss")
        return "nonfinite" in notes or self._leaps(norm) | self._jumps(loss) | self._stops(without)

    def _stops(self, without: int) -> bool:
        """Whether more gradients are all zero than in any of the last steps."""
        unlike = len(self._without) > 1 and without > max(self._without)
        self._without.append(without)
        return unlike

    def _leaps(self, norm: object) -> bool:
        """Whether a gradient norm is a decade outside of all the last ones."""
        if not isinstance(norm, float) or not math.isfinite(norm):
            return False
        decade, known = 10**self._limits.spike_decades, self._norms
        unlike = len(known) >= _FEWEST and not min(known) / decade <= norm <= decade * max(known)
        known.append(norm)
        return unlike

    def _jumps(self, loss: object) -> bool:
        """Whether a loss rises by three times as much as it has changed from any step to the next of late."""
        if not isinstance(loss, float):
            return False
        if not math.isfinite(loss):
            return True
        known = self._losses
        changes = [abs(b - a) for a, b in pairwise(known)]
        unlike = len(changes) >= _FEWEST and loss - known[-1] > 3 * max(changes)
        known.append(loss)
        return unlike
