"""What the pictures of a recorded run show: three profiles, depth × step, and the update-to-weight ratio."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis import Finding, Findings
from gradscope.recording import Profile, Recording, Signal, Site
from gradscope.report._drawn import Drawn, drawn_steps
from gradscope.report._silent import silent_sites
from gradscope.report._verdicts import Verdict, moments, verdicts

Array = NDArray[np.float64]

FLOWING: tuple[Signal, ...] = ("activation", "activation_grad")
"""Signals that enter the network at one end and pass its layers: they can leave a healthy band."""


def log10(values: Array) -> Array:
    """log10 of what is positive and finite, NaN elsewhere."""
    out = np.full(values.shape, np.nan)
    positive = np.isfinite(values) & (values > 0)
    out[positive] = np.log10(values[positive])
    return out


@dataclass(frozen=True)
class Line:
    """A profile as it is drawn: which step of the run it is, and the findings that are marked on it.

    Attributes:
        when: `first`, `middle`, `last`, or `only`.
        verdicts: each finding is on one line of a picture, that of the first step at which it holds.
        silent: of the last line of a gradient, the sites that have none on any line.
    """

    when: str
    profile: Profile
    verdicts: tuple[Verdict, ...] = ()
    silent: tuple[Site, ...] = ()

    @property
    def is_last(self) -> bool:
        """The line of the last step, or the only one: where every site is drawn."""
        return self.when in ("last", "only")

    @property
    def zero(self) -> tuple[Site, ...]:
        """Sites where every entry is exactly 0, which has no place on an axis of decades."""
        return self._where(self.profile.values == 0)

    @property
    def nonfinite(self) -> tuple[Site, ...]:
        """Sites without a finite entry."""
        return self._where(~np.isfinite(self.profile.values))

    def _where(self, chosen: NDArray[np.bool_]) -> tuple[Site, ...]:
        return tuple(site for site, one in zip(self.profile.sites, chosen.tolist(), strict=True) if one)

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
            "exactly_zero": [s.name for s in self.zero],
            "without_gradient": [s.name for s in self.silent],
            "first_sick_site": self.verdicts[0].site.name if self.verdicts else None,
            "first_sick_by": self.verdicts[0].finding.rule if self.verdicts else None,
        }


def three_lines(recording: Recording, signal: Signal, findings: Findings | None = None) -> tuple[Line, ...]:
    """The profiles of a signal at the first, the middle and the last step that has data; fewer in a short run.

    Each carries the findings that begin between the line before it and itself; the last those that begin later too.
    """
    at = np.flatnonzero(recording.recorded(signal))
    if not at.size:
        return ()
    chosen = {int(at[0]): "first", int(at[len(at) // 2]): "middle", int(at[-1]): "last"}
    if len(at) == 1:
        chosen = {int(at[0]): "only"}
    profiles = [(when, recording.profile(signal, "rms", step)) for step, when in sorted(chosen.items())]
    seen = {site.name for _, shown in profiles for site in shown.sites}
    silent = silent_sites(recording, signal, seen, findings, {site.name for site in profiles[-1][1].sites})
    left, lines = list(verdicts(findings, recording, signal)), list[Line]()
    for when, shown in profiles:
        last = when in ("last", "only")
        here = [one for one in left if last or (one.site in shown.sites and (one.since or 0) <= shown.step)]
        left = [one for one in left if one not in here]
        lines.append(Line(when, shown, tuple(here), silent if last else ()))
    return tuple(lines)


@dataclass(frozen=True)
class StepMap:
    """One signal at every site and the drawn steps: log10 of rms `(steps, sites)`, NaN without data or at an exact 0.

    Attributes:
        drawn: which steps of the run these are.
        nonfinite: where some entry was NaN or infinite, `(steps, sites)`.
        zero: where every entry was exactly 0, `(steps, sites)`.
        verdicts: the findings of the signal, worst first.
        moments: findings that begin at a step, and at no site of it.
    """

    signal: Signal
    sites: tuple[Site, ...]
    drawn: Drawn
    steps: NDArray[np.int64]
    skipped: NDArray[np.bool_]
    log10_rms: Array
    nonfinite: NDArray[np.bool_]
    zero: NDArray[np.bool_]
    verdicts: tuple[Verdict, ...] = ()
    moments: tuple[Finding, ...] = ()

    @property
    def first_nonfinite(self) -> tuple[int, Site] | None:
        """Step and site at which a NaN or an infinity is first seen, in the direction the signal flows."""
        rows = np.flatnonzero(self.nonfinite.any(axis=1))
        if not rows.size:
            return None
        return int(self.steps[rows[0]]), _first_site(self.signal, self.sites, self.nonfinite[rows[0]])

    def data(self) -> dict[str, Any]:
        """What the map spans; the values themselves are in the recording (`gradscope-report export`)."""
        finite = self.log10_rms[np.isfinite(self.log10_rms)]
        first = self.first_nonfinite
        return {
            "steps": self.steps.tolist(),
            "recorded_steps": self.drawn.recorded,
            "sites": [s.name for s in self.sites],
            "log10_rms_min": float(finite.min()) if finite.size else None,
            "log10_rms_max": float(finite.max()) if finite.size else None,
            "first_nonfinite": {"step": first[0], "site": first[1].name} if first else None,
            "first_sick_site": self.verdicts[0].site.name if self.verdicts else None,
            "first_sick_by": self.verdicts[0].finding.rule if self.verdicts else None,
        }


def step_map(recording: Recording, signal: Signal, findings: Findings | None = None) -> StepMap:
    """The rms of a signal at every site and the steps that pictures show, and what was found of it."""
    drawn = drawn_steps(recording)
    sites = recording.sites_of(signal)
    silent = silent_sites(recording, signal, {s.name for s in sites}, findings) if sites else ()
    every = tuple(sorted((*sites, *silent), key=lambda site: site.depth))
    place = [every.index(site) for site in sites]

    def rows(of_sites: NDArray[Any], missing: float) -> NDArray[Any]:
        out = np.full((len(drawn.at), len(every)), missing, dtype=of_sites.dtype)
        out[:, place] = of_sites
        return out

    rms = rows(recording.values(signal, "rms", drawn.at), np.nan)
    return StepMap(
        signal,
        every,
        drawn,
        recording.steps[drawn.at],
        recording.skipped[drawn.at],
        log10(rms),
        rows(_not_finite(recording, signal, drawn.at), False),
        rms == 0,
        verdicts(findings, recording, signal),
        moments(findings, recording, signal),
    )


def first_nonfinite(recording: Recording, signal: Signal) -> tuple[int, Site] | None:
    """As `StepMap.first_nonfinite`, of every step; only that step is read."""
    at = np.flatnonzero(recording.nonfinite(signal))[:1]
    if not at.size:
        return None
    (sick,) = _not_finite(recording, signal, at)
    return int(recording.steps[at[0]]), _first_site(signal, recording.sites_of(signal), sick)


def _first_site(signal: Signal, sites: tuple[Site, ...], sick: NDArray[np.bool_]) -> Site:
    """The first of the sick sites of a step, as the signal flows."""
    return sites[int(np.flatnonzero(sick)[-1 if signal in ("activation_grad", "weight_grad") else 0])]


def _not_finite(recording: Recording, signal: Signal, at: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where some entry was NaN or infinite, `(steps, sites)`; the other steps are known to have none."""
    out = np.zeros((len(at), len(recording.sites_of(signal))), dtype=bool)
    sick = recording.nonfinite(signal)[at]
    out[sick] = recording.values(signal, "nonfinite_count", at[sick]) > 0
    return out


@dataclass(frozen=True)
class UpdateRatio:
    """rms(update) / rms(weight) `(steps, sites)` of weights of two or more dimensions; NaN without finite data.

    Attributes:
        drawn: which steps of the run these are.
        verdicts: the findings of the updates, worst first.
    """

    sites: tuple[Site, ...]
    drawn: Drawn
    steps: NDArray[np.int64]
    ratio: Array
    verdicts: tuple[Verdict, ...] = ()

    @cached_property
    def median(self) -> Array:
        """Median over the steps with finite data, `(sites,)`; NaN where there are none."""
        seen = [column[np.isfinite(column)] for column in self.ratio.T]
        return np.array([np.median(column) if column.size else np.nan for column in seen])

    @property
    def known(self) -> bool:
        """Whether anything is known of any weight."""
        return bool(np.isfinite(self.median).any())

    @property
    def still(self) -> tuple[int, ...]:
        """Columns of the weights that do not change, by median."""
        return tuple(np.flatnonzero(self.median == 0).tolist())

    @property
    def extremes(self) -> tuple[int, ...]:
        """Columns of the fastest and the slowest weight by median, of those that change.

        One where there is only one; where none changes, and where there are no data, none.
        """
        median = self.median
        seen = np.flatnonzero(median > 0)
        if not seen.size:
            return ()
        fastest, slowest = int(seen[np.argmax(median[seen])]), int(seen[np.argmin(median[seen])])
        return (fastest,) if fastest == slowest else (fastest, slowest)

    def data(self) -> dict[str, Any]:
        """The ratios as plain values for `index.json`."""
        return {
            "steps": self.steps.tolist(),
            "recorded_steps": self.drawn.recorded,
            "sites": [s.name for s in self.sites],
            "depth": [s.depth for s in self.sites],
            "median": self.median.tolist(),
            "ratio": self.ratio.T.tolist(),
        }


def update_ratio(recording: Recording, findings: Findings | None = None) -> UpdateRatio:
    """How fast each weight changes relative to its size, at the steps that pictures show, and what was found of it.
    Biases are left out: they start at 0."""
    drawn = drawn_steps(recording)
    sites, ratio = ratios_at(recording, drawn.at)
    return UpdateRatio(sites, drawn, recording.steps[drawn.at], ratio, verdicts(findings, recording, "update"))


def ratios_at(recording: Recording, at: NDArray[np.int64]) -> tuple[tuple[Site, ...], Array]:
    """The weights of two or more dimensions, and rms(update) / rms(weight) at some steps (indices)."""
    weights = {s.name: i for i, s in enumerate(recording.sites_of("weight"))}
    updates = [
        (i, weights[s.name], s)
        for i, s in enumerate(recording.sites_of("update"))
        if len(s.shape) >= 2 and s.name in weights
    ]
    ratio = np.full((len(at), len(updates)), np.nan)
    if updates:
        change, size = _whole(recording, "update", at), _whole(recording, "weight", at)
        top, bottom = change[:, [i for i, _, _ in updates]], size[:, [i for _, i, _ in updates]]
        np.divide(top, bottom, out=ratio, where=bottom > 0)
    return tuple(s for _, _, s in updates), ratio


def _whole(recording: Recording, signal: Signal, at: NDArray[np.int64]) -> Array:
    """rms `(steps, sites)` of tensors that are finite as a whole: a rest among NaNs is no measure of an update."""
    return np.where(_not_finite(recording, signal, at), np.nan, recording.values(signal, "rms", at))
