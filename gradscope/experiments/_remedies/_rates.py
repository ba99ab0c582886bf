"""What an optimizer does with the gradient: its rate, the rates of its groups, its decay."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from gradscope.diagnosis._condition import mean_of_tail
from gradscope.diagnosis._evidence import START, Evidence, median
from gradscope.diagnosis._limits import Limits
from gradscope.diagnosis._verdict import room
from gradscope.experiments._patient import Patient
from gradscope.experiments._remedies._registry import Case, Change, remedy

TARGET = 3e-3
"""Relative update of a layer, from whose rate the range test starts: between 1e-3 and 1e-2 is usual."""

RANGE = tuple(3.0**k for k in range(-3, 4))
"""Times the rate for that."""

_STEPS = (
    "update-too-large",
    "update-too-small",
    "gradient-spike",
    "exploding-activation",
    "exploding-gradient",
    "non-finite",
    "dtype-overflow",
    "dead-units",
    "saturated-units",
    "collapsed-batch",
    "uneven-learning",
    "vanishing-gradient",
    "vanishing-activation",
    "clipping-always",
    "loss-scale",
)


WITH_A_RATE = "with another learning rate"

APART = 100.0
"""Rates of two groups that differ by more are not meant so."""


@remedy("learning rate", rules=_STEPS, causes=("learning rate", "update", "weights grew"))
def learning_rate(case: Case) -> Change | None:
    """The rate with which the loss falls lowest, among powers of 3 about that of a usual relative update.

    Of rates that are as good after so few steps the smallest: it is the one that goes on falling.
    """
    optimizer = case.patient.optimizer
    if optimizer is None or not any(_number(group["lr"]) > 0 for group in optimizer.param_groups):
        return None
    rates = [_number(group["lr"]) for group in optimizer.param_groups]
    if max(rates) > APART * min(rate for rate in rates if rate > 0):  # no common factor is right for them
        return None
    factor = ranged(case, factor_to_target(case), named=_named(case, rates[0]))
    if factor is None:
        return None
    shown = f"{rates[0] * factor:.3g}"
    if len(set(rates)) == 1:
        code = ("for group in optimizer.param_groups:", f"    group['lr'] = {shown}")
        return Change(code, to_all(float(shown)), "optimizer", shown)
    factor = float(f"{factor:.3g}")
    code = ("for group in optimizer.param_groups:", f"    group['lr'] *= {factor:.3g}")
    return Change(code, times(factor), "optimizer", f"× {factor:.3g}")


def _named(case: Case, rate: float) -> tuple[float, ...]:
    """The factor to the rate that the finding itself names."""
    found = re.search(r"to about (\d[\d.e+-]*)", case.finding.remedy)
    return (float(found[1]) / rate,) if found and rate > 0 else ()


def ranged(
    case: Case, centre: float, also: Callable[[Patient], None] | None = None, named: tuple[float, ...] = ()
) -> float | None:
    """The factor on the rate, near `centre` or named, with which the loss falls lowest once `also` is done; None: with
    none."""
    losses = {}
    for factor in (*named, *(centre * power for power in RANGE)):

        def do(patient: Patient, factor: float = factor) -> None:
            if also is not None:
                also(patient)
            times(factor)(patient)

        losses[factor] = mean_of_tail(case.tried(do).losses)
    best = min(losses.values())
    good = [factor for factor, loss in losses.items() if loss <= best + room(case.course.losses[0], best)]
    return min(good) if math.isfinite(best) else None


def _number(value: Any) -> float:
    return float(value)


def times(factor: float) -> Any:
    def do(patient: Patient) -> None:
        for group in patient.optimizer.param_groups if patient.optimizer is not None else ():
            group["lr"] = group["lr"] * factor

    return do


def factor_to_target(case: Case) -> float:
    """By which the rate has to change for a usual relative update, by the first recorded steps."""
    recording = case.course.recording
    if recording is None:
        return 1.0
    evidence = Evidence(recording, Limits())
    if not len(evidence.at) or not evidence.has("update"):
        return 1e-2
    ratio = median(evidence.relative_update[:START])
    known = ratio[np.isfinite(ratio) & (ratio > 0)]
    if not known.size:
        return 1e-2
    return TARGET / float(np.median(known))


@remedy(WITH_A_RATE, rules=())
def best_and_a_rate(case: Case) -> Change | None:
    """The best remedy so far, and the rate with which the loss falls lowest then: weights and rate go together."""
    best, optimizer = case.best, case.patient.optimizer
    if best is None or best.change is None or optimizer is None or any("['lr']" in line for line in best.code):
        return None
    rates = {_number(group["lr"]) for group in optimizer.param_groups}
    factor = ranged(case, 1.0, best.change) if len(rates) == 1 and min(rates) > 0 else None
    if factor is None or factor == 1.0:
        return None
    rate, change = f"{rates.pop() * factor:.3g}", best.change

    def do(patient: Patient) -> None:
        change(patient)
        to_all(float(rate))(patient)

    code = (*best.code, "for group in optimizer.param_groups:", f"    group['lr'] = {rate}")
    return Change(code, do, "loop" if best.changes == "loop" else "optimizer", f"{best.remedy}, learning rate {rate}")


@remedy("one learning rate for all", rules=("uneven-learning", "update-too-large", "update-too-small", "no-gradient"),
        causes=("odd one out", "learning rate"))  # fmt: skip
def one_rate(case: Case) -> Change | None:
    """The same rate in each group of the optimizer: that of its own with which the loss falls lowest."""
    optimizer = case.patient.optimizer
    rates = sorted({_number(g["lr"]) for g in optimizer.param_groups}) if optimizer is not None else []
    if len(rates) < 2 or (rates[0] > 0 and rates[-1] / rates[0] < 10):
        return None
    losses = {rate: mean_of_tail(case.tried(to_all(rate)).losses) for rate in rates if rate > 0}
    if not losses or not math.isfinite(min(losses.values())):
        return None
    rate = min(losses, key=lambda one: losses[one])
    code = ("for group in optimizer.param_groups:", f"    group['lr'] = {rate:.6g}")
    return Change(code, to_all(rate), "optimizer", f"{rate:.3g}")


def to_all(rate: float) -> Any:
    def do(patient: Patient) -> None:
        for group in patient.optimizer.param_groups if patient.optimizer is not None else ():
            group["lr"] = rate

    return do


@remedy("no weight decay", rules=("vanishing-activation", "vanishing-gradient", "collapsed-batch", "dead-units",
                                  "update-too-large", "symmetric-units"),
        causes=("weight decay", "weights shrank", "decay"))  # fmt: skip
def no_decay(case: Case) -> Change | None:
    """Weight decay 0 in each group of the optimizer."""
    optimizer = case.patient.optimizer
    if optimizer is None or not any(group.get("weight_decay") for group in optimizer.param_groups):
        return None

    def do(patient: Patient) -> None:
        for group in patient.optimizer.param_groups if patient.optimizer is not None else ():
            group["weight_decay"] = 0.0

    return Change(("for group in optimizer.param_groups:", "    group['weight_decay'] = 0.0"), do, "optimizer")
