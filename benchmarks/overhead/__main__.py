"""`python -m benchmarks.overhead [--tools gradscope wandb] [--workloads W1 W2] [--rounds 40] [--out FOLDER]`.

Each tool on each workload in a process of its own; prints the table and saves it as overhead.json, .md and .png. What a
former run of the same machine left in the folder stays, and is replaced where it is measured again: so peers that do
not install together can be measured from two environments. Run it where nothing else runs: it takes about 2 hours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.overhead.picture import draw
from benchmarks.overhead.processes import measured
from benchmarks.overhead.result import ResultFile
from benchmarks.overhead.table import markdown
from benchmarks.overhead.tools import TOOLS, tool
from benchmarks.overhead.workloads import WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), metavar="NAME", help=", ".join(TOOLS))
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), metavar="NAME", help="W1 to W4")
    parser.add_argument("--rounds", type=int, default=40, help="pairs of blocks for each figure (default 40)")
    parser.add_argument("--tries", type=int, default=3, help="how often at most, where the machine was not quiet")
    parser.add_argument("--out", type=Path, default=Path("reports/overhead"), help="folder (default reports/overhead)")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error(f"--rounds is {given.rounds}; a median needs at least 2, a figure to publish 20")
    unknown = [name for name in given.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"--workloads has {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    try:
        names = [tool(name).name for name in given.tools]
        given.out.mkdir(parents=True, exist_ok=True)
        results = ResultFile(given.out / "overhead.json")
    except ValueError as error:
        parser.error(str(error))
    for workload in given.workloads:
        for name in names:
            result = measured(name, workload, given.rounds, given.tries)
            results.add(result)
            print(f"{workload} {result.summary()}", flush=True)
    table = markdown(results)
    print(f"\n{table}")
    (given.out / "overhead.md").write_text(table)
    draw(results, given.out / "overhead.png")


if __name__ == "__main__":
    main()
