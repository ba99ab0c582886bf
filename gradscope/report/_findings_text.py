"""Findings for a terminal, in words for who has never seen one: what is wrong, where, why, and what to do."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradscope.diagnosis import SEVERITIES, Finding, Findings
from gradscope.recording import Recording, Signal
from gradscope.recording._profile import BAND_DECADES
from gradscope.report._words import signed

STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_MOST_SITES, _MOST_CAUSES = 4, 3
_CHANGES: dict[Signal, str] = {"activation": "the activation changes", "activation_grad": "the gradient"}
_CALLED = {"error": "ERROR", "warning": "WARNING", "note": "note"}


def findings_text(findings: Findings, recording: Recording | None = None) -> RenderableType:
    """Each finding as a block, or that there is none; then what could not be judged.

    Args:
        findings: worst first.
        recording: they were found in; its slopes are told where nothing was found.
    """
    parts: list[RenderableType] = []
    if findings:
        parts += [Text(_counts(findings), style="bold"), *(block for one in findings for block in _block(one))]
    else:
        parts.append(Text(nothing(recording), style="bold green"))
    if findings.unknown:
        parts.append(Text(not_judged(findings), style="dim"))
    return Group(*parts)


def nothing(recording: Recording | None) -> str:
    """That nothing was found, and the slopes."""
    profiles = [] if recording is None else [recording.profile(s) for s in _CHANGES if recording.recorded(s).any()]
    known = [p for p in profiles if math.isfinite(p.decades_per_layer)]
    if not known:
        return "No fault found."
    slopes = " and ".join(f"{_CHANGES[p.signal]} by {signed(p.decades_per_layer)}" for p in known)
    steep = any(abs(p.decades_per_layer) * p.layers.sum() > BAND_DECADES for p in known)
    resized = any(site.role in ("norm", "block") or "Pool" in site.module_type for p in known for site in p.sites)
    design = " Poolings, norms and branches change sizes by design." if steep and resized else ""
    return f"No fault found: {slopes} decades per layer.{design}"


def not_judged(findings: Findings) -> str:
    """The rules that could not tell, by the reason.

    >>> not_judged(Findings((), {"a": "x was not recorded", "b": "x was not recorded", "c": "too few steps"}))
    'Not judged: a and b (x was not recorded); c (too few steps).'
    """
    by_reason = defaultdict[str, list[str]](list)
    for rule, reason in findings.unknown.items():
        by_reason[reason].append(rule)
    return "Not judged: " + "; ".join(f"{_and(rules)} ({why})" for why, rules in by_reason.items()) + "."


def _and(names: list[str]) -> str:
    if len(names) > 3:
        return f"{', '.join(names[:2])} and {len(names) - 2} more"
    return " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), names[-1]])


def _counts(findings: Findings) -> str:
    """`1 error, 2 warnings`."""
    numbers = [(name, sum(one.severity == name for one in findings)) for name in SEVERITIES]
    return ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in numbers if n)


def _block(one: Finding) -> Iterator[RenderableType]:
    yield Text.assemble("\n", (_CALLED[one.severity], STYLES[one.severity]), " ", (one.rule, "bold"))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for head, text, style in _rows(one):
        grid.add_row(head, Text(text, style=style))
    yield Padding(grid, (0, 0, 0, 2), expand=False)


def _rows(one: Finding) -> Iterator[tuple[str, str, str]]:
    yield "what", one.explanation, ""
    where = _where(one)
    if where:
        yield "where", where, ""
    causes = [cause for cause in one.causes if cause not in one.explanation]
    for i, cause in enumerate(causes[:_MOST_CAUSES]):
        yield "" if i else "why", cause, ""
    if one.remedy:
        yield "what to do", one.remedy, "green"
    if one.consequences:
        yield "also seen", "; ".join(one.consequences), "dim"
    if one.reference:
        yield "read", one.reference, "dim"


def _where(one: Finding) -> str:
    """The first sick site with its type and depth, how many more there are, and since when."""
    first = one.frontier
    names = [first.name] if first is not None else list(one.sites[:_MOST_SITES])
    if not names:
        return f"since step {one.steps[0]}" if one.steps else ""
    kind = f" ({first.module_type}, depth {first.depth})" if first is not None else ""
    others = len(set(one.sites) - set(names))
    more = f" and {others} more site{'' if others == 1 else 's'}" if others else ""
    begins = "first at " if others and first is not None else ""
    return f"{begins}{', '.join(names)}{kind}{more}" + (f", since step {one.steps[0]}" if one.steps else "")
