"""GradScope as a user attaches it, in each mode that the table has a row for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.overhead.tool import Session, Tool, Unusable
from benchmarks.overhead.workloads import Workload
from gradscope.recording import SIGNALS, Recording

FIVE = "all 5 signals: mean, std, min, max, zeros, non-finite"
TEN = 10
"""A block of what records each tenth step has whole tens of steps."""


def _start(arguments: Mapping[str, Any]) -> Callable[[Workload, Path], Callable[[], Session]]:
    def start(workload: Workload, folder: Path) -> Callable[[], Session]:
        from gradscope import GradScope

        number = itertools.count()

        def attach() -> Session:
            log = folder / f"{next(number)}.gscope"
            try:
                scope = GradScope(workload.model, workload.optimizer, log=log, slow=False, **arguments)
            except (TypeError, ValueError) as error:
                raise Unusable(str(error)) from error

            def facts() -> Mapping[str, float]:
                return {**_facts(scope.recording), "file_bytes": log.stat().st_size}

            return Session(scope.close, facts=facts)

        return attach

    return start


def _facts(recording: Recording) -> dict[str, float]:
    counts = [recording.moments(signal)[1].count.sum() for signal in SIGNALS if recording.sites_of(signal)]
    return {
        "sites": len(recording.sites),
        "elements": float(sum(counts)),
        "recorded_steps": len(recording.steps),
    }


def _mode(
    name: str, label: str, records: str, *, period: int = 1, warm: int = 2, native: bool = True, **arguments: Any
) -> Tool:
    environment = {} if native else {"GRADSCOPE_NATIVE": "0"}
    title = f"GradScope, {label}"
    return Tool(name, title, records, _start(arguments), "torch-gradscope", period, warm, environment)


MODES = (
    _mode("gradscope", "every step", FIVE, every=1),
    _mode(
        "gradscope-histograms",
        "every step, histograms",
        f"{FIVE}; log2 histogram sampled",
        every=1,
        histograms="sample",
    ),
    _mode("gradscope-sample", "every step, sampled", f"{FIVE}; mean, std, zeros sampled", every=1, mode="sample"),
    _mode(
        "gradscope-tenth", "each tenth step", f"{FIVE}; log2 histogram", period=TEN, warm=12, every=10, histograms=True
    ),
    _mode("gradscope-auto", "every=auto, budget 2 %", FIVE, period=40, warm=31, every="auto", budget=0.02),
    _mode("gradscope-idle", "between recorded steps", "nothing at these steps", every=10**9),
    _mode("gradscope-torch", "every step, torch alone", FIVE, native=False, every=1),
)
