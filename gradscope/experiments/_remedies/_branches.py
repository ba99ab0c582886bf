"""Residual branches that begin small, or as nothing."""

from __future__ import annotations

from gradscope.experiments._remedies._registry import Case, Change, remedy
from gradscope.experiments._remedies._weights import DEPTH, drawn
from gradscope.init._initialize import setting_of

_RULES = (*DEPTH, "init-mismatch", "collapsed-batch", "update-too-large", "non-finite", "dtype-overflow",
          "output-pairing")  # fmt: skip


def _has_branches(case: Case) -> bool:
    return bool(setting_of(case.patient.model, None, case.inputs).program.branches)


@remedy("residual branches × 1/√L", rules=_RULES, causes=("residual", "branch"), invasive=1)
def scaled_branches(case: Case) -> Change | None:
    """The last weight of each of L residual branches by 1/√L smaller."""
    return drawn(case, "scaled_branches", "'scaled_branches'") if _has_branches(case) else None


@remedy("residual branches from 0", rules=_RULES, causes=("residual", "branch"), invasive=1)
def zero_branches(case: Case) -> Change | None:
    """The last weight of each residual branch 0, so that any depth begins as the identity."""
    return drawn(case, "zero_branches", "'zero_branches'") if _has_branches(case) else None
