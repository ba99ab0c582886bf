"""The regressions that the fixture is there for are caught in three models; benchmarks/sensitivity has the table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.sensitivity import MODELS, REGRESSIONS, Recipe, run, unchanged
from gradscope.recording import compare


@pytest.mark.parametrize("model", MODELS)
def test_at_least_nineteen_of_twenty_regressions_are_caught(model: str) -> None:
    kept = run(model, Recipe(), 0)
    missed = [
        name for name, change in REGRESSIONS.items() if compare(kept, run(model, replace(Recipe(), **change), 0)).same
    ]
    assert len(REGRESSIONS) == 20
    assert len(missed) <= 1, missed


def test_nothing_fails_that_has_not_changed_whatever_the_threads() -> None:
    assert not any(unchanged(number) for number in range(12))
