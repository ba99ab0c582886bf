"""What the tests of a session found: lines for the terminal, Markdown for a step summary, a page for CI's artifacts.

A record is one check: `status`, `test`, `nodeid`, `headline`, `baseline`, `finding`, `comparison`, where it failed
`message` and `pictures`, and `tolerated` where its test did not fail for it (`pytest.raises`, `xfail`).
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
_PASSED = ("same", "updated", "healthy")
_WORDS = {
    "same": "as their baseline",
    "updated": "written as asked",
    "healthy": "as asserted",
    "different": "different",
    "unhealthy": "not as asserted",
    "missing": "without a baseline",
    "written": "baseline written: commit it",
    "unusable": "could not be made",
    "tolerated": "failed as their test expects",
}


def text_summary(records: Sequence[Record]) -> list[str]:
    """A line of counts, and one for each check that failed."""
    return [counts(records), *(f"{record['test']}: {record['headline']}" for record in _failed(records))]


def counts(records: Sequence[Record]) -> str:
    """How many checks came to what."""
    found = Counter("tolerated" if _is_tolerated(record) else record["status"] for record in records)
    parts = [f"{found[status]} {words}" for status, words in _WORDS.items() if found[status]]
    return f"{len(records)} check{'s' if len(records) > 1 else ''}: {', '.join(parts)}"


def markdown_summary(records: Sequence[Record]) -> str:
    """For GITHUB_STEP_SUMMARY: the counts, and a table of each check that failed."""
    lines = ["### GradScope", "", counts(records), ""]
    for record in _failed(records):
        lines += [f"**`{record['test']}`**: {_escaped(record['headline'])}", ""]
        rows = _rows(record)
        if rows:
            lines += ["| site | signal | expected | obtained | ratio |", "| --- | --- | ---: | ---: | ---: |"]
            lines += [f"| {' | '.join(map(_escaped, row))} |" for row in rows] + [""]
        if record.get("finding"):
            lines += [f"Diagnosis now: {_escaped(record['finding'])}", ""]
    return "\n".join(lines) + "\n"


def write_page(records: Sequence[Record], directory: Path) -> None:
    """`index.html` with every check that failed: its message and its pictures, which lie beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    parts = [f"<h1>GradScope</h1><p>{html.escape(counts(records))}</p>"]
    for record in _failed(records):
        parts.append(f"<h2>{html.escape(record['test'])}</h2><p>{html.escape(record['headline'])}</p>")
        parts.append(f"<pre>{html.escape(record.get('message') or '')}</pre>")
        parts += [
            f'<img src="{html.escape(file)}" alt="expected and obtained">' for file in record.get("pictures") or ()
        ]
    (directory / "index.html").write_text(f"{_HEAD}{''.join(parts)}</body></html>\n", encoding="utf-8")


_HEAD = (
    '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>GradScope</title><style>'
    "body{font-family:sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#1a1a1a}"
    "pre{background:#f5f5f5;padding:1em;overflow:auto;white-space:pre-wrap}img{max-width:100%;height:auto}"
    "</style></head><body>"
)


def _failed(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record["status"] not in _PASSED and not _is_tolerated(record)]


def _is_tolerated(record: Record) -> bool:
    return record["status"] not in _PASSED and bool(record.get("tolerated"))


def _rows(record: Record) -> list[tuple[str, ...]]:
    compared = record.get("comparison") or {}
    return [
        (one["site"] or "the model", one["signal"], *(_number(one[key]) for key in ("expected", "obtained", "ratio")))
        for one in compared.get("differences", ())[:5]
    ]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "not finite" if value is None else str(value)


def _escaped(text: str) -> str:
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
