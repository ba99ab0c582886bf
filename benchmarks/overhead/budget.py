"""Whether `every="auto"` keeps its budget over a long run: `python -m benchmarks.overhead.budget [--workloads W1 W2]`.

One session, with bare steps before and after it on the same model: the share is what all steps from the 21st on took
beyond the bare ones (the first 20 are recorded in any case). Run it where nothing else runs; about 2 minutes each.
"""

from __future__ import annotations

import argparse

from benchmarks.overhead.endurance import Endurance
from benchmarks.overhead.processes import endured

STEPS = {"W1": 2000, "W2": 500, "W3": 200, "W4": 700}
_FREE = 20


def share(run: Endurance) -> float:
    """Part of the bare steps' time that recording took from the 21st step on."""
    begins = [0, *run.until[:-1]]
    windows = [(end - begin, ratio) for begin, end, ratio in zip(begins, run.until, run.ratio, strict=True)]
    later = windows[run.until.index(_FREE) + 1 :]
    steps = sum(count for count, _ in later)
    bare = (1.0 + run.drift) / 2.0
    return sum(count * ratio for count, ratio in later) / steps / bare - 1.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead.budget", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workloads", nargs="+", choices=list(STEPS), default=list(STEPS), metavar="NAME")
    for name in parser.parse_args().workloads:
        run = endured("gradscope-auto", name, STEPS[name])
        drift = f"the bare step after it {run.drift:.3f} of the one before"
        print(f"{name}: {share(run):+.4f} over {STEPS[name]} steps (budget 0.02), {drift}", flush=True)


if __name__ == "__main__":
    main()
