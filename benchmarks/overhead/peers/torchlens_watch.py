"""torchlens's `trackers.watch` of the four signals that it has, each step, into a file of JSON lines."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch import Tensor

from benchmarks.overhead.tool import Session, Tool
from benchmarks.overhead.workloads import Workload


def _start(workload: Workload, folder: Path) -> Callable[[], Session]:
    trackers = import_module("torchlens.trackers")
    number = itertools.count()
    model = workload.model

    def attach() -> Session:
        step = itertools.count()
        now = [next(step)]
        sink = trackers.JSONLSink(folder / f"{next(number)}.jsonl")
        watch = trackers.watch(
            model,
            to=sink,
            signals=("parameters", "gradients", "updates", "activations"),
            select=[name for name, _ in model.named_modules() if name],
            optimizer=workload.optimizer,
            step=lambda: now[0],
            every=1,
            example_input=workload.inputs,
        )

        def after_step(loss: Tensor) -> None:
            now[0] = next(step)

        def detach() -> None:
            watch.close()

        return Session(detach, after_step=after_step)

    return attach


PEER = Tool(
    "torchlens",
    "torchlens trackers.watch",
    "activations, weights, their gradients, updates: mean, std, norm, min, max, zeros",
    _start,
    "torchlens",
)
