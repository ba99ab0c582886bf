"""Train a program of the corpus under the recorder, and ask every tool."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from benchmarks.detection.alarm import Tool
from benchmarks.detection.scoring import Outcome
from gradscope.recording import Recording
from tests.faults import Program, train


def record(program: Program, seed: int, folder: Path, histograms: bool = False) -> Recording:
    """The recording of one run; one that is in the folder already is read again."""
    path = folder / f"{program.name}-{seed}.gscope"
    if not path.exists():
        run = program.make(seed)
        with warnings.catch_warnings(), run.scope(log=path, histograms=histograms) as scope:
            warnings.simplefilter("ignore")  # of torch, about a NaN or a scheduler: the corpus is like that
            train(run, program.steps, scope)
    return Recording.load(path)


def outcomes(program: Program, seed: int, recording: Recording, tools: Mapping[str, Tool]) -> list[Outcome]:
    """What each tool says."""
    found = []
    for name, tool in tools.items():
        try:
            found.append(Outcome(program, seed, name, tool(recording)))
        except Exception as error:  # a tool that breaks has not found the fault, and the others go on
            found.append(Outcome(program, seed, name, (), f"{type(error).__name__}: {error}"))
    return found
