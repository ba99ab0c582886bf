"""One diagnosis."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gradscope.recording import Site

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""From the worst: training will fail, will suffer, is unlike what is usual."""

Direction = Literal["forward", "backward", "both"]


@dataclass(frozen=True)
class Finding:
    """What one rule has found, once for one cause.

    Attributes:
        rule: its name.
        severity: `error`, `warning` or `note`.
        explanation: two plain sentences.
        remedy: what to do, the exact line where there is one.
        reference: paper, equation, or thread.
        direction: which way the signal suffers; None where that is not it.
        sites: names of the sites or parameters, in the order of the signal.
        steps: when, in steps; empty where it is not over steps.
        frontier: the first sick site in the direction the signal flows.
        value: the measured number.
        unit: of `value`, `limit` and `expected`.
        limit: beyond which it is a finding.
        limit_from: how that was derived.
        expected: what theory says.
        causes: from the likeliest, each with its evidence.
        cleared: the step from which it is no more, told by a run that is watched (`on_finding`); None while it lasts.
        consequences: what follows from it and was folded into it: rule, place and step.
    """

    rule: str
    severity: Severity
    explanation: str
    remedy: str = ""
    reference: str = ""
    direction: Direction | None = None
    sites: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    frontier: Site | None = None
    value: float | None = None
    unit: str = ""
    limit: float | None = None
    limit_from: str = ""
    expected: float | None = None
    causes: tuple[str, ...] = ()
    consequences: tuple[str, ...] = ()
    cleared: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON knows it; the frontier by its name."""
        found = {**self.__dict__, "frontier": None if self.frontier is None else self.frontier.name}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}

    def __str__(self) -> str:
        lines = [f"{self.severity}: {self.rule}{_where(self.sites)}", *_indented(self.explanation)]
        lines += [line for cause in self.causes for line in _indented(f"because {cause}")]
        if self.consequences:
            lines += _indented(f"with it came {'; '.join(self.consequences)}")
        if self.remedy:
            lines.append(f"  → {self.remedy}")
        if self.reference:
            lines.append(f"  ({self.reference})")
        return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="  ")


def _where(sites: tuple[str, ...], shown: int = 3) -> str:
    if not sites:
        return ""
    more = f" and {len(sites) - shown} more" if len(sites) > shown else ""
    return f" at {', '.join(sites[:shown])}{more}"
