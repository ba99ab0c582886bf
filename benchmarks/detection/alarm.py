"""What a tool says of one recording, in the words of the corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gradscope.recording import Recording


@dataclass(frozen=True)
class Alarm:
    """One alarm.

    Attributes:
        family: which kind of fault it names, one of `tests.faults.FAMILIES`.
        names: sites or parameters that it points at, the first of them first.
        step: at which step it was raised first.
    """

    family: str
    names: tuple[str, ...] = ()
    step: int = 0


Tool = Callable[[Recording], tuple[Alarm, ...]]


def families(alarms: Iterable[Alarm]) -> frozenset[str]:
    """The kinds of fault that were named."""
    return frozenset(alarm.family for alarm in alarms)


def in_order(alarms: Iterable[Alarm | None]) -> tuple[Alarm, ...]:
    """By the step at which they were raised; those of one step in the tool's own order."""
    return tuple(sorted((a for a in alarms if a is not None), key=lambda a: a.step))
