"""A diagnosis in one line, for logs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradscope.diagnosis._diagnose import diagnose
from gradscope.diagnosis._finding import Finding, Severity
from gradscope.diagnosis._findings import Findings
from gradscope.recording import Recording, Signal

_FLOWING: tuple[Signal, ...] = ("activation", "activation_grad")
_DEPTH: dict[str, tuple[Signal, str]] = {
    "vanishing-gradient": ("activation_grad", "lost"),
    "exploding-gradient": ("activation_grad", "gained"),
    "vanishing-activation": ("activation", "lost"),
    "exploding-activation": ("activation", "gained"),
}


@dataclass(frozen=True)
class Summary:
    """A recording in one line; `str` is that line.

    Attributes:
        severity: of the worst finding; None where nothing was found.
        rule: of the worst finding; empty where nothing was found.
        forward: slope of the activation, decades per layer, at the step at which the worst finding begins, or else the
            last; NaN where there is none.
        backward: slope of the backpropagated gradient, likewise.
        layers: over which the slopes are; 0 where nothing flows.
        found: what the worst finding says: where, how much, why and what to do.
        others: how many findings there are beside it.
        silent: why nothing can be said; empty where something can.
    """

    severity: Severity | None
    rule: str
    forward: float
    backward: float
    layers: int
    found: str = ""
    others: int = 0
    silent: str = ""

    @property
    def healthy(self) -> bool:
        """Nothing worse than a note was found, and something could be judged."""
        return not self.silent and self.severity in (None, "note")

    def __str__(self) -> str:
        if self.silent:
            return f"unknown: {self.silent}"
        more = f" (+{self.others} more)" if self.others else ""
        if not self.healthy:
            return f"{self.found}{more}"
        over = f" over {self.layers} layer{'' if self.layers == 1 else 's'}" if self.layers else ""
        ways = (("forward", self.forward), ("backward", self.backward))
        slopes = [f"{name} {_signed(value)}" for name, value in ways if math.isfinite(value)]
        unit = f" decades/layer{over}" if slopes else ""
        note = f"; note: {self.found}{more}" if self.found else ""
        return f"healthy: {', '.join(slopes) or 'no slope'}{unit}{note}"


def summary(recording: Recording, findings: Findings | None = None) -> Summary:
    """One line for logs: that a recording is healthy, with its slopes, or its worst finding and how many more.

    Args:
        recording: of a training run, a probe, or a prediction.
        findings: what `diagnose` gave for it; None asks it.

    Raises:
        TypeError: the recording is none.
    """
    found = diagnose(recording) if findings is None else findings
    worst = found[0] if found else None
    step = None if worst is None else worst.steps[0] if worst.steps else 0
    forward, layers = _slope(recording, "activation", step)
    backward, behind = _slope(recording, "activation_grad", step)
    silent = ""
    if worst is None and not any(recording.recorded(signal).any() for signal in _FLOWING):
        silent = "neither activation nor gradient is recorded" if len(recording.steps) else "no step is recorded yet"
    return Summary(
        severity=found.worst,
        rule="" if worst is None else worst.rule,
        forward=forward,
        backward=backward,
        layers=max(layers, behind),
        found="" if worst is None else _said(worst, forward, backward),
        others=max(len(found) - 1, 0),
        silent=silent,
    )


def _slope(recording: Recording, signal: Signal, step: int | None) -> tuple[float, int]:
    """Of the recorded step at or behind the one given, or of the last one; and over how many layers."""
    seen = np.flatnonzero(recording.recorded(signal))
    if not len(seen):
        return math.nan, 0
    place = len(seen) - 1 if step is None else min(int(np.searchsorted(recording.steps[seen], step)), len(seen) - 1)
    profile = recording.profile(signal, "rms", int(seen[place]))
    return profile.decades_per_layer, int(profile.layers.sum())


def _said(one: Finding, forward: float, backward: float) -> str:
    where = one.frontier.name if one.frontier is not None else one.sites[0] if one.sites else ""
    since = f", step {one.steps[0]}" if one.steps else ""
    parts = [f"{one.rule}{f' from {where}' if where else ''}{since}"]
    if one.value is not None and math.isfinite(one.value) and one.rule != "non-finite":  # step and cause say it
        parts[0] += f": {_measured(one, forward, backward)}"
    if one.causes:
        parts.append(f"cause: {_first_words(one.causes[0])}")
    if one.remedy:
        parts.append(f"remedy: {one.remedy}")
    return " ".join("; ".join(parts).split())


def _measured(one: Finding, forward: float, backward: float) -> str:
    assert one.value is not None
    if one.rule not in _DEPTH:
        return f"{one.value:.3g} {one.unit}".strip()
    signal, word = _DEPTH[one.rule]
    slope = forward if signal == "activation" else backward
    per_layer = f"{_signed(slope)} decades/layer, " if math.isfinite(slope) and "over the depth" in one.unit else ""
    return f"{per_layer}{abs(one.value):.1f} decades {word}"


def _first_words(cause: str) -> str:
    """A cause up to its evidence, which follows a colon."""
    return cause.partition(": ")[0]


def _signed(value: float) -> str:
    rounded = round(value, 2)
    return f"{rounded:+.2f}".replace("-", "−") if rounded else "0.00"
