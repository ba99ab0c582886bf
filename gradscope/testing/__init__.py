"""Assertions about a model for your own tests: `from gradscope.testing import assert_matches_theory`.

Lazy: torch is imported when one is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradscope.testing._match import TheoryMatch
    from gradscope.testing._theory import assert_matches_theory

__all__ = ["TheoryMatch", "assert_matches_theory"]

_FILES = {"TheoryMatch": "_match", "assert_matches_theory": "_theory"}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
