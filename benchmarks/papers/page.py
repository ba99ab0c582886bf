"""The rows as tables in Markdown, each put between its paper's two comments in docs/papers.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.papers.row import Row, shown

HEAD = ("claim", "published", "theory", "measured here", "allowed, and why", "scaled down")


def table(rows: Iterable[Row]) -> str:
    """A Markdown table of the rows of one paper."""
    lines: list[Sequence[str]] = [HEAD, ["---"] * len(HEAD), *map(_cells, rows)]
    escaped = ([cell.replace("|", r"\|") for cell in cells] for cells in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped) + "\n"


def rewrite(page: Path, tables: Mapping[str, str]) -> None:
    """Put each table between the comments `<!-- NAME -->` and `<!-- /NAME -->` of the page.

    Raises:
        ValueError: the page has no such place.
    """
    text = page.read_text(encoding="utf-8")
    for name, new in tables.items():
        place = _place(name)
        if not place.search(text):
            raise ValueError(f"{page} has no lines <!-- {name} --> and <!-- /{name} -->: the place of the table")
        text = place.sub(lambda _, new=new: f"\n{new}\n", text)  # type: ignore[misc]
    page.write_text(text, encoding="utf-8")


def table_in(page: Path, name: str) -> str:
    """What stands at that place now; empty where there is none."""
    found = _place(name).search(page.read_text(encoding="utf-8"))
    return "" if found is None else found[0].strip()


def _place(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {re.escape(name)} -->\n).*?(?=<!-- /{re.escape(name)} -->)", re.DOTALL)


def _cells(row: Row) -> list[str]:
    sign = {"=": "±", "≤": "+", "≥": "−"}[row.relation]
    widest = row.tolerance if len(set(row.tolerance)) > 1 else row.tolerance[:1]
    bound = "" if row.relation == "=" else f"{row.relation} "
    return [
        row.claim,
        row.published,
        bound + shown(row.theory),
        shown(row.measured) + ("" if row.holds else " ✕"),
        f"{sign} {shown(widest)}: {row.because}" if any(row.tolerance) else row.because,
        row.scaled_down,
    ]
