"""Whether a long run grows dear: `python -m benchmarks.overhead.endurance TOOL WORKLOAD STEPS RESULT`.

One session for all steps, the bare step before and after it on the same model. Writes an `Endurance` as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.overhead.counts import memory
from benchmarks.overhead.measuring import null
from benchmarks.overhead.tool import Session
from benchmarks.overhead.tools import tool
from benchmarks.overhead.workloads import Workload, workload


@dataclass(frozen=True)
class Endurance:
    """Windows of a run: `until` their last step, and per window CPU time over the bare step, MB more than at its start.

    Windows hold whole tens of steps. `drift` is the bare step after the run over the bare step before it.
    """

    until: list[int]
    ratio: list[float]
    resident_mb: list[float]
    file_mb: list[float]
    drift: float


def windows(steps: int) -> list[int]:
    """10, 20, 50, 100, ... up to `steps`."""
    ends = [int(base * 10**power) for power in range(1, 7) for base in (1, 2, 5)]
    return [end for end in ends if end < steps] + [steps]


def run(model: Workload, session: Session, steps: int) -> float:
    """CPU seconds of a step, the mean of `steps`."""
    start = time.process_time()
    for _ in range(steps):
        model.optimizer.zero_grad()
        loss = model.loss()
        loss.backward()
        session.after_backward(loss)
        model.optimizer.step()
        session.after_step(loss)
    return (time.process_time() - start) / steps


def measure(name: str, chosen: str, steps: int, folder: Path) -> Endurance:
    """A run of `steps` steps with the tool."""
    model = workload(chosen)
    attach = tool(name).start(model, folder)
    run(model, null(), 50)
    bare = run(model, null(), 200)
    begin = memory().resident
    session = attach()
    ends, ratio, resident, files, done = windows(steps), [], [], [], 0
    for end in ends:
        ratio.append(run(model, session, end - done) / bare)
        resident.append((memory().resident - begin) / 1e6)
        files.append(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6)
        done = end
    session.detach()
    return Endurance(ends, ratio, resident, files, drift=run(model, null(), 200) / bare)


def main(name: str, chosen: str, steps: int, result: Path) -> None:
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    with tempfile.TemporaryDirectory(prefix="endurance-") as folder:
        answer = measure(name, chosen, steps, Path(folder))
    result.write_text(json.dumps(dataclasses.asdict(answer)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
