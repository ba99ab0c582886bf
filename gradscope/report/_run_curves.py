"""What the pictures of a recorded run show: three profiles, depth × step, and the update-to-weight ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.recording import Profile, Recording, Signal, Site, frontier

Array = NDArray[np.float64]

FLOWING: tuple[Signal, ...] = ("activation", "activation_grad")
"""Signals that enter the network at one end and pass its layers: they have a healthy band and a frontier."""


def log10(values: Array) -> Array:
    """log10 of what is positive and finite, NaN elsewhere."""
    out = np.full(values.shape, np.nan)
    positive = np.isfinite(values) & (values > 0)
    out[positive] = np.log10(values[positive])
    return out


@dataclass(frozen=True)
class Line:
    """A profile as it is drawn: which step of the run it is, and its first sick site if the signal flows."""

    when: str
    profile: Profile
    frontier: Site | None

    def data(self) -> dict[str, Any]:
        """The line as plain values for `index.json`."""
        p = self.profile
        return {
            "when": self.when,
            "step": p.step,
            "sites": [s.name for s in p.sites],
            "depth": p.depth.tolist(),
            "log10_rms": log10(p.values).tolist(),
            "is_layer": p.layers.tolist(),
            "decades_per_layer": p.decades_per_layer,
            "first_sick_site": self.frontier.name if self.frontier else None,
        }


def three_lines(recording: Recording, signal: Signal) -> tuple[Line, ...]:
    """The profiles of a signal at the first, the middle and the last step that has data; fewer in a short run."""
    seen = np.flatnonzero(~np.isnan(recording.values(signal, "count")).all(axis=1))
    if not seen.size:
        return ()
    chosen = {int(seen[0]): "first", int(seen[len(seen) // 2]): "middle", int(seen[-1]): "last"}
    if len(seen) == 1:
        chosen = {int(seen[0]): "only"}
    profiles = {when: recording.profile(signal, "rms", step) for step, when in sorted(chosen.items())}
    return tuple(Line(w, p, frontier(p) if signal in FLOWING else None) for w, p in profiles.items())


@dataclass(frozen=True)
class StepMap:
    """One signal at every site and step: log10 of rms `(steps, sites)`, NaN without data or at an exact 0.

    Attributes:
        nonfinite: where some entry was NaN or infinite, `(steps, sites)`.
        zero: where every entry was exactly 0, `(steps, sites)`.
    """

    signal: Signal
    sites: tuple[Site, ...]
    steps: NDArray[np.int64]
    skipped: NDArray[np.bool_]
    log10_rms: Array
    nonfinite: NDArray[np.bool_]
    zero: NDArray[np.bool_]

    @property
    def first_nonfinite(self) -> tuple[int, Site] | None:
        """Step and site at which a NaN or an infinity is first seen, in the direction the signal flows."""
        rows = np.flatnonzero(self.nonfinite.any(axis=1))
        if not rows.size:
            return None
        columns = np.flatnonzero(self.nonfinite[rows[0]])
        backward = self.signal in ("activation_grad", "weight_grad")
        return int(self.steps[rows[0]]), self.sites[columns[-1 if backward else 0]]

    def data(self) -> dict[str, Any]:
        """What the map spans; the values themselves are in the recording (`gradscope-report export`)."""
        finite = self.log10_rms[np.isfinite(self.log10_rms)]
        first = self.first_nonfinite
        return {
            "steps": self.steps.tolist(),
            "sites": [s.name for s in self.sites],
            "log10_rms_min": float(finite.min()) if finite.size else None,
            "log10_rms_max": float(finite.max()) if finite.size else None,
            "first_nonfinite": {"step": first[0], "site": first[1].name} if first else None,
        }


def step_map(recording: Recording, signal: Signal) -> StepMap:
    """The rms of a signal at every site and step."""
    rms = recording.values(signal, "rms")
    return StepMap(
        signal,
        recording.sites_of(signal),
        recording.steps,
        recording.skipped,
        log10(rms),
        recording.values(signal, "nonfinite_count") > 0,
        rms == 0,
    )


@dataclass(frozen=True)
class UpdateRatio:
    """rms(update) / rms(weight) `(steps, sites)` of weights of two or more dimensions; NaN without finite data."""

    sites: tuple[Site, ...]
    steps: NDArray[np.int64]
    ratio: Array

    @property
    def median(self) -> Array:
        """Median over the steps with finite data, `(sites,)`; NaN where there are none."""
        seen = [column[np.isfinite(column)] for column in self.ratio.T]
        return np.array([np.median(column) if column.size else np.nan for column in seen])

    @property
    def extremes(self) -> tuple[int, ...]:
        """Columns of the fastest and the slowest weight by median; one where there is only one, none without data."""
        median = self.median
        seen = np.flatnonzero(np.isfinite(median))
        if not seen.size:
            return ()
        fastest, slowest = int(seen[np.argmax(median[seen])]), int(seen[np.argmin(median[seen])])
        return (fastest,) if fastest == slowest else (fastest, slowest)

    def data(self) -> dict[str, Any]:
        """The ratios as plain values for `index.json`."""
        return {
            "steps": self.steps.tolist(),
            "sites": [s.name for s in self.sites],
            "depth": [s.depth for s in self.sites],
            "median": self.median.tolist(),
            "ratio": self.ratio.T.tolist(),
        }


def update_ratio(recording: Recording) -> UpdateRatio:
    """How fast each weight changes relative to its size. Biases are left out: they start at 0."""
    weights = {s.name: i for i, s in enumerate(recording.sites_of("weight"))}
    updates = [
        (i, weights[s.name], s)
        for i, s in enumerate(recording.sites_of("update"))
        if len(s.shape) >= 2 and s.name in weights
    ]
    change, size = _whole(recording, "update"), _whole(recording, "weight")
    ratio = np.full((len(recording.steps), len(updates)), np.nan)
    for column, (update, weight, _) in enumerate(updates):
        top, bottom = change[:, update], size[:, weight]
        np.divide(top, bottom, out=ratio[:, column], where=bottom > 0)
    return UpdateRatio(tuple(s for _, _, s in updates), recording.steps, ratio)


def _whole(recording: Recording, signal: Signal) -> Array:
    """rms `(steps, sites)` of tensors that are finite as a whole: a rest among NaNs is no measure of an update."""
    return np.where(recording.values(signal, "nonfinite_count") > 0, np.nan, recording.values(signal, "rms"))
