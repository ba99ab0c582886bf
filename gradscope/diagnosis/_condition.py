"""How a model fares in one run: what is found, how the signal passes, where the loss goes. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.diagnosis._evidence import Evidence, Floats
from gradscope.diagnosis._finding import Finding
from gradscope.diagnosis._findings import Findings
from gradscope.diagnosis._limits import Limits
from gradscope.diagnosis._passage import passage
from gradscope.recording import Recording, Signal

TAIL = 6
"""The last sixth of the steps, and at least five of them, is where a loss ends: one batch says little."""


@dataclass(frozen=True)
class Condition:
    """What was measured in the first steps of one model.

    Attributes:
        findings: errors and warnings, worst first.
        forward, backward: decades per layer of the activation and of its gradient, of the first step.
        lost: decades that the gradient, or the activation, has lost at most on its way, in the first step.
        frontier: where the worst finding starts; None where it has no place, or nothing was found.
        dead: share of units that are zero for every input at the end, of the worst layer that can have such; NaN where
            none can.
        losses: of each step, as the loss function gave them; it ends early where nothing is finite any more.
    """

    findings: tuple[Finding, ...]
    forward: float
    backward: float
    lost: float
    frontier: str | None
    dead: float
    losses: tuple[float, ...]

    @property
    def first_loss(self) -> float:
        """Before the first update."""
        return self.losses[0] if self.losses else math.nan

    @property
    def last_loss(self) -> float:
        """The mean over the last sixth of the steps, at least five; infinite where one of these is not finite."""
        return mean_of_tail(self.losses)

    @property
    def finite(self) -> bool:
        """Whether it ended with a loss that is a number."""
        return math.isfinite(self.last_loss)

    @property
    def noise(self) -> float:
        """Three standard errors of `last_loss`, from how the losses stray about a line through them."""
        last = np.array(self.losses[-2 * _length(self.losses) :])
        if len(last) < 4 or not np.isfinite(last).all():
            return 0.0
        steps = np.arange(len(last)) - (len(last) - 1) / 2
        rest = last - last.mean() - steps * (steps @ last) / (steps @ steps)
        return float(3 * np.sqrt(rest @ rest / (len(last) - 2) / _length(self.losses)))

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON knows it."""
        found = {**self.__dict__, "findings": [one.as_dict() for one in self.findings], "losses": list(self.losses)}
        found |= {"first_loss": self.first_loss, "last_loss": self.last_loss, "noise": self.noise}
        return {key: finite_or_none(value) for key, value in found.items()}


def finite_or_none(value: Any) -> Any:
    """JSON has no word for what is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [finite_or_none(one) for one in value] if isinstance(value, list) else value


def mean_of_tail(losses: Sequence[float]) -> float:
    """Where a loss ends."""
    last = losses[-_length(losses) :]
    return math.fsum(last) / len(last) if last and all(map(math.isfinite, last)) else math.inf


def _length(losses: Sequence[float]) -> int:
    return max(5, len(losses) // TAIL)


def condition_of(recording: Recording, findings: Findings, losses: Sequence[float]) -> Condition:
    """Read off a recording of training from its first step on."""
    evidence = Evidence(recording, Limits())
    serious = tuple(one for one in findings if one.severity != "note")
    first = next((one.frontier.name for one in serious if one.frontier is not None), None)
    return Condition(
        serious,
        _slope(recording, "activation"),
        _slope(recording, "activation_grad"),
        max(_lost(evidence, "activation"), _lost(evidence, "activation_grad")),
        first,
        _dead(evidence),
        tuple(losses),
    )


def _slope(recording: Recording, signal: Signal) -> float:
    if not len(recording.steps) or not recording.sites_of(signal):
        return math.nan
    return recording.profile(signal, "rms", 0).decades_per_layer


def _lost(evidence: Evidence, signal: Any) -> float:
    if not len(evidence.at) or not evidence.has(signal):
        return 0.0
    total = passage(evidence, signal, lost=True).total
    return float(total[0]) if len(total) and np.isfinite(total[0]) else 0.0


def _dead(evidence: Evidence) -> float:
    if not evidence.unit_at.size:
        return math.nan
    shares: Floats = evidence.unit("silent_fraction")[-1]  # what ten batches have in common lags behind
    relus = ["relu" in site.module_type.lower() for site in evidence.sites("activation")]
    known = shares[np.array(relus, dtype=bool) & np.isfinite(shares)]
    return float(known.max()) if known.size else math.nan
