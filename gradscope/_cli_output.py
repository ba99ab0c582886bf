"""What the commands share: the output directory, progress on stderr, text or JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gradscope.report import Report

Progress = Callable[[int, int, str], None]


class Mistake(Exception):
    """The user's mistake, in one sentence."""


@dataclass(frozen=True)
class Output:
    """Where a command writes (`out`) and what it prints: text, JSON, or with `quiet` no text."""

    out: Path
    json: bool
    quiet: bool

    def make_directory(self, directory: Path | None = None) -> None:
        """Make the directory before anything slow begins; Mistake where that may not be."""
        directory = directory or self.out
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Mistake(f"--out {directory} cannot be written: {error.strerror}") from None

    def print_document(self, document: dict[str, Any], text: str) -> None:
        """Print the JSON document, or the text in its place."""
        if self.json:
            print(json.dumps(document, ensure_ascii=False, allow_nan=False), flush=True)
        elif not self.quiet:
            print(text, flush=True)

    def print_rich(self, document: dict[str, Any], parts: Callable[[], Sequence[RenderableType]]) -> None:
        """Print the JSON document, or what is made in its place, as wide as the terminal is."""
        if self.json or self.quiet:
            self.print_document(document, "")
        else:
            from gradscope.report._terminal import console

            console().print(*parts())

    def print_report(self, report: Report, text: Callable[[], RenderableType]) -> None:
        """Print `index.json`, or the text and where the pictures are."""
        from gradscope.report._terminal import pictures_text

        self.print_rich(report.document, lambda: [text(), pictures_text(report)])

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], Progress | None]]:
        """Gives each phase of the work its callback: a bar on stderr, or None where that is no terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda phase: None
            return
        from rich import progress
        from rich.console import Console

        columns = (
            "{task.description}",
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            "{task.fields[label]}",
        )
        with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:

            def phase(name: str) -> Progress:
                task = bars.add_task(name, total=None, label="")
                return lambda done, total, label: bars.update(task, completed=done, total=total, label=label)

            yield phase
