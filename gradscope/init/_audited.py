"""A model as the rules of `audit` see it, and where the rules register."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import nn

from gradscope.diagnosis import Finding
from gradscope.init._audit_weight import Weight
from gradscope.init._left import is_norm
from gradscope.init._model_schemes._branches import Branches
from gradscope.init._slots import Slot


@dataclass(frozen=True, eq=False)
class Stretch:
    """Plain layers one behind the other, without anything in between that sets the scale anew.

    Attributes:
        weights: theirs, in the order of the signal; one comes again for each further call.
        closed: whether a norm or a residual sum follows the last.
    """

    weights: tuple[Weight, ...]
    closed: bool = False

    @functools.cached_property
    def row(self) -> tuple[Weight, ...]:
        """Those that an activation follows: the scale of the others is not told by what comes behind."""
        return tuple(w for w in self.weights if w.activation is not None and 0.0 < w.square < math.inf)


@dataclass(frozen=True, eq=False)
class Audited:
    """A model, as the rules see it.

    Attributes:
        model: itself.
        slots: its parameters.
        weights: with known fans, in the order of definition, each once.
        stretches: plain layers in the order of the signal, cut where something sets the scale anew.
        executed: that order was seen, with a batch; else it is that of definition.
        branches: the residual branches, which only a batch shows.
        signs: of training; empty where the model may be at its initialization.
    """

    model: nn.Module
    slots: tuple[Slot, ...]
    weights: tuple[Weight, ...]
    stretches: tuple[Stretch, ...]
    executed: bool
    branches: Branches | None
    signs: tuple[str, ...]
    _found: dict[str, tuple[Finding, ...]] = field(default_factory=dict)

    @property
    def initialize(self) -> str:
        """The line that sets every weight as recommended."""
        if self.branches is not None and self.branches.branches and not any(map(is_norm, self.model.modules())):
            return 'gradscope.init.initialize(model, "scaled_branches", inputs=inputs)'
        return f"gradscope.init.initialize(model{', inputs=inputs' if self.executed else ''})"

    def findings(self, rule: str) -> tuple[Finding, ...]:
        """What a rule finds; asked again, it does not look again."""
        if rule not in self._found:
            self._found[rule] = tuple(RULES[rule](self))
        return self._found[rule]

    def sites(self, *rules: str) -> frozenset[str]:
        """The weights that these rules name."""
        return frozenset(site for rule in rules for finding in self.findings(rule) for site in finding.sites)

    def stretch_of(self, weight: Weight) -> Stretch:
        """Where a weight stands; alone, where its place is not known."""
        return next((one for one in self.stretches if weight in one.weights), Stretch((weight,)))


Rule = Callable[[Audited], Iterator[Finding]]
RULES: dict[str, Rule] = {}
OF_SCALE: set[str] = set()
"""Rules that judge weights as initial ones: of a trained model that says nothing."""


def audit_rule(name: str, *, of_scale: bool = True) -> Callable[[Rule], Rule]:
    """Register a rule under the name that its findings bear."""

    def register(rule: Rule) -> Rule:
        RULES[name] = rule
        if of_scale:
            OF_SCALE.add(name)
        return rule

    return register
