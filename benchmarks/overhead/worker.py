"""One tool on one workload: `python -m benchmarks.overhead.worker TOOL WORKLOAD ROUNDS RESULT`.

Writes a `Result` as JSON to the file RESULT; tools may print what they like.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.overhead.machine import load
from benchmarks.overhead.measuring import Lengths, Measured, block, interval, null, rounds
from benchmarks.overhead.result import Result, version
from benchmarks.overhead.tool import Tool, Unusable
from benchmarks.overhead.tools import tool
from benchmarks.overhead.workloads import workload


def measure(chosen: Tool, name: str, count: int, folder: Path) -> Result:
    """The tool between two runs of the null tool of as many rounds each."""
    before = load()
    model = workload(name)
    own = -(-model.steps // chosen.period) * chosen.period
    observed = Lengths(own, chosen.warm)
    bare = Lengths(min(own, max(model.steps, 10)), warm=1)
    attach = chosen.start(model, folder)
    block(model, null, Lengths(model.steps, warm=3))
    block(model, attach, Lengths(1, chosen.warm))  # what a tool does only once, and whether it works at all

    def nothing_attached() -> Measured:
        short = Lengths(model.steps, warm=1)
        return rounds(model, null, count, short, short)

    first = nothing_attached()
    measured = rounds(model, attach, count, observed, bare)
    last = nothing_attached()
    low, high = interval(measured.ratios)
    return Result(
        tool=chosen.name,
        workload=name,
        title=model.title,
        version=version(chosen.package),
        ratio=float(np.median(measured.ratios)),
        low=low,
        high=high,
        ratios=measured.ratios,
        null=(float(np.median(first.ratios)), float(np.median(last.ratios))),
        bare_ms=measured.bare_step * 1e3,
        extra_us=measured.extra_step * 1e6,
        attach_us=measured.attach * 1e6,
        detach_us=measured.detach * 1e6,
        steps=own,
        facts=dict(measured.facts),
        load=before,
    )


def main(name: str, model: str, count: int, result: Path) -> None:
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        try:
            answer = measure(tool(name), model, count, Path(folder))
        except ImportError as error:
            answer = Result.skipped(name, model, f"not installed ({error})")
        except Unusable as error:
            answer = Result.skipped(name, model, str(error))
    result.write_text(json.dumps(dataclasses.asdict(answer)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
