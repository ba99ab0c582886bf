"""Lightning's `grad_norm` in `on_before_optimizer_step`, logged by its `CSVLogger`, as its documentation has it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch import Tensor

from benchmarks.overhead.tool import Session, Tool
from benchmarks.overhead.workloads import Workload


def _start(workload: Workload, folder: Path) -> Callable[[], Session]:
    grad_norm = import_module("lightning.pytorch.utilities").grad_norm
    loggers = import_module("lightning.pytorch.loggers")

    def attach() -> Session:
        logger = loggers.CSVLogger(folder)
        step = itertools.count()

        def after_backward(loss: Tensor) -> None:
            logger.log_metrics(grad_norm(workload.model, norm_type=2), next(step))

        def detach() -> None:
            logger.finalize("success")

        return Session(detach, after_backward)

    return attach


PEER = Tool(
    "lightning",
    "Lightning grad_norm",
    "weights' gradients: norm",
    _start,
    "lightning",
)
