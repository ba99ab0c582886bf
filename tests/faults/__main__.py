"""`python -m tests.faults [NAME ...] [--seed 0]`: trains programs and shows what their losses did."""

from __future__ import annotations

import argparse
import fnmatch
import time
from collections.abc import Mapping

import torch

from tests.faults import PROGRAMS, Program, has_learned, is_worse, train


def line(program: Program, seed: int) -> str:
    begun = time.perf_counter()
    run = program.make(seed)
    losses = train(run, program.steps)
    took = time.perf_counter() - begun
    begun = time.perf_counter()
    again = program.make(seed)
    with again.scope() as scope:
        train(again, program.steps, scope)
    scoped = time.perf_counter() - begun
    shown = f"{losses[0]:9.3g} -> {losses[len(losses) // 2]:9.3g} -> {losses[-1]:9.3g}"
    if program.twin is None:
        good = has_learned(program, losses)
    else:
        twin = train(program.twin(seed), program.steps)
        worse = is_worse(program, losses, twin)
        static = program.static is not None and program.static(run)
        good = worse or static
        shown += f"  twin {twin[0]:9.3g} -> {twin[-1]:9.3g}{' worse' if worse else ''}{' static' if static else ''}"
    mark = "   " if good else "!! "
    return f"{mark}{program.name:34} {program.fault or 'healthy':20} {took:5.2f} {scoped:5.2f} s  {shown}"


def main(programs: Mapping[str, Program] = PROGRAMS) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="globs")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for program in programs.values():
        if not given.names or any(fnmatch.fnmatch(program.name, glob) for glob in given.names):
            try:
                print(line(program, given.seed), flush=True)
            except Exception as error:
                print(f"!! {program.name}: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
