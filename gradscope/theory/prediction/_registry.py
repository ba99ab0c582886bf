"""One rule for each operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function for operations: `(flow, operation, *args, **kwargs) -> what it makes`."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


class NoRule(Exception):
    """An operation is used in a way that no rule covers."""
