"""What a comparison of two runs found."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from gradscope.recording._baseline import Compared
from gradscope.recording._structure import Change
from gradscope.recording._sweep_json import strict

WORST = 5


@dataclass(frozen=True)
class Difference:
    """A number that is not what it was.

    Attributes:
        signal: of the site; or `gradient norm` or `loss`, of the whole model.
        site: its name; empty for the whole model.
        step: at which it is worst.
        since: the first step at which it is off.
        steps: at how many it is.
        expected: rms (of the loss its value); NaN where something was not finite.
        obtained: likewise.
        allowed: decades by which it may differ.
        decades: log10 of obtained over expected; infinite where one of them is zero, or only one is finite.
    """

    signal: Compared
    site: str
    step: int
    since: int
    steps: int
    expected: float
    obtained: float
    allowed: float
    decades: float

    @property
    def ratio(self) -> float:
        """Obtained over expected; NaN where that has no meaning."""
        if self.expected == 0.0:
            return math.inf if self.obtained else math.nan
        return self.obtained / self.expected

    @property
    def place(self) -> str:
        """Site and signal in words."""
        return f"{self.signal} of {self.site}" if self.site else str(self.signal)

    def as_dict(self) -> dict[str, Any]:
        """All of it as strict JSON."""
        return dict(strict({**self.__dict__, "ratio": self.ratio}))


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side; true where they are the same within the tolerance.

    Attributes:
        changes: of structure, in order of execution.
        differences: of sizes, worst first.
        first: the difference where it begins: weights before activations before gradients before updates, each in the
            direction it flows.
        compared: how many numbers were.
        rtol: relative tolerance of each; None where bands were given.
        notes: what the two runs do not have in common besides: the torch version, the device.
    """

    changes: tuple[Change, ...]
    differences: tuple[Difference, ...]
    first: Difference | None
    compared: int
    rtol: float | None
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Structure and all sizes agree."""
        return not self.changes and not self.differences

    def __bool__(self) -> bool:
        return self.same

    @property
    def differing(self) -> int:
        """How many numbers are off."""
        return sum(one.steps for one in self.differences)

    @property
    def worst(self) -> tuple[Difference, ...]:
        """The five worst differences."""
        return self.differences[:WORST]

    @property
    def headline(self) -> str:
        """One sentence."""
        if self.same:
            return f"the same: {self.compared} numbers within {self._tolerance}"
        parts = []
        if self.changes:
            more = f" (and {len(self.changes) - 1} more changes)" if len(self.changes) > 1 else ""
            parts.append(f"{self.changes[0].text}{more}")
        if self.first is not None:
            parts.append(
                f"{self.differing} of {self.compared} numbers differ by more than {self._tolerance}, first"
                f" {self.first.place}: {said(self.first.expected)} became {said(self.first.obtained)}{_at(self.first)}"
            )
        return "; ".join(parts)

    @property
    def _tolerance(self) -> str:
        return "the band of the seeds" if self.rtol is None else f"{self.rtol:g} relative"

    def __str__(self) -> str:
        lines = [self.headline]
        if len(self.changes) > 1:
            lines += [f"  · {change}" for change in self.changes[:20]]
            lines += [f"  · and {len(self.changes) - 20} more"] if len(self.changes) > 20 else []
        if self.differences:
            rows = [_HEAD, *(_cells(one) for one in self.worst)]
            widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
            lines += ["  " + "  ".join(_padded(row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def to_markdown(self) -> str:
        """The same for a review or a step summary."""
        lines = [f"**{'Same' if self.same else 'Different'}**: {_escaped(self.headline)}", ""]
        if self.changes:
            lines += [*(f"- {_escaped(change.text)}" for change in self.changes[:20]), ""]
        if self.differences:
            lines += [f"| {' | '.join(_HEAD)} |", "| --- | --- | ---: | ---: | ---: | ---: |"]
            lines += [f"| {' | '.join(map(_escaped, _cells(one)))} |" for one in self.worst] + [""]
        return "\n".join([*lines, *(f"Note: {_escaped(note)}" for note in self.notes)]).rstrip() + "\n"

    def as_dict(self) -> dict[str, Any]:
        """All of it as strict JSON."""
        return {
            "schema": 1,
            "kind": "comparison",
            "same": self.same,
            "headline": self.headline,
            "compared": self.compared,
            "differing": self.differing,
            "rtol": self.rtol,
            "changes": [dict(change.__dict__) for change in self.changes],
            "differences": [one.as_dict() for one in self.differences],
            "first": None if self.first is None else self.first.as_dict(),
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Strict JSON: null for NaN, `"inf"` and `"-inf"` for the infinities."""
        return json.dumps(self.as_dict(), ensure_ascii=False, allow_nan=False)


_HEAD = ("site", "signal", "expected", "obtained", "ratio", "decades")


def said(value: float) -> str:
    """A size as it is printed; what has no size says so."""
    return "not finite" if math.isnan(value) else f"{value:.4g}"


def _cells(one: Difference) -> tuple[str, ...]:
    ratio = "–" if math.isnan(one.ratio) else f"{one.ratio:.4g}"
    decades = f"{one.decades:+.4f}" if math.isfinite(one.decades) else "∞"
    return (one.site or "the model", f"{one.signal}{_at(one)}", said(one.expected), said(one.obtained), ratio, decades)


def _at(one: Difference) -> str:
    """The step whose numbers they are, where that is not the first."""
    return f" (step {one.step})" if one.step else ""


def _padded(row: tuple[str, ...], widths: list[int]) -> list[str]:
    left, right = row[:2], row[2:]
    return [
        *(cell.ljust(width) for cell, width in zip(left, widths[:2], strict=True)),
        *(cell.rjust(width) for cell, width in zip(right, widths[2:], strict=True)),
    ]


def _escaped(text: str) -> str:
    """A site may be `<root>`, or have a bar in its name."""
    return text.replace("|", "\\|").replace("<", "&lt;")
