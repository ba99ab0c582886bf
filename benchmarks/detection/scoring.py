"""What a tool's alarms are worth on a program of which the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.detection.alarm import Alarm
from tests.faults import Program


@dataclass(frozen=True)
class Outcome:
    """What one tool said of one run.

    Attributes:
        error: what the tool raised instead of an answer, empty where it answered.
    """

    program: Program
    seed: int
    tool: str
    alarms: tuple[Alarm, ...]
    error: str = ""

    @property
    def first(self) -> bool:
        """The first alarm names the fault."""
        return bool(self.alarms) and self.alarms[0].family in self.program.accepted

    @property
    def any(self) -> bool:
        """Some alarm does."""
        return any(alarm.family in self.program.accepted for alarm in self.alarms)

    @property
    def alarmed(self) -> bool:
        """There is an alarm at all."""
        return bool(self.alarms)

    @property
    def located(self) -> bool:
        """The first alarm that names the fault points, first of all, at where it starts."""
        right = next((alarm for alarm in self.alarms if alarm.family in self.program.accepted), None)
        return right is not None and any(map(self.program.is_where, right.names[:3]))


@dataclass(frozen=True)
class Score:
    """Counts over some outcomes of one tool."""

    tool: str
    faulty: int
    first: int
    any: int
    noticed: int
    placed: int
    located: int
    healthy: int
    false_alarms: int
    errors: int

    @staticmethod
    def of(tool: str, outcomes: Sequence[Outcome]) -> Score:
        """Count them."""
        mine = [one for one in outcomes if one.tool == tool]
        faulty = [one for one in mine if one.program.fault is not None]
        healthy = [one for one in mine if one.program.fault is None]
        placed = [one for one in faulty if one.program.where is not None]
        return Score(
            tool,
            len(faulty),
            sum(one.first for one in faulty),
            sum(one.any for one in faulty),
            sum(one.alarmed for one in faulty),
            len(placed),
            sum(one.located for one in placed),
            len(healthy),
            sum(one.alarmed for one in healthy),
            sum(bool(one.error) for one in mine),
        )
