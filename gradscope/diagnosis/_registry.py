"""The rules: each a function of the evidence, registered under its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradscope.diagnosis._finding import Finding

if TYPE_CHECKING:
    from gradscope.diagnosis._evidence import Evidence

RuleFunction = Callable[["Evidence"], Iterator[Finding]]


@dataclass(frozen=True)
class Rule:
    """A rule of the diagnosis.

    Attributes:
        name: under which its findings go.
        function: of the evidence; yields findings.
        limit: how its limit is derived, in a sentence.
        reference: paper or thread.
        needs: signals without which it cannot say anything.
    """

    name: str
    function: RuleFunction
    limit: str
    reference: str = ""
    needs: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """What it finds: the docstring of its function."""
        return inspect.cleandoc(self.function.__doc__ or "")


RULES: dict[str, Rule] = {}
"""Name → rule, in the order in which they are asked; the single source for the command line and the docs."""


def rule(
    name: str, *, limit: str, reference: str = "", needs: tuple[str, ...] = ()
) -> Callable[[RuleFunction], RuleFunction]:
    """Register the decorated function of the evidence."""

    def register(function: RuleFunction) -> RuleFunction:
        RULES[name] = Rule(name, function, limit, reference, needs)
        return function

    return register
