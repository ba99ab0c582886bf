"""monitorch's `PyTorchInspector` with a lens for each signal that it knows; an epoch of it is a block.

Ticked at every step its `ParameterUpdateGeometry` would have nothing to compare. `OutputGradientGeometry` uses full
backward hooks, which activations in place forbid.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from benchmarks.overhead.tool import Session, Tool
from benchmarks.overhead.workloads import Workload


def _start(workload: Workload, folder: Path) -> Callable[[], Session]:
    lens = import_module("monitorch.lens")
    inspector_class = import_module("monitorch.inspector").PyTorchInspector
    recorder = import_module("monitorch.visualizer.RecorderPlayerVisualizer").RecorderVisualizer
    number = itertools.count()
    plain = [module for module in workload.model.modules() if next(module.children(), None) is None]
    kinds = {type(module) for module in plain if type(module).__name__ not in ("LSTM", "Embedding")}
    in_place = any(getattr(module, "inplace", False) for module in plain)

    def attach() -> Session:
        only = {"parameters": ("weight",)}
        lenses = [
            lens.OutputNorm(include=kinds),
            lens.ParameterNorm(**only),
            lens.ParameterGradientGeometry(**only, compute_correlation=False),
            lens.ParameterUpdateGeometry(workload.optimizer, **only, compute_correlation=False),
        ]
        if not in_place:
            lenses.append(lens.OutputGradientGeometry(skip_activation=False, compute_correlation=False))
        recording = recorder(str(folder / f"{next(number)}.pickle"))
        inspector = inspector_class(lenses, visualizer=recording, module=workload.model)

        def detach() -> None:
            inspector.tick_epoch()
            inspector.detach()
            recording.close()

        return Session(detach)

    return attach


PEER = Tool(
    "monitorch",
    "monitorch, five lenses",
    "all 5 signals (W2: no gradients of outputs): norm, averaged over an epoch",
    _start,
    "monitorch",
)
