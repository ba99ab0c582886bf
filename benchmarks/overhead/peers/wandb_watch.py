"""`wandb.watch(model, log="all", log_freq=1)`, offline; its service is a process of its own, not counted."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch import Tensor

from benchmarks.overhead.tool import Session, Tool
from benchmarks.overhead.workloads import Workload


def _start(workload: Workload, folder: Path) -> Callable[[], Session]:
    wandb = import_module("wandb")
    run = wandb.init(mode="offline", dir=str(folder), project="overhead", settings=wandb.Settings(silent=True))

    def attach() -> Session:
        run.watch(workload.model, log="all", log_freq=1)

        def detach() -> None:
            run.unwatch(workload.model)

        def after_step(loss: Tensor) -> None:
            run.log({"loss": loss.item()})

        return Session(detach, after_step=after_step)

    return attach


PEER = Tool(
    "wandb",
    'wandb.watch(log="all")',
    "weights and their gradients: 64-bin histogram",
    _start,
    "wandb",
    environment={"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_CONSOLE": "off"},
)
