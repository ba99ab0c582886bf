"""A small training program with or without a known fault, and the one loop that trains them all."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradscope.hooks import GradScope

FAMILIES = (
    "vanishing-gradient",
    "exploding-gradient",
    "vanishing-activation",
    "exploding-activation",
    "non-finite",
    "saturated-units",
    "dead-units",
    "symmetric-units",
    "collapsed-batch",
    "no-gradient",
    "uneven-learning",
    "update-too-small",
    "update-too-large",
    "gradient-spike",
    "clipping-always",
    "input-scale",
    "output-pairing",
    "init-mismatch",
    "default-init",
    "dtype-underflow",
    "dtype-overflow",
    "loss-scale",
)
"""The kinds of fault, by the names of the rules of `gradscope.diagnosis`."""


@dataclass(frozen=True)
class Run:
    """One program, ready to train.

    Attributes:
        batch: step (micro-step where gradients accumulate) -> inputs, target; a tuple of inputs is several arguments.
        loss_fn: (output, target) -> loss.
        metric: (output, target) -> what is compared with the twin, smaller is better; the loss where it is None.
        clip: largest norm of all gradients together.
        unscale: before clipping, as the manual of GradScaler demands.
        zero_grad: False forgets it.
        before_step: called with the step before its forward pass; where faults that start late are put in.
        loop: trains in another way than `train`; (run, steps, scope) -> metrics.
        watched: the module to observe, where it is not the whole model.
        watched_optimizer: likewise.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    batch: Callable[[int], tuple[Any, Any]]
    loss_fn: Callable[[Any, Any], Tensor]
    metric: Callable[[Any, Any], Tensor] | None = None
    clip: float | None = None
    scaler: Any = None
    unscale: bool = True
    zero_grad: bool = True
    accumulation: int = 1
    scheduler: Any = None
    autocast: torch.dtype | None = None
    before_step: Callable[[int], None] | None = None
    loop: Callable[[Run, int, GradScope | None], list[float]] | None = None
    watched: nn.Module | None = None
    watched_optimizer: torch.optim.Optimizer | None = None

    def scope(self, **settings: Any) -> GradScope:
        """A GradScope as a user of this program would make it."""
        optimizer = self.watched_optimizer or self.optimizer
        settings = {"every": 1, "scaler": self.scaler} | settings
        return GradScope(self.watched or self.model, optimizer, **settings)


@dataclass(frozen=True)
class Program:
    """A program of the corpus.

    Attributes:
        name: unique.
        family: of the model.
        fault: its kind, what a knowledgeable engineer would name as the root cause; None in a healthy program.
        also_accepted: further kinds that are an equally right name for it.
        where: glob (several with `|`) of the modules or parameters where the fault starts; None where it is everywhere.
        start: the step at which it starts.
        steps: how many steps to train.
        make: seed -> the program.
        twin: seed -> the same program without the fault.
        cure: what cures it; `structural` where no change of initial weights, scale, rate, clipping, norm does.
        goal: where a healthy program's loss has to end; None is four fifths of where it began.
        static: what shows the fault after training where the loss does not suffer from it.
    """

    name: str
    family: str
    fault: str | None
    make: Callable[[int], Run]
    steps: int
    also_accepted: tuple[str, ...] = ()
    where: str | None = None
    start: int = 0
    twin: Callable[[int], Run] | None = None
    cure: str = ""
    goal: float | None = None
    static: Callable[[Run], bool] | None = field(default=None, compare=False)

    @property
    def accepted(self) -> frozenset[str]:
        """Every right name of the fault."""
        return frozenset() if self.fault is None else frozenset((self.fault, *self.also_accepted))

    def is_where(self, name: str) -> bool:
        """Whether the fault starts at the site or parameter of that name."""
        plain = name.split("#")[0].split("[")[0]
        module = (
            plain.rpartition(".")[0] if plain.endswith(("weight", "bias")) else plain
        )  # a parameter is its module's
        globs = (self.where or "").split("|")
        return any(fnmatch.fnmatchcase(found, glob) for glob in globs for found in (name, plain, module))

    def __str__(self) -> str:
        return self.name


def train(run: Run, steps: int, scope: GradScope | None = None) -> list[float]:
    """Train, and give the metric of each step."""
    if run.loop is not None:
        return run.loop(run, steps, scope)
    metrics = []
    for step in range(steps):
        if run.before_step is not None:
            run.before_step(step)
        if run.zero_grad or step == 0:
            run.model.zero_grad()
        total = 0.0
        for micro in range(run.accumulation):
            inputs, target = run.batch(step * run.accumulation + micro)
            with autocast(run.autocast):
                output = run.model(*inputs) if isinstance(inputs, tuple) else run.model(inputs)
                loss = run.loss_fn(output, target) / run.accumulation
            if scope is not None:
                scope.note(loss=loss)
            if loss.requires_grad:
                (loss if run.scaler is None else run.scaler.scale(loss)).backward()
            found = loss if run.metric is None else run.metric(output, target) / run.accumulation
            total += found.item()
        metrics.append(total)
        update(run)
    return metrics


def update(run: Run) -> None:
    """Clip, step, schedule."""
    if run.clip is not None:
        if run.scaler is not None and run.unscale:
            run.scaler.unscale_(run.optimizer)
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.clip)
    if run.scaler is None:
        assert run.optimizer is not None
        run.optimizer.step()
    else:
        run.scaler.step(run.optimizer)
        run.scaler.update()
    if run.scheduler is not None:
        run.scheduler.step()


def autocast(dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def first(losses: Sequence[float]) -> float:
    """Where it began."""
    return statistics.fmean(losses[:3])


def last(losses: Sequence[float], start: int = 0) -> float:
    """Where it ended; the mean since the fault of one that starts late."""
    found = losses[start:] if start else losses[-max(5, len(losses) // 6) :]
    return math.inf if not all(map(math.isfinite, found)) else statistics.fmean(found)


def has_learned(program: Program, losses: Sequence[float]) -> bool:
    """Whether a healthy program did what it is for."""
    goal = 0.8 * first(losses) if program.goal is None else program.goal
    return all(map(math.isfinite, losses)) and last(losses) <= goal


def is_worse(program: Program, losses: Sequence[float], twin: Sequence[float]) -> bool:
    """Whether a faulty program lost at least a sixth of its twin's progress, or is not finite."""
    found, healthy = last(losses, program.start), last(twin, program.start)
    return found > healthy + (first(twin) - last(twin)) / 6


Half = Literal["tune", "held"]


def order(program: Program) -> str:
    """By which programs are dealt into the two halves: as good as chance, and always the same."""
    return hashlib.sha256(program.name.encode()).hexdigest()
