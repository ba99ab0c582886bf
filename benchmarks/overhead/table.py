"""The results as a table in Markdown; `python -m benchmarks.overhead.table FOLDER PAGE` puts it into a page."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.overhead.result import Result, ResultFile
from benchmarks.overhead.tools import TOOLS
from benchmarks.overhead.workloads import WORKLOADS

GOALS = {
    "gradscope": (1.12, 1.08, 1.05, 1.03),
    "gradscope-histograms": (1.15, 1.08, 1.05, 1.03),
    "gradscope-tenth": (1.03, 1.03, 1.015, 1.01),
    "gradscope-idle": (1.0, 1.0, 1.0, 1.0),
    "gradscope-torch": (1.5, 1.35, 1.15, 1.07),
}
"""What was aimed at on W1 to W4."""

PLACE = re.compile(r"(?<=<!-- overhead -->\n).*?(?=<!-- /overhead -->)", re.DOTALL)
"""What stands between two comments."""


def markdown(results: ResultFile) -> str:
    """Ratio (95 % interval) of every tool, what it records, what GradScope costs besides, and the machine."""
    titles = {result.workload: result.title for result in results if result.title}
    names = [name for name in WORKLOADS if name in titles]
    parts = [
        "CPU time of a training step over that of the bare step: median (95 % interval).",
        _rows(["recorder", *names, "records"], _tools(results, names)),
        "\n".join(f"- **{name}**: {titles[name]}; bare step {_bare(results, name):.1f} ms" for name in names),
        _beside(results, names),
        _goals(),
        _notes(results),
        "Measured on " + ", ".join(f"{key} {value}" for key, value in results.machine.items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    escaped = ([cell.replace("|", r"\|") for cell in cells] for cells in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def _tools(results: ResultFile, names: Sequence[str]) -> Iterable[list[str]]:
    for tool in TOOLS.values():
        found = {name: result for name in names if (result := results.get(tool.name, name)) is not None}
        if found:
            cells = [_cell(found.get(name)) for name in names]
            yield [labelled(tool.label, found.values()), *cells, tool.records]


def labelled(label: str, results: Iterable[Result]) -> str:
    """The tool's label with the version that was measured, where it is not our own."""
    version = next((result.version for result in results if result.version), "")
    return label if not version or label.startswith(("GradScope", "nothing")) else f"{label} ({version})"


def _cell(result: Result | None) -> str:
    if result is None or result.reason is not None:
        return "–"
    figure = f"{result.ratio:.3f} ({result.low:.3f}–{result.high:.3f})"
    return figure if result.valid else f"~~{figure}~~"


def _bare(results: ResultFile, name: str) -> float:
    steps = sorted(result.bare_ms for result in results if result.workload == name and result.reason is None)
    return float(steps[len(steps) // 2])


def _beside(results: ResultFile, names: Sequence[str]) -> str:
    rows = []
    for name in names:
        result = results.get("gradscope", name)
        if result is not None and result.reason is None:
            facts = result.facts
            rows.append(
                [
                    name,
                    f"{facts['sites']:.0f}",
                    f"{result.extra_us:.0f}",
                    f"{result.extra_us / facts['sites']:.2f}",
                    f"{result.attach_us / 1e3:.1f}",
                    f"{result.detach_us / 1e3:.1f}",
                ]
            )
    if not rows:
        return ""
    head = ["GradScope, every step", "sites of all signals", "µs a step", "µs a site"]
    return _rows([*head, "attach, ms once", "close, ms once"], rows)


def _goals() -> str:
    rows = [[TOOLS[name].label, *(f"{goal:g}" for goal in goals)] for name, goals in GOALS.items()]
    return _rows(["what was aimed at", *WORKLOADS], rows)


def _notes(results: ResultFile) -> str:
    notes = [
        f"- {TOOLS[result.tool].label}, {result.workload}: no figure, {result.reason}"
        for result in results
        if result.reason is not None
    ]
    notes += [
        f"- {TOOLS[result.tool].label}, {result.workload}: struck out, the null tool gave {result.null[0]:.3f} before "
        f"and {result.null[1]:.3f} after"
        for result in results
        if result.reason is None and not result.valid
    ]
    return "\n".join(notes)


def inserted(page: str, table: str) -> str:
    """The page with the table in its place.

    Raises:
        ValueError: the page has no place for it.
    """
    if not PLACE.search(page):
        raise ValueError("the page has no lines <!-- overhead --> and <!-- /overhead -->: the place of the table")
    return PLACE.sub(lambda _: f"\n{table}\n", page)


if __name__ == "__main__":
    folder, page = map(Path, sys.argv[1:])
    page.write_text(inserted(page.read_text(), markdown(ResultFile(folder / "overhead.json"))))
