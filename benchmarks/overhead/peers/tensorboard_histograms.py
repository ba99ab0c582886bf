"""`SummaryWriter.add_histogram` of every parameter and its gradient, as the tutorials have it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch import Tensor

from benchmarks.overhead.tool import Session, Tool
from benchmarks.overhead.workloads import Workload


def _start(workload: Workload, folder: Path) -> Callable[[], Session]:
    writers = import_module("torch.utils.tensorboard")
    model, number = workload.model, itertools.count()

    def attach() -> Session:
        writer = writers.SummaryWriter(str(folder / str(next(number))))
        step = itertools.count()

        def after_backward(loss: Tensor) -> None:
            now = next(step)
            writer.add_scalar("loss", loss.item(), now)
            for name, parameter in model.named_parameters():
                writer.add_histogram(f"weights/{name}", parameter, now)
                if parameter.grad is not None:
                    writer.add_histogram(f"gradients/{name}", parameter.grad, now)

        return Session(writer.close, after_backward)

    return attach


PEER = Tool(
    "tensorboard",
    "TensorBoard add_histogram",
    "weights and their gradients: histogram of 1,549 bins",
    _start,
    "tensorboard",
)
