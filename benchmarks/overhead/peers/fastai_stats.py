"""fastai's `ActivationStats` callback on every leaf, driven as its `Learner` drives it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

from torch import Tensor

from benchmarks.overhead.tool import Session, Tool
from benchmarks.overhead.workloads import Workload


def _start(workload: Workload, folder: Path) -> Callable[[], Session]:
    hooks = import_module("fastai.callback.hook")

    def attach() -> Session:
        callback = hooks.ActivationStats(include_paramless=True)
        callback.learn = SimpleNamespace(model=workload.model, training=True, train_iter=0)
        callback.before_fit()

        def after_step(loss: Tensor) -> None:
            callback.after_batch()

        return Session(callback.after_fit, after_step=after_step)

    return attach


PEER = Tool(
    "fastai",
    "fastai ActivationStats",
    "activations: mean, std, share near zero; kept in memory",
    _start,
    "fastai",
)
