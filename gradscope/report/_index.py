"""What a report says of itself: `index.json`, the same document that `--json` prints (docs/report_json.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Picture:
    """One picture of a report: its file, its kind (the figure function's name), its title, and what it shows."""

    file: str
    kind: str
    title: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A report that has been written.

    Attributes:
        directory: where it lies, `index.json` included.
        pictures: in the order in which they are listed.
        document: what `index.json` holds: strict JSON values, `schema` 1.
    """

    directory: Path
    pictures: tuple[Picture, ...]
    document: dict[str, Any]


def write_report(directory: Path, head: dict[str, Any], pictures: list[Picture]) -> Report:
    """Write `index.json` beside pictures that already lie in the directory."""
    from gradscope.recording._sweep_json import strict
    from gradscope.report._write import save_json

    listed = [strict({"file": p.file, "kind": p.kind, "title": p.title, "data": p.data}) for p in pictures]
    document = {"schema": SCHEMA, **strict(head), "pictures": listed}
    save_json(document, directory / "index.json")
    return Report(directory, tuple(pictures), document)
