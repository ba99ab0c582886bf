"""A recording that grows step by step, each step's every value saying which it is; light, for child processes too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.testing import assert_array_equal

from gradscope.recording import Moments, Recording, Site, StepRecord

SITES = 40


def begun(path: Path | None, **more: object) -> Recording:
    r = Recording.create(path, facts={"seed": 0}, **more)  # type: ignore[arg-type]
    for i in range(SITES):
        r.add_site(Site("weight", f"w{i}", f"w{i}", "Linear", depth=i))
    return r


def record(step: int) -> StepRecord:
    """A step whose every value says which it is; 1 to 3 kB in the file."""
    values = np.arange(float(SITES)) + step / 7
    none = np.zeros(SITES, np.int64)
    moments = Moments(none + step + 1, values, values / 3, values, values, none, none, none)
    counts = np.full((SITES, 64), step % 251)
    ids = np.arange(SITES)
    return StepRecord(step, step % 5 == 2, {"loss": float(step)}, {"weight": (ids, moments)}, {"weight": (ids, counts)})


def append(r: Recording, steps: range) -> None:
    for step in steps:
        r.append(record(step))


def assert_true(r: Recording, steps: range, facts: dict[str, object] | None = None) -> None:
    """The recording holds exactly these steps, whole and unchanged."""
    assert_array_equal(r.steps, np.arange(steps.start, steps.stop))
    assert_array_equal(r.skipped, np.arange(steps.start, steps.stop) % 5 == 2)
    assert_array_equal(r.notes("loss"), np.arange(float(steps.start), float(steps.stop)))
    if len(steps):
        expected = np.arange(float(SITES)) + np.arange(steps.start, steps.stop)[:, None] / 7
        assert_array_equal(r.values("weight", "mean"), expected)
        assert_array_equal(r.values("weight", "count")[:, 0], np.arange(steps.start, steps.stop) + 1)
        assert r.histogram("weight", "w3", 0)[1][0] == steps.start % 251
    assert r.facts == (facts or {"seed": 0})


def assert_saved(path: Path, steps: range) -> None:
    r = Recording.load(path)
    assert r.complete
    assert_true(r, steps)
