"""All that was found, worst first."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from gradscope.diagnosis._finding import SEVERITIES, Finding, Severity
from gradscope.recording._sweep_json import strict

NO_STEP = "no step is recorded yet"
NONE_COUNTS = "no recorded step is finite and was not skipped"
WITHOUT_STEPS = (NO_STEP, NONE_COUNTS)
"""Why rules could not judge: what is said of a recording that has no step to judge by."""


class Findings(Sequence[Finding]):
    """Findings, worst first; of one severity in the order in which they were found.

    >>> found = Findings([Finding("b", "note", "It is so."), Finding("a", "error", "It is bad.")])
    >>> [one.rule for one in found], found.worst, bool(Findings(()))
    (['a', 'b'], 'error', False)
    """

    def __init__(self, found: Iterable[Finding], unknown: Mapping[str, str] | None = None) -> None:
        self._found = tuple(sorted(found, key=lambda one: SEVERITIES.index(one.severity)))
        self.unknown: dict[str, str] = dict(unknown or {})
        """By rule, why it could not judge: a signal that was not recorded, too few steps."""

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> Findings: ...
    def __getitem__(self, index: int | slice) -> Finding | Findings:
        return Findings(self._found[index], self.unknown) if isinstance(index, slice) else self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found)

    @property
    def worst(self) -> Severity | None:
        """The worst severity; None where nothing was found."""
        return self._found[0].severity if self._found else None

    def of(self, rule: str) -> Findings:
        """Those of one rule."""
        return Findings(one for one in self._found if one.rule == rule)

    def as_list(self) -> list[dict[str, Any]]:
        """Each as a dict of what strict JSON knows: null for NaN, `"inf"` and `"-inf"` for the infinities."""
        return [strict(one.as_dict()) for one in self._found]

    def to_json(self) -> str:
        """A list of objects, strict JSON."""
        return json.dumps(self.as_list(), ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        return "\n".join(map(str, self._found)) if self._found else self._why_nothing("nothing found")

    def _why_nothing(self, otherwise: str) -> str:
        """That nothing was found is no good news where there was nothing to look at."""
        without = next((reason for reason in self.unknown.values() if reason in WITHOUT_STEPS), None)
        return otherwise if without is None else f"nothing could be judged: {without}"

    def __repr__(self) -> str:
        return f"Findings({len(self._found)}: {', '.join(one.rule for one in self._found)})"

    def _repr_html_(self) -> str:
        unknown = f"<p>Not judged: {html.escape(', '.join(self.unknown))}</p>" if self.unknown else ""
        if not self._found:
            return f"<p>{html.escape(self._why_nothing('No fault found.'))}</p>{unknown}"
        head = "".join(f"<th {_CELL}>{name}</th>" for name in ("", "rule", "where", "what and why", "what to do"))
        rows = "".join(f"<tr>{''.join(f'<td {_CELL}>{cell}</td>' for cell in _cells(one))}</tr>" for one in self._found)
        return f"<table><tr>{head}</tr>{rows}</table>{unknown}"


_CELL = 'style="text-align: left; vertical-align: top"'  # notebooks align to the right
_COLOURS: dict[Severity, str] = {"error": "#b00020", "warning": "#9a5b00", "note": "#00618a"}


def _cells(one: Finding) -> tuple[str, ...]:
    """As HTML."""
    first = one.frontier.name if one.frontier is not None else ", ".join(one.sites[:3])
    others = len(set(one.sites) - {one.frontier.name} if one.frontier is not None else one.sites[3:])
    where = [first, *([f"and {others} more"] if others else []), *([f"since step {one.steps[0]}"] if one.steps else [])]
    why = [one.explanation, *(f"Because {cause}" for cause in one.causes if cause not in one.explanation)]
    return (
        f'<b style="color: {_COLOURS[one.severity]}">{one.severity}</b>',
        html.escape(one.rule),
        "<br>".join(map(html.escape, where)),
        "<br>".join(map(html.escape, why)),
        html.escape(one.remedy),
    )
