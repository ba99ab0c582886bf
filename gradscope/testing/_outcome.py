"""What one check came to, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gradscope.recording import Baseline, Comparison
from gradscope.recording._baseline import Spreads
from gradscope.testing._baseline_file import shown

Status = Literal["same", "different", "missing", "written", "updated", "unusable", "healthy", "unhealthy"]
PASSED: tuple[Status, ...] = ("same", "updated", "healthy")


@dataclass(frozen=True)
class Outcome:
    """One check.

    Attributes:
        status: `written` is a missing baseline that was written by a test that fails for it; `updated` one that was
            asked for by a flag.
        test: which.
        message: all that is known, in words.
        headline: the same in one sentence.
        path: of the baseline; None where none is involved.
        comparison: None where nothing was compared.
        expected, obtained: what was.
        bands: in which the numbers of several seeds were expected; None for one seed.
        finding: what the diagnosis says of the model now, one line.
    """

    status: Status
    test: str
    message: str
    headline: str
    path: Path | None = None
    comparison: Comparison | None = None
    expected: Baseline | None = None
    obtained: Baseline | None = None
    bands: Spreads | None = None
    finding: str = ""

    @property
    def passed(self) -> bool:
        """The test goes on."""
        return self.status in PASSED

    def as_dict(self) -> dict[str, Any]:
        """As strict JSON; sizes are left out, of the differences the worst five stay."""
        compared = None if self.comparison is None else self.comparison.as_dict()
        if compared is not None:
            compared["differences"] = compared["differences"][:5]
            compared["changes"] = compared["changes"][:20]
        return {
            "status": self.status,
            "test": self.test,
            "headline": self.headline,
            "baseline": None if self.path is None else shown(self.path),
            "finding": self.finding,
            "comparison": compared,
        }
