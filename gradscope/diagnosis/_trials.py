"""Remedies that were tried: each beside the model as it is, and what came of it. No torch."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from gradscope.diagnosis._condition import Condition
from gradscope.diagnosis._finding import Finding


@dataclass(frozen=True)
class Trial:
    """One remedy, for one finding.

    Attributes:
        remedy: its name.
        rule: of the finding for which it was tried.
        code: the lines that do exactly what was tried; empty where it is advice.
        applied: whether it was tried on a copy; False for advice, which nobody can carry out but the author.
        advice: what to do, where it was not applied.
        before: the model as it is.
        after: the copy with the remedy, trained on the same batches from the same random state; None where it was not
            applied, or failed.
        helped: the finding is gone or clearly less, nothing worse came up, and the loss is lower by more than the
            noise of the steps.
        error: why it could not be tried to the end.
        changes: `model`, `optimizer` or `loop`: what has to be changed.
        invasive: how much of the model's own it takes away: 0 rates and data, 1 first weights, 2 modules.
    """

    remedy: str
    rule: str
    code: tuple[str, ...]
    applied: bool
    advice: str
    before: Condition
    after: Condition | None
    helped: bool
    error: str = ""
    changes: str = "model"
    invasive: int = 0
    change: Callable[[Any], None] | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON knows it."""
        found = {key: value for key, value in self.__dict__.items() if key not in ("change", "before", "after")}
        after = None if self.after is None else self.after.as_dict()
        return {**found, "code": list(self.code), "before": self.before.as_dict(), "after": after}

    def __str__(self) -> str:
        if not self.applied:
            return f"{self.remedy}: {self.error or self.advice}"
        verdict = "helped" if self.helped else "did not help"
        return "\n".join([f"{self.remedy} for {self.rule}: {verdict}", *(f"    {line}" for line in self.code)])


@dataclass(frozen=True)
class Trials(Sequence[Trial]):
    """What was tried, best first; advice that nobody can try for you stands last.

    Attributes:
        before: the model as it is.
        steps: of training, in each trial.
        trials: those that helped by the loss they end with, of equally good ones the least invasive first.
    """

    before: Condition
    steps: int
    trials: tuple[Trial, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Trial: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Trial, ...]: ...
    def __getitem__(self, index: int | slice) -> Trial | tuple[Trial, ...]:
        return self.trials[index]

    def __len__(self) -> int:
        return len(self.trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

    @property
    def healthy(self) -> bool:
        """Nothing was found, so nothing was tried."""
        return not self.before.findings and not self.trials

    @property
    def best(self) -> Trial | None:
        """The first that helped; None where none did."""
        return next((one for one in self.trials if one.helped), None)

    @property
    def none_helped(self) -> bool:
        """Something was found, and nothing that was tried helped."""
        return not self.healthy and self.best is None

    @property
    def advice(self) -> tuple[Trial, ...]:
        """What was not applied."""
        return tuple(one for one in self.trials if not one.applied and not one.error)

    def to_json(self) -> str:
        """An object with `before`, `steps`, `helped` and `trials`; what is not finite is null."""
        best = None if self.best is None else self.best.remedy
        found = {"before": self.before.as_dict(), "steps": self.steps, "best": best}
        return json.dumps(found | {"trials": [one.as_dict() for one in self.trials]}, ensure_ascii=False)

    @property
    def verdict(self) -> str:
        """In a sentence."""
        if self.healthy:
            return f"Nothing was found in {self.steps} steps: the model is healthy."
        tried = sum(one.applied for one in self.trials)
        rules = ", ".join(dict.fromkeys(_rules(self.before.findings))) or "the findings given"
        if not tried:
            return f"For {rules} there is no remedy that could be tried."
        if self.best is None:
            return f"None of the {tried} remedies tried helped against {rules}."
        helped = sum(one.helped for one in self.trials)
        return f"Of {tried} remedies tried against {rules}, {helped} helped over {self.steps} steps."

    def __str__(self) -> str:
        lines = [self.verdict]
        if any(one.applied for one in self.trials):
            lines += ["", *_table(self)]
        if self.best is not None:
            lines += ["", f"{self.best.remedy}:", *(f"    {line}" for line in self.best.code)]
        told = dict.fromkeys(f"Not tried, for {one.rule}: {one.advice}" for one in self.advice)
        failed = [f"{one.remedy} failed: {one.error}" for one in self.trials if one.error]
        return "\n".join([*lines, *([""] if told or failed else []), *told, *failed])

    def _repr_html_(self) -> str:
        head, *rows = _rows(self)
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        said = "".join(f"<p>{html.escape(one.advice)}</p>" for one in self.advice)
        code = "" if self.best is None else "<pre>" + html.escape("\n".join(self.best.code)) + "</pre>"
        return f"<p>{html.escape(self.verdict)}</p><table><tr>{cells}</tr>{body}</table>{code}{said}"


def _rules(findings: Sequence[Finding]) -> list[str]:
    return [one.rule for one in findings]


_HEAD = ("", "findings left", "forward", "backward", "lost", "from", "dead", "loss", "")


def _rows(trials: Trials) -> list[tuple[str, ...]]:
    found = [_HEAD, ("as it is", *_cells(trials.before), "")]
    for one in trials:
        if one.after is not None:
            found.append((one.remedy, *_cells(one.after), "helped" if one.helped else ""))
        elif one.error:
            found.append((one.remedy, *[""] * 7, "failed"))
    return found


def _cells(one: Condition) -> tuple[str, ...]:
    left = ", ".join(dict.fromkeys(_rules(one.findings))) or "none"
    dead = "" if math.isnan(one.dead) else f"{one.dead:.0%}"
    last = f"{one.last_loss:.3g}" if one.finite else "not finite"
    slopes = tuple("" if math.isnan(slope) else f"{slope:+.2f}" for slope in (one.forward, one.backward))
    return left, *slopes, f"{one.lost:.1f}", one.frontier or "", dead, f"{one.first_loss:.3g} → {last}"


def _table(trials: Trials) -> list[str]:
    rows = _rows(trials)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "─" * max(map(len, lines)))
    lines.append("Forward and backward in decades per layer, lost in decades, dead as the share of the worst layer.")
    return lines
