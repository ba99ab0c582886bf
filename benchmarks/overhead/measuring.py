"""The measurement: blocks of steps with and without a tool, in turns, on one model, in CPU time.

A round is a bare block beside one with the tool; rounds go A B, B A, A B, ... so that a drift of the machine falls on
both alike. Its ratio is what both took per step. The null tool is measured in the same way before and after: where
its median ratio is off 1 by more than `TOLERANCE`, and by more than a tenth of the cost that was found, the machine was
not quiet and the figure is invalid.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.overhead.tool import Session
from benchmarks.overhead.workloads import Workload

TOLERANCE = 0.015

Attach = Callable[[], Session]


@dataclass(frozen=True)
class Block:
    """CPU seconds: of one step, of attaching, of detaching; and what the tool told when it came off."""

    step: float
    attach: float
    detach: float
    facts: Mapping[str, float]


@dataclass(frozen=True)
class Lengths:
    """Steps of a block: measured, and left out before that."""

    steps: int
    warm: int


@dataclass(frozen=True)
class Measured:
    """What rounds gave: `ratios` one a round, the rest medians over them, in CPU seconds."""

    ratios: list[float]
    bare_step: float
    extra_step: float
    attach: float
    detach: float
    facts: Mapping[str, float]


def null() -> Session:
    """The tool that does nothing."""
    return Session()


def _drain() -> None:
    """Wait, 2 seconds at most, until no thread is at work: what a tool puts off is its cost all the same."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(0.02)
        if time.process_time() - before < 2e-4:
            return


def block(workload: Workload, attach: Attach, lengths: Lengths) -> Block:
    """One block: attach, warm up, measure, detach."""
    optimizer = workload.optimizer
    start = time.process_time()
    session = attach()
    attached = time.process_time() - start

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            loss = workload.loss()
            loss.backward()
            session.after_backward(loss)
            optimizer.step()
            session.after_step(loss)

    try:
        steps(lengths.warm)
        gc.collect()
        start = time.process_time()
        steps(lengths.steps)
        _drain()
        step = (time.process_time() - start) / lengths.steps
    finally:
        start = time.process_time()
        session.detach()
        detached = time.process_time() - start
    return Block(step, attached, detached, session.facts())


def rounds(workload: Workload, attach: Attach, count: int, observed: Lengths, bare: Lengths) -> Measured:
    """`count` rounds of a bare block beside one with the tool."""
    pairs = []
    for i in range(count):
        if i % 2:
            with_it = block(workload, attach, observed)
            without = block(workload, null, bare)
        else:
            without = block(workload, null, bare)
            with_it = block(workload, attach, observed)
        pairs.append((without, with_it))
    return Measured(
        ratios=[b.step / a.step for a, b in pairs],
        bare_step=float(np.median([a.step for a, _ in pairs])),
        extra_step=float(np.median([b.step - a.step for a, b in pairs])),
        attach=float(np.median([b.attach for _, b in pairs])),
        detach=float(np.median([b.detach for _, b in pairs])),
        facts=pairs[-1][1].facts,
    )


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % of the medians of 2,000 samples drawn from the ratios with replacement (seed 0)."""
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)
