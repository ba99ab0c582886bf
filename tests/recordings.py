"""Small recordings that the tests of the recording share, made from seeded tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradscope.recording import SIGNALS, Moments, Recording, Site, StepRecord, UnitMoments
from gradscope.recording._unit_moments import UNIT_COLUMNS


def site(signal: str, i: int, **more: object) -> Site:
    facts: dict[str, object] = {"role": "pre-activation", "depth": i + 1, "shape": (4, 3), "fan_in": 3.0, **more}
    return Site(signal, f"layers.{i}", f"layers.{i}", "Linear", **facts)  # type: ignore[arg-type]


def tensors(steps: int, sites: int, seed: int = 0) -> NDArray[np.float64]:
    """`(steps, signals, sites, entries)`, with a zero, a NaN and an inf among them."""
    x = np.random.default_rng(seed).normal(size=(steps, len(SIGNALS), sites, 30))
    x[..., 0], x[:, 0, 0, 1], x[:, 1, 0, 2] = 0.0, np.nan, np.inf
    return x


def unit_moments(sites: int, t: int = 0) -> UnitMoments:
    """Different numbers in every row and column."""
    columns = np.arange(sites * len(UNIT_COLUMNS)).reshape(len(UNIT_COLUMNS), sites) + 7 * t + 1
    scaled = [c if dtype is np.int64 else c / 300 for c, dtype in zip(columns, UNIT_COLUMNS.values(), strict=True)]
    return UnitMoments(*scaled)


def fill(
    recording: Recording, steps: int = 3, sites: int = 4, first: int = 0, units: bool = False
) -> NDArray[np.float64]:
    """Record `tensors` as steps `first`, `first + 1`, …, with unit moments in every second; the tensors come back."""
    ids = {s: np.array([recording.add_site(site(s, i)) for i in range(sites)]) for s in SIGNALS}
    x = tensors(steps, sites)
    for t in range(steps):
        moments = {
            s: (ids[s], Moments.concat([Moments.from_array(row) for row in x[t, k]])) for k, s in enumerate(SIGNALS)
        }
        histograms = {"activation": (ids["activation"], np.arange(sites * 64).reshape(sites, 64) + t)}
        notes = {"loss": 1 / (t + 1), "phase": "warm", "ok": True}
        of_units = (ids["activation"], unit_moments(sites, t)) if units and t % 2 == 0 else None
        recording.append(StepRecord(first + t, t == 1, notes, moments, histograms, of_units))
    return x


def written(path: Path | None, steps: int = 3, sites: int = 4, units: bool = False) -> Recording:
    recording = Recording.create(path, facts={"seed": 0, "device": "cpu"})
    fill(recording, steps, sites, units=units)
    return recording


def rms(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the finite entries of the last axis."""
    return np.sqrt(np.nanmean(np.where(np.isfinite(x), x, np.nan) ** 2, axis=-1))


def assert_same(a: Recording, b: Recording, stats: tuple[str, ...] = ("mean", "std", "min", "count")) -> None:
    assert a.sites == b.sites
    assert a.facts == b.facts
    np.testing.assert_array_equal(a.steps, b.steps)
    np.testing.assert_array_equal(a.skipped, b.skipped)
    np.testing.assert_array_equal(a.notes("loss"), b.notes("loss"))
    for signal in SIGNALS:
        np.testing.assert_array_equal(a.recorded(signal), b.recorded(signal))
        np.testing.assert_array_equal(a.nonfinite(signal), b.nonfinite(signal))
        for stat in stats:
            np.testing.assert_array_equal(a.values(signal, stat), b.values(signal, stat))
