"""What is kept of one tool on one workload, and the file of all of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.overhead.machine import machine
from benchmarks.overhead.measuring import TOLERANCE


@dataclass(frozen=True)
class Result:
    """One cell of the table.

    Args:
        ratio: median over the rounds of CPU time with the tool / without; `low` and `high` are its 95 % interval.
        null: the same of the null tool, before and after.
        bare_ms, extra_us: CPU time of a bare step, and what the tool adds to it.
        attach_us, detach_us: CPU time once, outside the ratio.
        steps: measured steps of a block.
        facts: what the tool told about what it recorded.
        load: the machine's load average (1 minute) before.
        reason: why there is no figure; None where there is one.
    """

    tool: str
    workload: str
    title: str = ""
    version: str = ""
    ratio: float = 0.0
    low: float = 0.0
    high: float = 0.0
    ratios: list[float] = field(default_factory=list)
    null: tuple[float, float] = (1.0, 1.0)
    bare_ms: float = 0.0
    extra_us: float = 0.0
    attach_us: float = 0.0
    detach_us: float = 0.0
    steps: int = 0
    facts: dict[str, float] = field(default_factory=dict)
    load: float = 0.0
    reason: str | None = None

    @property
    def valid(self) -> bool:
        """Whether the null tool's ratio was near enough to 1, before and after: 0.015, or a tenth of the cost found."""
        near = max(TOLERANCE, 0.1 * abs(self.ratio - 1))
        return self.reason is None and all(abs(ratio - 1) <= near for ratio in self.null)

    def summary(self) -> str:
        """One line for a terminal."""
        if self.reason is not None:
            return f"{self.tool}: no figure, {self.reason}"
        doubt = "" if self.valid else " INVALID"
        nulls = f"A/A {self.null[0]:.3f} {self.null[1]:.3f}"
        return f"{self.tool}: {self.ratio:.3f} ({self.low:.3f}–{self.high:.3f}), {nulls}{doubt}, {self.bare_ms:.1f} ms"

    @classmethod
    def skipped(cls, tool: str, workload: str, reason: str) -> Result:
        """No figure, and why."""
        return cls(tool, workload, reason=reason.strip().splitlines()[0])


def read_result(text: str) -> Result:
    """What a worker wrote."""
    return _result(json.loads(text))


def _result(fields: dict[str, Any]) -> Result:
    return Result(**{**fields, "null": tuple(fields["null"])})


class ResultFile:
    """All results of one machine, as JSON; one measured again takes the place of its former self."""

    def __init__(self, path: Path) -> None:
        """Open or begin the file.

        Raises:
            ValueError: it holds another machine's figures, which do not belong in one table.
        """
        self.path = path
        self.machine = machine()
        self._results: dict[tuple[str, str], Result] = {}
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["machine"] != self.machine:
                raise ValueError(f"{path} holds figures of {kept['machine']}, and this is {self.machine}")
            for fields in kept["results"]:
                self._put(_result(fields))

    def _put(self, result: Result) -> None:
        self._results[result.tool, result.workload] = result

    def add(self, result: Result) -> None:
        """Put it in and save."""
        self._put(result)
        content = {"machine": self.machine, "results": [dataclasses.asdict(kept) for kept in self]}
        self.path.write_text(json.dumps(content, indent=1))

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results.values())

    def get(self, tool: str, workload: str) -> Result | None:
        """The result of one tool on one workload."""
        return self._results.get((tool, workload))


def version(package: str) -> str:
    """The installed version of a distribution, or nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
