"""How many faults of the corpus the first trial that `prescribe` proposes cures: `python -m benchmarks.remedies`.

For each faulty program that `prescribe` can be given (its loop is the usual one and its fault there from the start)
and that a change of weights, scale, rate, clipping, precision or activation can cure, `prescribe` is asked, the best
trial is done to a fresh program, and this is trained for 200 steps beside the healthy twin. It is cured where its loss
ends within 10 % of the twin's, or below.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import math
import time
import warnings

import torch
from torch import Tensor

from gradscope import prescribe
from gradscope.diagnosis import Trials
from gradscope.experiments._patient import Patient, cast_floating, seed_all
from tests.faults import PROGRAMS, Program, Run, split, train
from tests.faults._program import first, last

STEPS = 200
FEWEST = 50
"""Each trial has as many steps as the program's own run, and so many at least."""
WITHIN = 0.1


def suits(program: Program, run: Run) -> bool:
    """Whether its loop is one that `prescribe` has, with the fault there from the first step."""
    usual = run.loop is None and run.before_step is None and run.accumulation == 1 and run.zero_grad and run.unscale
    return program.fault is not None and program.start == 0 and usual and run.optimizer is not None


def asked(run: Run, steps: int, seed: int) -> Trials:
    inputs, target = run.batch(0)
    return prescribe(
        run.model,
        inputs,
        target,
        run.loss_fn,
        run.optimizer,
        steps=steps,
        batches=run.batch,
        seed=seed,
        max_norm=run.clip,
        scaler=run.scaler,
        autocast=run.autocast,
    )


def changed(run: Run, trials: Trials, seed: int) -> Run:
    """The program with the best trial done to it; as it is where none helped."""
    best = trials.best
    if best is None or best.change is None:
        return run
    patient = Patient(run.model, run.optimizer, run.loss_fn, run.clip, run.scaler, run.autocast)
    seed_all(seed)
    best.change(patient)
    batch, loss_fn = run.batch, run.loss_fn

    def cast(step: int) -> tuple[Tensor, Tensor]:
        inputs, target = batch(step)
        return (inputs if patient.inputs_as is None else cast_floating(inputs, patient.inputs_as)), target

    return dataclasses.replace(
        run,
        model=patient.model,
        optimizer=patient.optimizer,
        batch=cast,
        loss_fn=lambda out, target: patient.factor * patient.loss_fn(out, target),
        metric=(run.metric or loss_fn) if patient.units == 1.0 else patient.loss_fn,
        clip=patient.max_norm,
        scaler=patient.scaler,
        autocast=patient.autocast,
    )


def as_good(end: float, goal: float) -> bool:
    return math.isfinite(end) and end <= goal + WITHIN * abs(goal)


def row(program: Program, seed: int) -> tuple[bool, bool, str] | None:
    """None where 200 steps show no fault: the program won nine tenths of what its twin wins by itself."""
    assert program.twin is not None
    sick = last(train(program.make(seed), STEPS))
    healthy = train(program.twin(seed), STEPS)
    goal = last(healthy)
    enough = goal + WITHIN * max(abs(goal), first(healthy) - goal)
    if math.isfinite(sick) and sick <= enough:
        return None
    begun = time.perf_counter()
    trials = asked(program.make(seed), max(FEWEST, program.steps), seed)
    took = time.perf_counter() - begun
    ends = train(changed(program.make(seed), trials, seed), STEPS)
    end = last(ends)
    cured = as_good(end, goal)
    progress = math.isfinite(end) and end <= enough
    found = ", ".join(one.rule for one in trials.before.findings) or "nothing found"
    best = "none helped" if trials.best is None else trials.best.remedy
    mark = "cured" if cured else "nearly" if progress else "no"
    numbers = f"{sick:10.3g}{end:10.3g}{goal:10.3g}"
    return cured, progress, f"{program.name:32}{program.cure:20}{mark:8}{numbers}  {best:38}{took:5.1f} s  {found}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remedies", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="globs")
    parser.add_argument("--half", choices=("tune", "held", "all"), default="all")
    parser.add_argument("--structural", action="store_true", help="also those for which none is expected")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{'program':32}{'cure':20}{'':8}{'as it is':>10}{'trial':>10}{'twin':>10}  best")
    found = []
    for program in PROGRAMS.values():
        if given.names and not any(fnmatch.fnmatch(program.name, glob) for glob in given.names):
            continue
        if program.fault is None or given.half not in ("all", split(program)):
            continue
        if (program.cure == "structural") != given.structural or not suits(program, program.make(given.seed)):
            continue
        try:
            measured = row(program, given.seed)
        except Exception as error:  # counts as not cured, and the table goes on
            measured = False, False, f"{program.name:32}{type(error).__name__}: {str(error)[:80]}"
        if measured is not None:
            found.append(measured[:2])
            print(measured[2], flush=True)
    if found:
        total = len(found)
        cured, progress = (sum(column) for column in zip(*found, strict=True))
        print(f"cured: {cured} of {total}, {cured / total:.0%}")
        print(f"won at least 90 % of what the twin won: {progress}, {progress / total:.0%}")


if __name__ == "__main__":
    main()
