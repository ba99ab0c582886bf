"""What a step has, in one whole number: known of every step before any of its moments is read.

bit 0: skipped; 1: the recorder noted something not finite; from 2, 7, 12 and 17 on one bit for each signal: it has
moments, it has histograms, some entry of it was NaN or infinite, it has unit moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradscope.recording._site import SIGNALS

Part = Literal["moments", "histograms", "nonfinite", "units"]

SKIPPED = 1
NOTED = 2
_PARTS: tuple[Part, ...] = ("moments", "histograms", "nonfinite", "units")
_FIRST = {part: 2 + i * len(SIGNALS) for i, part in enumerate(_PARTS)}
_TELLING = ("nonfinite", "overflow_site")  # notes of the recorder


def bit(part: Part, signal: int) -> int:
    """The flag of one signal (index into SIGNALS)."""
    return 1 << (_FIRST[part] + signal)


def of_notes(skipped: bool, notes: Mapping[str, Any]) -> int:
    """What the record of a step says in words."""
    return SKIPPED * bool(skipped) | NOTED * any(name in notes for name in _TELLING)


def have(flags: NDArray[np.int64], part: Part, signal: int | None = None) -> NDArray[np.bool_]:
    """Which of some steps have it: of one signal, or of any."""
    mask = sum(bit(part, i) for i in range(len(SIGNALS))) if signal is None else bit(part, signal)
    return np.asarray(flags & mask, dtype=bool)
