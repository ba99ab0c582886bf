"""The rules of the diagnosis as a table, from their registry: for a terminal, and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradscope.diagnosis import RULES


def rules_text() -> RenderableType:
    """Each rule's name, and beside it what it finds, its limit and its reference."""
    table = Table.grid(padding=(0, 2, 1, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for one in RULES.values():
        lines = [Text(_plain(one.about)), Text(f"limit: {_plain(one.limit)}")]
        if one.reference:
            lines.append(Text(one.reference, style="dim"))
        table.add_row(one.name, Text("\n").join(lines))
    return Group(table, Text(f"{len(RULES)} rules", style="dim"))


def rules_document() -> dict[str, Any]:
    """The same as values of JSON."""
    rules = [
        {
            "rule": one.name,
            "finds": _plain(one.about),
            "limit": _plain(one.limit),
            "reference": one.reference,
            "needs": list(one.needs),
        }
        for one in RULES.values()
    ]
    return {"schema": 1, "kind": "rules", "rules": rules}


def _plain(text: str) -> str:
    return " ".join(text.split())
