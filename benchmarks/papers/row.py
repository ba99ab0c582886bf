"""A row of the gallery: what a paper says, what theory says, what was measured here, how far apart they may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Relation = Literal["=", "≤", "≥"]
Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One claim of a paper.

    Attributes:
        claim: what is said, in a sentence; the same at full and at reduced size.
        published: the paper's own number or words.
        theory: what is expected, one number or several.
        measured: as many, measured here.
        tolerance: by how much each may differ, in its own unit.
        because: where the tolerance comes from.
        scaled_down: in what the experiment is smaller than the paper's, or other.
        relation: what measured is to theory: equal, at most or at least, up to the tolerance.
    """

    claim: str
    published: str
    theory: Numbers
    measured: Numbers
    tolerance: Numbers
    because: str
    scaled_down: str
    relation: Relation = "="

    @property
    def holds(self) -> bool:
        """Whether every number is where it should be; NaN is nowhere."""
        away = np.array(self.measured) - np.array(self.theory)
        allowed = np.array(self.tolerance)
        if self.relation == "=":
            return bool(np.all(np.abs(away) <= allowed))
        return bool(np.all(away <= allowed if self.relation == "≤" else away >= -allowed))

    def __str__(self) -> str:
        sign = {"=": "±", "≤": "+", "≥": "−"}[self.relation]
        return (
            f"{'holds' if self.holds else 'FAILS'}: {self.claim}: measured {shown(self.measured)}, "
            f"theory {self.relation} {shown(self.theory)} {sign} {shown(self.tolerance)}"
        )


def row(
    claim: str,
    *,
    published: str,
    theory: ArrayLike,
    measured: ArrayLike,
    tolerance: ArrayLike,
    because: str,
    scaled_down: str,
    relation: Relation = "=",
) -> Row:
    """A `Row` of numbers or arrays; one tolerance serves for several numbers.

    Raises:
        ValueError: theory and measured are not as many.
    """
    expected, found = _numbers(theory), _numbers(measured)
    if len(expected) != len(found):
        raise ValueError(f"theory has {len(expected)} numbers and measured {len(found)}; they must be as many")
    allowed = _numbers(np.broadcast_to(np.asarray(tolerance, dtype=np.float64), (len(expected),)))
    return Row(claim, published, expected, found, allowed, because, scaled_down, relation)


def shown(numbers: Numbers) -> str:
    """Numbers as a reader wants them: four digits at most.

    >>> shown((0.41231, 1.0, 3.0518e-05, -61.5444))
    '0.4123, 1, 3.05e−5, −61.54'
    """
    return ", ".join(map(_shown, numbers))


def _shown(number: float) -> str:
    number += 0.0  # of −0 too
    if number != 0.0 and not 1e-3 <= abs(number) < 1e4:
        digits, _, exponent = f"{number:.2e}".partition("e")
        text = f"{digits}e{int(exponent)}" if exponent else digits  # inf and nan have none
    else:
        text = f"{number:.4g}"
    return text.replace("-", "−")


def _numbers(values: ArrayLike) -> Numbers:
    return tuple(float(value) for value in np.ravel(np.asarray(values, dtype=np.float64)))
