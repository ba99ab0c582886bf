"""What the recording's file costs: a step's commit, the room it takes, and opening and drawing a long one.

python benchmarks/recording_file.py [STEPS [SITES]]

STEPS (100,000) and SITES (500, over all five signals) are those of the long recording, 1.5 GB by default, which is
written to the directory for temporary files. Times of commits are the process's, times of reading are the clock's.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gradscope.recording import SIGNALS, Moments, Recording, Signal, Site, StepRecord
from gradscope.recording._moments import COLUMNS

NOTES = {"loss": 0.51234567, "grad_norm": 1.2345678}
READY = 16
"""Steps that are made beforehand and recorded again and again."""

Rows = dict[Signal, tuple[np.ndarray, Moments]]


def steps_of(recording: Recording, sites: int) -> list[Rows]:
    """Steps as of a network in float32: min and max are float32, the update's are not; a ReLU has zeros."""
    rng, none, steps = np.random.default_rng(0), np.zeros(sites, np.int64), []
    facts = {"module_type": "Linear", "role": "pre-activation", "shape": (9, 9)}
    ids: dict[Signal, np.ndarray] = {}
    for signal in SIGNALS:
        made = [Site(signal, f"layer.{i}", f"layer.{i}", depth=i, **facts) for i in range(sites)]
        ids[signal] = np.array([recording.add_site(site) for site in made])
    for _ in range(READY):
        rows: Rows = {}
        for s in SIGNALS:
            low, high = np.sort(rng.normal(size=(2, sites)).astype(np.float32), axis=0).astype(np.float64)
            wide = 1 + 1e-12 * (s == "update")
            zeros = rng.integers(0, 40_000, sites) if s == "activation" else none
            mean, std = rng.normal(size=sites), rng.random(sites)
            rows[s] = ids[s], Moments(none + 2**16, mean, std, low * wide, high * wide, zeros, none, none, none)
        steps.append(rows)
    return steps


def own_bytes(rows: Rows) -> int:
    """What the columns of a step take, each in the smallest type that holds it."""
    total = 0
    for _, moments in rows.values():
        for name, dtype in COLUMNS.items():
            values = getattr(moments, name)
            if dtype is np.float64:
                total += values.size * (4 if (values.astype(np.float32) == values).all() else 8)
            else:
                total += values.size * (0, 1, 2, 4)[int(np.searchsorted([0, 255, 65_535], values.max()))]
    return total


def record(path: Path | None, steps: int, sites: int) -> tuple[Recording, np.ndarray, int]:
    """A recording; by step the microseconds of its commit; and what the columns of a step take."""
    recording = Recording.create(path)
    ready, spent = steps_of(recording, sites), np.empty(steps)
    for step in range(steps):
        rows = ready[step % READY]
        start = time.process_time_ns()
        recording.append(StepRecord(step, skipped=step % 1999 == 7, notes=NOTES, moments=rows))
        spent[step] = (time.process_time_ns() - start) / 1e3
    return recording, spent, own_bytes(ready[0])


def commits(folder: Path, steps: int = 4000) -> None:
    print(f"append, process time of {steps} steps, and growth of the file over its columns' own bytes")
    for sites in (1, 5, 10, 20, 50, 100, 200):
        line = f"{sites * 5:5d} rows a step"
        for name, path in (("file", folder / "run"), ("temporary database", None)):
            recording, spent, own = record(path, steps, sites)
            recording.close()
            median, late = np.quantile(spent, (0.5, 0.99))
            line += f"; {name}: mean {spent.mean():.0f} µs, median {median:.0f}, 99 % {late:.0f}"
            if path is not None:
                size = path.stat().st_size
                line += f", {size / steps:.0f} bytes a step of {own} own, ratio {size / steps / own:.3f}"
                path.unlink()
        print(line, flush=True)


def timed(what: str, action: Callable[[], object]) -> None:
    start = time.perf_counter()
    action()
    print(f"{what}: {time.perf_counter() - start:.2f} s", flush=True)


def long_run(folder: Path, steps: int, sites: int) -> None:
    path = folder / "long"
    recording, spent, _ = record(path, steps, sites // len(SIGNALS))
    recording.close()
    size = path.stat().st_size
    print(f"{steps} steps of {sites} sites, {size / 1e6:.0f} MB; append {spent.mean():.0f} µs")
    timed("load", lambda: Recording.load(path))
    loaded = Recording.load(path)
    timed(
        "values of 1,000 steps of one signal",
        lambda: loaded.values("weight", "rms", np.linspace(0, steps - 1, 1000).astype(int)),
    )
    timed("profile of one step", lambda: loaded.profile("weight"))
    timed("values of every step of one signal", lambda: loaded.values("weight", "rms"))
    timed("verify", loaded.verify)
    timed("import of the report, matplotlib included", _import_report)
    from gradscope.report import save_png, write_run_report
    from gradscope.report.figures import profile

    def draw() -> None:
        fresh = Recording.load(path)
        for signal in SIGNALS:
            save_png(profile(fresh, signal), folder / "profile.png")

    timed("open and draw the five profiles", draw)
    timed("whole report: profiles, depth × step, update ratio", lambda: write_run_report(loaded, folder / "report"))
    os.unlink(path)


def _import_report() -> None:
    import gradscope.report._run_report  # noqa: F401


def main(steps: int = 100_000, sites: int = 500) -> None:
    with tempfile.TemporaryDirectory() as folder:
        commits(Path(folder))
        long_run(Path(folder), steps, sites)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
