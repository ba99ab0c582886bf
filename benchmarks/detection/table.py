"""The scores, and what was confused with what, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.detection.scoring import Outcome, Score

HEAD = (
    "tool",
    "right family (first alarm)",
    "right family (any alarm)",
    "any alarm of faulty",
    "place",
    "false alarms of healthy",
)


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def of(part: int, whole: int) -> str:
    """Part of whole, with percent."""
    return f"{part} of {whole} ({100 * part / whole:.0f} %)" if whole else "–"


def scores(found: Iterable[Score]) -> str:
    """One row a tool."""
    lines = [row(HEAD), row(["---"] * len(HEAD))]
    for s in found:
        cells = [s.tool, of(s.first, s.faulty), of(s.any, s.faulty), of(s.noticed, s.faulty)]
        lines.append(row([*cells, of(s.located, s.placed), of(s.false_alarms, s.healthy)]))
    return "\n".join(lines) + "\n"


def families(tool: str, found: Sequence[Outcome]) -> str:
    """For each kind of fault: how often it was told, and what was said instead."""
    mine = [one for one in found if one.tool == tool and one.program.fault is not None]
    head = ("fault", "first", "any", "said first instead")
    lines = [row(head), row(["---"] * len(head))]
    for fault in sorted({str(one.program.fault) for one in mine}):
        of_it = [one for one in mine if one.program.fault == fault]
        instead = [one.alarms[0].family if one.alarms else "nothing" for one in of_it if not one.first]
        said = ", ".join(f"{name} × {instead.count(name)}" for name in sorted(set(instead), key=instead.count)[::-1])
        cells = [
            of(sum(one.first for one in of_it), len(of_it)),
            of(sum(one.any for one in of_it), len(of_it)),
            said or "–",
        ]
        lines.append(row([fault, *cells]))
    return "\n".join(lines) + "\n"


def mistakes(tool: str, found: Sequence[Outcome]) -> str:
    """Each run that a tool did not tell first, each healthy one that it did not leave in peace, each wrong place."""
    lines = []
    for one in (o for o in found if o.tool == tool):
        name, said = f"{one.program.name} (seed {one.seed})", ", ".join(a.family for a in one.alarms) or "nothing"
        if one.error:
            lines.append(f"- {name}: broke: {one.error}")
        elif one.program.fault is None:
            if one.alarmed:
                where = ", ".join(one.alarms[0].names[:3])
                lines.append(f"- healthy {name}: {said}, at {where or 'no place'}")
        elif not one.first:
            lines.append(f"- {name}: is {one.program.fault}; said {said}{' (told later)' if one.any else ''}")
        elif one.program.where is not None and not one.located:
            where = ", ".join(next(a for a in one.alarms if a.family in one.program.accepted).names[:3])
            lines.append(f"- {name}: starts at {one.program.where}; said {where or 'no place'}")
    return "\n".join(lines) + "\n"
