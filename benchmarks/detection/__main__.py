"""`python -m benchmarks.detection [--corpus seen|unseen|second] [--half tune|held|all] [--tool NAME ...] [--mistakes]`.

Trains the corpus, asks every tool, and prints the scores in Markdown; with `--mistakes` also each one's mistakes. With
`--out` the recordings stay in the folder, and a second call reads them instead of training again.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.detection import table
from benchmarks.detection.alarm import Tool
from benchmarks.detection.running import outcomes, record
from benchmarks.detection.scoring import Outcome, Score
from benchmarks.detection.tools import TOOLS, available
from tests.faults import Program, of_half
from tests.faults_second import PROGRAMS as SECOND
from tests.faults_unseen import PROGRAMS as UNSEEN

OTHERS = {"unseen": UNSEEN, "second": SECOND}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--corpus", choices=("seen", *OTHERS), default="seen", help="only seen has halves")
    parser.add_argument("--half", choices=("tune", "held", "all"), default="all")
    parser.add_argument("--seeds", type=int, default=1, help="each program with so many seeds, from 0 (default 1)")
    parser.add_argument("--tool", nargs="+", choices=list(TOOLS), metavar="NAME", help=", ".join(TOOLS))
    parser.add_argument("--names", nargs="+", default=["*"], metavar="GLOB", help="of programs")
    parser.add_argument("--mistakes", action="store_true", help="list them, and each kind of fault, for each tool")
    parser.add_argument("--histograms", action="store_true", help="record these too")
    parser.add_argument("--out", type=Path, help="folder in which the recordings stay")
    given = parser.parse_args()
    tools = {name: tool for name, tool in available().items() if name in (given.tool or TOOLS)}
    if not tools:
        parser.error("none of these tools can run: this gradscope has no `diagnose`")
    corpus = of_half(given.half) if given.corpus == "seen" else list(OTHERS[given.corpus].values())
    programs = [p for p in corpus if any(fnmatch.fnmatch(p.name, glob) for glob in given.names)]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as spare:
        folder = given.out or Path(spare)
        folder.mkdir(parents=True, exist_ok=True)
        found = _all(programs, range(given.seeds), tools, folder, given.histograms)
    print(_page(found, list(tools), given.mistakes))


def _all(
    programs: list[Program], seeds: range, tools: dict[str, Tool], folder: Path, histograms: bool
) -> list[Outcome]:
    found: list[Outcome] = []
    for i, program in enumerate(programs):
        if sys.stderr.isatty():
            print(f"\r{i + 1} of {len(programs)}: {program.name:40}", end="", file=sys.stderr, flush=True)
        for seed in seeds:
            found += outcomes(program, seed, record(program, seed, folder, histograms), tools)
    return found


def _page(found: list[Outcome], tools: list[str], mistakes: bool) -> str:
    parts = [table.scores(Score.of(tool, found) for tool in tools)]
    for tool in tools if mistakes else []:
        parts += [f"## {tool}\n", table.families(tool, found), table.mistakes(tool, found)]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
