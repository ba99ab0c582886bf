"""What the recording's file costs: a step's commit, a verified load, one statistic, bytes a row.

python benchmarks/recording_file.py [STEPS [SITES]]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gradscope.recording import SIGNALS, Moments, Recording, Site, StepRecord


def moments(rng: np.random.Generator, sites: int, dtype: type[np.floating]) -> Moments:
    low, high = np.sort(rng.normal(size=(2, sites)).astype(dtype), axis=0).astype(np.float64)
    none = np.zeros(sites, np.int64)
    zeros = rng.integers(0, 2**18, sites)
    return Moments(np.full(sites, 2**18), rng.normal(size=sites), rng.random(sites), low, high, zeros, none, none)


def record(path: Path | None, steps: int, sites: int, dtype: type[np.floating]) -> tuple[Recording, np.ndarray]:
    recording = Recording.create(path)
    ids = {
        signal: np.array([recording.add_site(Site(signal, f"layer.{i}", "m", "Linear", depth=i)) for i in range(sites)])
        for signal in SIGNALS
    }
    rng = np.random.default_rng(0)
    ready = [{s: (ids[s], moments(rng, sites, dtype)) for s in SIGNALS} for _ in range(8)]
    seconds = np.empty(steps)
    for step in range(steps):
        start = time.perf_counter()
        recording.append(StepRecord(step, notes={"loss": 0.5}, moments=ready[step % 8]))
        seconds[step] = time.perf_counter() - start
    return recording, seconds


def timed(what, repeat: int = 3) -> float:
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        what()
        best = min(best, time.perf_counter() - start)
    return best


def main(steps: int = 2000, sites: int = 200) -> None:
    print(f"{steps} steps of {sites} sites for each of {len(SIGNALS)} signals")
    with tempfile.TemporaryDirectory() as folder:
        for name, place in (("temporary database", None), ("file", Path(folder) / "run.gscope")):
            recording, seconds = record(place, steps, sites, np.float32)
            q = np.quantile(seconds, (0.5, 0.99, 1.0)) * 1e6
            print(
                f"append, {name}: mean {seconds.mean() * 1e6:.0f} µs, "
                f"median {q[0]:.0f}, 99 % {q[1]:.0f}, worst {q[2]:.0f}"
            )
            took = timed(recording.close, 1)
        path = Path(folder) / "run.gscope"
        size = path.stat().st_size
        print(f"close: {took * 1e3:.0f} ms; file {size / 1e6:.1f} MB, {size / steps / sites / 5:.1f} bytes a row")
        took = timed(lambda: Recording.load(path))
        print(f"load, all verified: {took:.3f} s, {size / took / 1e6:.0f} MB/s")
        loaded = Recording.load(path)
        took = timed(lambda: loaded.values("weight", "rms"))
        print(f"values of one signal: {took * 1e3:.0f} ms, {took / steps * 1e6:.1f} µs a step")
        took = timed(lambda: loaded.profile("weight"))
        print(f"profile of one step: {took * 1e3:.1f} ms")
        took = timed(lambda: loaded.save(path.with_name("copy.gscope"), overwrite=True), 1)
        print(f"save: {size / took / 1e6:.0f} MB/s")
        path = Path(folder) / "double.gscope"
        record(path, steps, sites, np.float64)[0].close()
        print(f"float64 min and max: {path.stat().st_size / steps / sites / 5:.1f} bytes a row")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
