"""Which steps of a long run a picture shows: it has no more pixels than these, and reading the others takes minutes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.recording import SIGNALS, Recording

MOST = 1000
"""Steps of a picture, beside those with a finding, of which there are at most as many again."""


@dataclass(frozen=True)
class Drawn:
    """The steps that a picture shows: evenly spaced ones, the first and the last among them, and those with a finding.

    Attributes:
        at: their indices among the recorded steps, `(steps,)`.
        recorded: how many steps there are.
        findings: how many of them were skipped, or had something that was not finite.
        findings_drawn: how many of those are shown; all, unless there are more than 1,000.
    """

    at: NDArray[np.int64]
    recorded: int
    findings: int
    findings_drawn: int

    @property
    def whole(self) -> bool:
        """Every step is shown."""
        return len(self.at) == self.recorded

    @property
    def words(self) -> str:
        """What the small print says; empty where every step is shown.

        >>> Drawn(np.arange(1002), 100_000, 3, 3).words
        '1,002 of 100,000 steps: evenly spaced, and all 3 that were skipped or not finite'
        """
        if self.whole:
            return ""
        found = "all" if self.findings_drawn == self.findings else f"{self.findings_drawn:,} of"
        more = f", and {found} {self.findings:,} that were skipped or not finite" if self.findings else ""
        return f"{len(self.at):,} of {self.recorded:,} steps: evenly spaced{more}"


def drawn_steps(recording: Recording) -> Drawn:
    """The steps that pictures of a recording show; what it has is known without reading them."""
    steps = len(recording.steps)
    found = np.flatnonzero(recording.findings)
    kept = found
    if len(found) > MOST:  # the first of each signal is where a picture says that trouble begins
        firsts = [np.flatnonzero(recording.nonfinite(signal))[:1] for signal in SIGNALS]
        kept = np.union1d(found[evenly(len(found), MOST)], np.concatenate(firsts))
    at = np.union1d(evenly(steps, MOST), kept)
    return Drawn(at, steps, len(found), int(np.isin(found, at).sum()))


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most so many indices below the count, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
