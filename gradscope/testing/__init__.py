"""Assertions about a model for your own tests, and baselines beside them; the pytest fixture is `gradient_regression`.

Lazy: torch is imported when one is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradscope.testing._baseline_file import BaselineError, load_baseline, save_baseline
    from gradscope.testing._check import NotDeterministicError
    from gradscope.testing._healthy import assert_healthy
    from gradscope.testing._match import TheoryMatch
    from gradscope.testing._policy import Policy
    from gradscope.testing._propagates import assert_no_dead_units, assert_signal_propagates
    from gradscope.testing._regression import GradientRegression
    from gradscope.testing._scale import assert_scale
    from gradscope.testing._theory import assert_matches_theory

__all__ = [
    "BaselineError",
    "GradientRegression",
    "NotDeterministicError",
    "Policy",
    "TheoryMatch",
    "assert_healthy",
    "assert_matches_theory",
    "assert_no_dead_units",
    "assert_scale",
    "assert_signal_propagates",
    "load_baseline",
    "save_baseline",
]

_FILES = {
    "BaselineError": "_baseline_file",
    "GradientRegression": "_regression",
    "NotDeterministicError": "_check",
    "Policy": "_policy",
    "TheoryMatch": "_match",
    "assert_healthy": "_healthy",
    "assert_matches_theory": "_theory",
    "assert_no_dead_units": "_propagates",
    "assert_scale": "_scale",
    "assert_signal_propagates": "_propagates",
    "load_baseline": "_baseline_file",
    "save_baseline": "_baseline_file",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
