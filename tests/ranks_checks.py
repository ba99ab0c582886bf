"""The register of what ranks_worker.py can run."""

from __future__ import annotations

from collections.abc import Callable

Check = Callable[[int, int], None]
"""Takes the rank and how many there are; asserts on every rank."""

CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Register a check by its name, which is that of its test."""
    CHECKS[function.__name__] = function
    return function
