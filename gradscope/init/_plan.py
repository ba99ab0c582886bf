"""The table of an initialization: one row per weight, packed block and bias."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradscope.init._fans import Fans

_COLUMNS = ("parameter", "shape", "fans in, out", "followed by", "scheme", "var asked", "var got", "note")
_WIDTH = 110
_RIGHT = ("fans in, out", "var asked", "var got")


@dataclass(frozen=True)
class PlanRow:
    """What happens to one parameter, or to one block of a packed one.

    Attributes:
        parameter: its qualified name, `layers.3.weight`.
        block: the gate or projection (`forget`, `q`), empty where the parameter is one matrix.
        shape: of the parameter or block.
        fans: the true fans, None for biases and for what is left as it is.
        activation: the activation that follows, `identity` where nothing does, None where it does not matter.
        scheme: name of the scheme, `zeros` for a bias, None for what is left as it is.
        variance_asked: of the entries; None where they are not random or are left as they are.
        variance_got: population variance of the entries afterwards; None in a plan.
        note: why it is left, or what is special about it.
        asked: mean square and mean of entries that are not random, where that is known; None where `variance_asked`
            tells all.
    """

    parameter: str
    block: str
    shape: tuple[int, ...]
    fans: Fans | None = None
    activation: str | None = None
    scheme: str | None = None
    variance_asked: float | None = None
    variance_got: float | None = None
    note: str = ""
    asked: tuple[float, float] | None = None


@dataclass(frozen=True, repr=False)
class InitPlan:
    """A table of rows in the model's order, printable as text and, in a notebook, as HTML.

    Attributes:
        rows: one per weight, packed block and bias.
        source: where the following activations were found; with inputs also what `auto` made of the recommended
            variances, or why theory was not asked.
    """

    rows: tuple[PlanRow, ...]
    source: str = ""

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PlanRow:
        return self.rows[index]

    def __str__(self) -> str:
        told = [row for row in self.rows if row.scheme is not None]
        columns = _columns(told)
        names = [columns[:2], *(_cells(row, columns)[:2] for row in self.rows)]
        numbers = [columns[2:], *(_cells(row, columns)[2:] for row in told)]
        widths = [max(map(len, column)) for part in (names, numbers) for column in zip(*part, strict=True)]
        lines = [_aligned(columns, columns, widths)]
        for row in self.rows:
            cells = _cells(row, columns)
            if row.scheme is None:  # its reason stands where others have numbers: the table stays narrow
                cells = (*cells[:2], f"left: {row.note}")
            lines.append(_aligned(cells, columns, widths))
        lines.insert(1, "─" * min(max(map(len, lines)), _WIDTH))
        told_below = textwrap.wrap(f"Followed by: {self.source}.", _WIDTH) if self.source else []
        return "\n".join([*lines, *told_below])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        columns = _columns(self.rows)
        rows = [line(columns, "th"), *(line(_cells(row, columns), "td") for row in self.rows)]
        caption = f"<caption>Followed by: {html.escape(self.source)}.</caption>" if self.source else ""
        return f"<table>{caption}{''.join(rows)}</table>"


def _columns(rows: Sequence[PlanRow]) -> tuple[str, ...]:
    """The columns that say anything: a plan has no variance got, and most models need no note."""
    empty = {"var got": all(row.variance_got is None for row in rows), "note": not any(row.note for row in rows)}
    return tuple(title for title in _COLUMNS if not empty.get(title, False))


def _cells(row: PlanRow, columns: tuple[str, ...]) -> tuple[str, ...]:
    cells = {
        "parameter": f"{row.parameter}[{row.block}]" if row.block else row.parameter,
        "shape": "×".join(map(str, row.shape)) or "1",
        "fans in, out": f"{row.fans.fan_in:g}, {row.fans.fan_out:g}" if row.fans else "",
        "followed by": row.activation or "",
        "scheme": row.scheme or "–",
        "var asked": _number(row.variance_asked),
        "var got": _number(row.variance_got),
        "note": row.note,
    }
    return tuple(cells[title] for title in columns)


def _aligned(cells: tuple[str, ...], columns: tuple[str, ...], widths: list[int]) -> str:
    padded = (
        cell.rjust(width) if title in _RIGHT and len(cells) == len(columns) else cell.ljust(width)
        for cell, title, width in zip(cells, columns, widths, strict=False)
    )
    return "  ".join(padded).rstrip()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
