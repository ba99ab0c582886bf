"""What of a recording is an estimate from some entries of each large tensor, as its fact `sampled` says.

    sampled = {"entries": 1024, "of": ["mean", "std", "zeros", "subnormals", "histogram"]}

Of a tensor with more entries than that, these columns of its moments, and its histogram, come from about that many of
them, spread over the tensor and others each step. Its min, max, NaNs and infinities never do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.recording._moments import COLUMNS
from gradscope.recording._statistics import get_statistic

FACT = "sampled"


@dataclass(frozen=True)
class Sampling:
    """What is sampled.

    Attributes:
        entries: how many entries of a tensor it takes, about; smaller tensors are read whole.
        of: which columns of the moments, and `histogram`.
    """

    entries: int
    of: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What a reader of the numbers has to know.

        >>> Sampling(1024, ("mean", "std")).sentence
        'mean, std of tensors over 1,024 entries are estimates from about that many'
        """
        return f"{', '.join(self.of)} of tensors over {self.entries:,} entries are estimates from about that many"

    def fact(self) -> dict[str, Any]:
        """As the fact `sampled` says it."""
        return {"entries": self.entries, "of": list(self.of)}


def sampling_of(facts: Mapping[str, Any]) -> Sampling | None:
    """What the facts of a recording say is sampled; None where nothing is."""
    fact = facts.get(FACT)
    if not isinstance(fact, Mapping) or not fact.get("of"):
        return None
    return Sampling(int(fact["entries"]), tuple(map(str, fact["of"])))


def joined(parts: Iterable[Sampling | None]) -> Sampling | None:
    """What is sampled in a recording that is merged from some: whatever is in any, from as few entries as in any."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    return Sampling(min(part.entries for part in known), tuple(dict.fromkeys(name for p in known for name in p.of)))


class _Spy:
    """Moments of no site, which note the columns that a statistic reads."""

    def __init__(self) -> None:
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return np.zeros(0, COLUMNS[name])


def columns_of(stat: str) -> set[str]:
    """The columns of the moments from which a statistic is derived; ValueError where it is unknown.

    >>> sorted(columns_of("rms")), sorted(columns_of("abs_max"))
    (['mean', 'std'], ['max', 'min'])
    """
    spy = _Spy()
    get_statistic(stat).function(spy)
    return spy.read
