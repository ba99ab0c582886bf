"""The rules: each a function of the evidence, registered under its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._limits import Limits

if TYPE_CHECKING:
    from gradscope.diagnosis._evidence import Evidence

RuleFunction = Callable[["Evidence"], Iterator[Finding]]


def no_step(limits: Limits) -> int:
    """What a rule needs that is about the steps that do not count."""
    return 0


def one_step(limits: Limits) -> int:
    """What most rules need."""
    return 1


def lasting(limits: Limits) -> int:
    """As many as a state has to last."""
    return limits.hysteresis


def lasting_twice(limits: Limits) -> int:
    """As many before it as of it."""
    return 2 * limits.hysteresis


@dataclass(frozen=True)
class Rule:
    """A rule of the diagnosis.

    Attributes:
        name: under which its findings go.
        function: of the evidence; yields findings.
        limit: how its limit is derived, in a sentence.
        reference: paper or thread.
        needs: signals without which it cannot say anything.
        units: whether it needs unit moments, which some steps have.
        fewest: of the limits, how many steps it needs.
        of_the_start: whether it reads the first weights or the first loss; units of its findings of which it does.
    """

    name: str
    function: RuleFunction
    limit: str
    reference: str = ""
    needs: tuple[str, ...] = ()
    units: bool = False
    fewest: Callable[[Limits], int] = one_step
    of_the_start: bool | tuple[str, ...] = False

    def reads_the_start(self, finding: Finding) -> bool:
        """Whether a finding of this rule was read off the first steps, and says nothing of later ones."""
        return self.of_the_start if isinstance(self.of_the_start, bool) else finding.unit in self.of_the_start

    @property
    def about(self) -> str:
        """What it finds: the docstring of its function."""
        return inspect.cleandoc(self.function.__doc__ or "")


RULES: dict[str, Rule] = {}
"""Name → rule, in the order in which they are asked; the single source for the command line and the docs."""


def rule(
    name: str,
    *,
    limit: str,
    reference: str = "",
    needs: tuple[str, ...] = (),
    units: bool = False,
    fewest: Callable[[Limits], int] = one_step,
    of_the_start: bool | tuple[str, ...] = False,
) -> Callable[[RuleFunction], RuleFunction]:
    """Register the decorated function of the evidence."""

    def register(function: RuleFunction) -> RuleFunction:
        RULES[name] = Rule(name, function, limit, reference, needs, units, fewest, of_the_start)
        return function

    return register
