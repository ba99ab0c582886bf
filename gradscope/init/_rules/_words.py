"""What the rules share in telling: how bad so many decades are, names, and remedies as one line of Python."""

from __future__ import annotations

from collections.abc import Sequence

from gradscope.diagnosis import Severity
from gradscope.init._audit_weight import Weight
from gradscope.init._audited import Stretch

NOTABLE = 1.2
"""A factor on a mean square that is worth a word."""
HEALTHY_BAND, LOST = 1.0, 2.0
"""Decades of rms: one is where the healthy band ends, at two training suffers for certain."""


def severity(decades: float, stretch: Stretch) -> Severity:
    """How bad it is that a row of layers loses or gains so many decades of rms."""
    size = abs(decades)
    if stretch.closed:
        # Whatever the scale, the norm puts it back, until its epsilon counts: √1e-5 is 2.5 decades below 1.
        return "warning" if size >= LOST else "note"
    return "error" if size >= LOST else "warning" if size >= HEALTHY_BAND else "note"


def count(number: int, thing: str, verb: str = "") -> str:
    """A number of things with their verb, in the right number.

    >>> count(1, "kernel", "is"), count(3, "kernel", "is"), count(2, "weight")
    ('one kernel is', '3 kernels are', '2 weights')
    """
    many = {"is": "are", "has": "have", "loses": "lose", "adds": "add"}
    words = f"one {thing} {verb}" if number == 1 else f"{number} {thing}s {many.get(verb, verb)}"
    return words.strip()


def names(weights: Sequence[Weight]) -> tuple[str, ...]:
    """Each once, in their order."""
    return tuple(dict.fromkeys(weight.name for weight in weights))


def paths(weights: Sequence[Weight]) -> tuple[str, ...]:
    """Of the parameters, each once, in their order."""
    return tuple(dict.fromkeys(weight.path for weight in weights))


def for_each(parameters: Sequence[str], statement: str) -> str:
    """One line that does a statement about `{}`, a parameter of the model, for each of them.

    >>> for_each(["0.bias"], "nn.init.zeros_({})")
    "nn.init.zeros_(model.get_parameter('0.bias'))"
    >>> for_each(["0.bias", "2.bias"], "nn.init.zeros_({})")
    "for name in ('0.bias', '2.bias'): nn.init.zeros_(model.get_parameter(name))"
    """
    if len(parameters) == 1:
        return statement.format(f"model.get_parameter({parameters[0]!r})")
    return f"for name in {tuple(parameters)!r}: {statement.format('model.get_parameter(name)')}"
