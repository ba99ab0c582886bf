"""Hugging Face's `DebugUnderflowOverflow`, watching for NaN and infinity in the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from benchmarks.overhead.tool import Session, Tool
from benchmarks.overhead.workloads import Workload


def _start(workload: Workload, folder: Path) -> Callable[[], Session]:
    debugger = import_module("transformers.debug_utils").DebugUnderflowOverflow
    modules = list(workload.model.modules())

    def attach() -> Session:
        before = [set(module._forward_hooks) for module in modules]
        debugger(workload.model)

        def detach() -> None:  # it has no way of its own to come off
            for module, known in zip(modules, before, strict=True):
                for key in set(module._forward_hooks) - known:
                    del module._forward_hooks[key]

        return Session(detach)

    return attach


PEER = Tool(
    "transformers",
    "transformers DebugUnderflowOverflow",
    "weights, inputs and outputs: |min|, |max|, NaN, infinity; the last 21 modules kept",
    _start,
    "transformers",
)
