"""How a recording presents itself: one line, a few lines, a small table."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from gradscope.recording._sampling import FACT
from gradscope.recording._site import SIGNALS

if TYPE_CHECKING:
    from gradscope.recording._view import View


def _rows(recording: View) -> list[tuple[str, str]]:
    steps, skipped = recording.steps, int(recording.skipped.sum())
    span = f" (from {steps[0]} to {steps[-1]}{f', {skipped} skipped' if skipped else ''})" if len(steps) else ""
    counts = [(signal, len(recording.sites_of(signal))) for signal in SIGNALS]
    rows = [
        ("file", str(recording.path or "temporary")),
        ("state", "complete" if recording.complete else "growing, or its writer was killed"),
        ("steps", f"{len(steps)}{span}"),
        ("sites", ", ".join(f"{signal} {n}" for signal, n in counts if n) or "none"),
    ]
    if recording.sampling is not None:
        rows.append((FACT, recording.sampling.sentence))
    return rows + [(f"fact {key}", _shortened(str(value))) for key, value in recording.facts.items() if key != FACT]


def one_line(recording: View) -> str:
    """Size and place."""
    where = f"at {str(recording.path)!r}" if recording.path else "in a temporary database"
    return f"<Recording of {len(recording.steps)} steps × {len(recording.sites)} sites {where}>"


def text(recording: View) -> str:
    """A line each for file, state, steps, sites and facts."""
    rows = _rows(recording)
    width = max(len(name) for name, _ in rows)
    return "\n".join(["Recording", *(f"  {name:<{width}}  {value}" for name, value in rows)])


def html_table(recording: View) -> str:
    """The same as a table."""
    cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in _rows(recording))
    return f"<table><caption>Recording</caption>{cells}</table>"


def _shortened(text: str, most: int = 200) -> str:
    """A fact for reading: the parameters of an optimizer would fill pages."""
    return text if len(text) <= most else f"{text[:most]} …"
