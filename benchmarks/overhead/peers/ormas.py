"""`ormas_monitor.Monitor` with a check at every step (its own default is each 50th)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from benchmarks.overhead.tool import Session, Tool
from benchmarks.overhead.workloads import Workload


def _start(workload: Workload, folder: Path) -> Callable[[], Session]:
    monitor_class = import_module("ormas_monitor").Monitor
    number = itertools.count()

    def attach() -> Session:
        out = folder / str(next(number))
        monitor = monitor_class(workload.model, workload.optimizer, out=out, check_every=1, verbose=False)

        def detach() -> None:
            monitor.close(report=False)

        return Session(detach, after_backward=monitor.step)

    return attach


PEER = Tool(
    "ormas-monitor",
    "ormas-monitor",
    "weights' gradients: norm; outputs: largest of each channel; dead channels",
    _start,
    "ormas-monitor",
)
