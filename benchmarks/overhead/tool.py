"""What a tool is to the benchmark: started once in a process, then attached and detached, block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from benchmarks.overhead.workloads import Workload


def nothing(*_: object) -> None:
    """What a tool does where it has nothing to do."""


@dataclass(frozen=True)
class Session:
    """A tool while it is attached: what the training loop calls for it, and how it comes off again.

    `facts` are numbers about what was recorded, asked for once it is off.
    """

    detach: Callable[[], None] = nothing
    after_backward: Callable[[Tensor], None] = nothing
    after_step: Callable[[Tensor], None] = nothing
    facts: Callable[[], Mapping[str, float]] = dict


@dataclass(frozen=True)
class Tool:
    """One row of the table.

    Args:
        name: what it is called on the command line.
        label: what it is called in the table.
        records: what it records, in a few words.
        start: called once with the workload and an empty folder; imports the tool and returns what attaches it.
        package: the distribution whose version the table gives.
        period: a measured block holds a multiple of this many steps.
        warm: steps after attaching that are not measured (first calls, sites that are registered).
        environment: variables that its process has.
    """

    name: str
    label: str
    records: str
    start: Callable[[Workload, Path], Callable[[], Session]]
    package: str
    period: int = 1
    warm: int = 2
    environment: Mapping[str, str] = field(default_factory=dict)


class Unusable(Exception):
    """A tool that does not work on a workload, with its reason."""
