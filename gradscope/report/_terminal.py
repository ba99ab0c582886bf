"""What a report prints: tables and findings for a terminal, by rich; plain where colour is not allowed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradscope import activations
from gradscope.recording import SweepCell, SweepResult
from gradscope.report._activation_words import sentences
from gradscope.report._curves import DIRECTIONS, Direction
from gradscope.report._index import Report
from gradscope.report._passage import passage
from gradscope.report._words import signed

PLAIN_WIDTH = 100
"""Columns of a line where the output is no terminal."""
_WORST = 5


def console(*, stderr: bool = False) -> Console:
    """Rich's console, which honours NO_COLOR; a pipe or a file gets lines of a fixed width."""
    found = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH)


def sweep_text(result: SweepResult) -> RenderableType:
    """Decades per layer of every pair, forward and backward, and the findings in words."""
    parts: list[RenderableType] = []
    shapes = list(dict.fromkeys((cell.depth, cell.width) for cell in result.cells))
    for depth, width in shapes:
        cells = [cell for cell in result.cells if (cell.depth, cell.width) == (depth, width)]
        where = f"{depth} layers of {width}" if len(shapes) > 1 else ""
        for direction in DIRECTIONS:
            title = f"{direction.capitalize()}: decades per layer" + (f", {where}" if where else "")
            parts += [Text(title, style="bold"), _grid(cells, direction), Text()]
    marks = "* recommended for the activation    ✕ leaves float32: the slope is over the layers it holds"
    parts.append(Text(marks, style="dim"))
    return Group(*parts, *_findings(result.cells))


def _grid(cells: Sequence[SweepCell], direction: Direction) -> Table:
    inits = list(dict.fromkeys(c.init for c in cells))
    names = list(dict.fromkeys(c.activation for c in cells))
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in names:
        table.add_column(name.replace("_", "\n"), justify="right", vertical="bottom")
    by_pair = {(c.init, c.activation): c for c in cells}
    for init in inits:
        row = [by_pair.get((init, name)) for name in names]
        table.add_row(init, *(_entry(cell, direction) if cell else Text("") for cell in row))
    return table


def _entry(cell: SweepCell, direction: Direction) -> Text:
    slope = cell.forward_decades if direction == "forward" else cell.backward_decades
    dead = cell.layers_alive(direction).dies_at is not None
    mark = "*" if activations.get(cell.activation).scheme == cell.init else " "
    return Text(f"{signed(slope, 2)}{'✕' if dead else ''}{mark}", style=_colour(slope, dead, cell.depth))


def _colour(slope: float, dead: bool, depth: int) -> str:
    if not dead and abs(slope) * (depth - 1) < 1:  # one decade in all: the healthy band
        return "green"
    return "bold red" if not slope < 0 else "bold blue"


def _findings(cells: Sequence[SweepCell]) -> Iterator[RenderableType]:
    sick = [c for c in cells if activations.get(c.activation).scheme == c.init and _leaves(c)]
    yield from _list("Worst pairs", _worst(cells))
    yield from _list("Out of the healthy band even with the recommended scheme", sick)
    if sick:
        advice = (
            "What helps there is more than initial weights: a norm layer, residual connections, another activation."
        )
        yield Text(advice, style="dim")


def _list(title: str, cells: Sequence[SweepCell]) -> Iterator[RenderableType]:
    if not cells:
        return
    yield Text(f"\n{title}", style="bold")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for cell in cells:
        table.add_row(_pair(cell), *(cell.sentence(direction) for direction in DIRECTIONS))
    yield table


def _pair(cell: SweepCell) -> str:
    return f"{cell.init} · {cell.activation}"


def _badness(cell: SweepCell) -> float:
    """Decades per layer of the worse direction; infinite where there is no slope."""
    slopes = (cell.forward_decades, cell.backward_decades)
    return max(abs(slope) if math.isfinite(slope) else math.inf for slope in slopes)


def _leaves(cell: SweepCell) -> bool:
    return any(passage(cell, direction).frontier is not None for direction in DIRECTIONS)


def _worst(cells: Sequence[SweepCell]) -> list[SweepCell]:
    """The worst pairs that leave the healthy band, each init and each activation at most once."""
    chosen: list[SweepCell] = []
    for cell in sorted(cells, key=_badness, reverse=True):
        new = all(cell.init != c.init and cell.activation != c.activation for c in chosen)
        if new and _leaves(cell) and len(chosen) < _WORST:
            chosen.append(cell)
    return chosen


def activation_text(names: Sequence[str], *, cards: bool = False) -> RenderableType:
    """Each activation's sentences, and the card of each elementwise one if asked for."""
    rows = [activations.get(name) for name in names]
    parts = [
        Text.assemble((row.name, "bold"), f"  (recommended weights: {row.scheme})\n", " ".join(sentences(row)))
        for row in rows
    ]
    shown: list[RenderableType] = []
    for part, row in zip(parts, rows, strict=True):
        card = _card_text(row) if cards and row.elementwise else []
        shown += [part, *card, Text()] if card else [Text("\n").join([part, Text("")])]
    return Group(*shown)


def _card_text(row: activations.Activation) -> list[RenderableType]:
    """The card's table, and its advice in sentences."""
    from gradscope.theory import card

    found = card(row)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for line in str(found).splitlines()[1:]:
        if line.startswith("  "):
            left, _, right = line.strip().partition("  ")
            table.add_row(Text(left), Text(right.strip()))
    return [table, *map(Text, found.advice)]


def pictures_text(report: Report) -> Text:
    """Where the pictures are."""
    count = len(report.pictures)
    start = f"; start with {report.directory / report.pictures[0].file}" if report.pictures else ""
    return Text(f"\n{count} picture{'' if count == 1 else 's'} and index.json in {report.directory}/{start}")
