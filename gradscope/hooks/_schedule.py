"""Which steps are recorded: each n-th, many at first and fewer later, or as many as a budget of time allows.

Ranks that merge have to record the same steps: each proposes an interval with the step that it merges, and all take
the longest, so that the budget is kept on every rank.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection
from statistics import median
from typing import Literal, Protocol

FIRST = 20
"""Steps that a budget always allows."""

_ALONE = 10
"""Steps after those that are left alone, to know what one costs."""
_WARM = 3
"""First steps whose durations say little: sites are met, memory is taken."""
_LATEST = 31
"""Durations of each kind that count."""
_ENOUGH = 5
"""Recorded steps between others, from which on the first steps say nothing more of what one costs."""
_LONGEST = 10_000


class Schedule(Protocol):
    """Says which steps are due."""

    def due(self, number: int) -> bool:
        """Whether the step of this number is recorded."""

    def began(self, number: int) -> None:
        """The step of this number begins now."""

    def aside(self, work: Callable[[], None]) -> None:
        """Do what is a part of recording, and lies within a step that is not recorded."""

    def slow(self, number: int, every: int) -> None:
        """More is taken in the step of this number, as in each so many recorded ones."""

    def proposal(self) -> int:
        """Every how many steps this rank would record one; 0 where there is nothing to agree on."""

    def agreed(self, interval: int) -> None:
        """The ranks have merged the step that was recorded last, and found this interval."""


class Each:
    """Each n-th step; without n each of the first 100, then each tenth."""

    def __init__(self, every: int | None) -> None:
        self._every = every

    def due(self, number: int) -> bool:
        """Whether the step of this number is recorded."""
        if self._every is None:
            return number < 100 or number % 10 == 0
        return number % self._every == 0

    def began(self, number: int) -> None:
        """It makes no difference when."""

    def aside(self, work: Callable[[], None]) -> None:
        """It makes no difference what it takes."""
        work()

    def slow(self, number: int, every: int) -> None:
        """It makes no difference either."""

    def proposal(self) -> int:
        """Nothing to agree on: all ranks were given the same."""
        return 0

    def agreed(self, interval: int) -> None:
        """It makes no difference."""


class Budget:
    """As often as recording keeps to its share of the time: the first 20 steps, then each k-th.

    What a recorded step costs is the difference of the medians of the latest steps with and without, and what was done
    for it aside; k is the smallest number for which that, with two standard errors, is at most the budget. At least
    every other step is left alone: it tells what a step costs without us. (The first ones, one after another, find code
    and memory in the caches: a later one costs more.)

    With several ranks, the step after a recorded one pays for the merge. It counts as a part of what that has cost, so
    at least two steps of three are left alone.

    Args:
        budget: the share of the training time, in (0, 1].
        clock: in seconds.
        together: several ranks agree on the interval, by `agreed`, after each step that is recorded.
    """

    def __init__(
        self, budget: float, clock: Callable[[], float] = time.perf_counter, *, together: bool = False
    ) -> None:
        self._budget = budget
        self._clock = clock
        self._together = together
        self._least = 3 if together else 2
        self._next: float = FIRST + _ALONE
        self._aside = self._aside_before = 0.0
        """Seconds of work for the next recorded step: within the present step, and before it."""
        self._switching: deque[float] = deque(maxlen=_LATEST)
        self._unmerged: float | None = None
        """How long the latest recorded step took, whose merge follows in the next."""
        self._taken: deque[int] = deque(maxlen=64)
        self._latest: tuple[int, float] | None = None
        self._first: deque[float] = deque(maxlen=_LATEST)
        self._with: deque[float] = deque(maxlen=_LATEST)
        self._without: deque[float] = deque(maxlen=_LATEST)
        self._slow_step, self._slow_every, self._merges_slow = -1, 1, False
        self._slow: deque[float] = deque(maxlen=_LATEST)
        """What each step in which more was taken has lasted."""

    def due(self, number: int) -> bool:
        """Whether the step of this number is recorded."""
        return number < FIRST or number >= self._next or number in self._taken

    def began(self, number: int) -> None:
        """The step of this number begins now, so the one before has ended, and been written."""
        now = self._clock()
        if self._latest is not None and self._latest[0] >= _WARM:
            before, began = self._latest
            self._lasted(before, now - began - self._aside, followed_by=number)
        self._latest = number, now
        self._aside, self._aside_before = 0.0, self._aside_before + self._aside
        if number >= self._next:
            self._taken.append(number)
            self._switching.append(self._aside_before)
            self._aside_before = 0.0
            self._next = math.inf if self._together else number + self.interval()

    def slow(self, number: int, every: int) -> None:
        """Its duration is no other recorded step's, and is spread over as many as it stands for."""
        self._slow_step, self._slow_every = number, every

    def _lasted(self, number: int, duration: float, *, followed_by: int) -> None:
        if self._merges_slow:  # what was taken there is merged here: this says nothing of either
            self._merges_slow = False
        elif number == self._slow_step:
            self._slow.append(duration)
            self._merges_slow = self._together and not self.due(followed_by)
        elif not self.due(number) and self._unmerged is not None:
            if self._without:
                self._with.append(self._unmerged + duration - median(self._without))
            self._unmerged = None
        elif not self.due(number):
            self._without.append(duration)
        elif self._together and not self.due(followed_by):
            self._unmerged = duration
        elif number < FIRST:
            self._first.append(duration)
        else:
            self._with.append(duration)

    def aside(self, work: Callable[[], None]) -> None:
        """Do what is a part of recording, and lies within a step that is not recorded."""
        began = self._clock()
        work()
        self._aside += self._clock() - began

    def proposal(self) -> int:
        """The interval that this rank would choose by itself."""
        return self.interval()

    def agreed(self, interval: int) -> None:
        """The ranks have merged the step that was recorded last, and found this interval."""
        if self._next == math.inf:
            self._next = self._taken[-1] + interval

    def interval(self) -> int:
        """Every how many steps one may be recorded, by what has been measured so far."""
        known = self._with if len(self._with) >= _ENOUGH else self._first
        if not known or not self._without:
            return _ALONE
        alone = median(self._without)
        recorded = max(median(durations) for durations in (known, self._with) if durations)
        cost = recorded - alone + 2 * math.hypot(_error(known), _error(self._without))
        cost += median(self._switching) if self._switching else 0.0
        cost += max(0.0, median(self._slow) - recorded) / self._slow_every if self._slow else 0.0
        if alone <= 0 or cost <= 0:
            return self._least
        return min(max(math.ceil(cost / (self._budget * alone) - 1e-6), self._least), _LONGEST)


def schedule(every: int | Literal["auto"] | None, budget: float, *, together: bool) -> Schedule:
    """That of the arguments of `GradScope`; `together` with other ranks."""
    return Budget(budget, together=together) if every == "auto" else Each(every)


def _error(durations: Collection[float]) -> float:
    """Standard error of their median, from their median absolute deviation (normal noise)."""
    middle = median(durations)
    deviation = 1.4826 * median(abs(d - middle) for d in durations)
    return 1.2533 * deviation / math.sqrt(len(durations))
