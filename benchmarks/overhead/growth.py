"""How the cost grows: `python -m benchmarks.overhead.growth [--tools gradscope] [--rounds 10] [--out FOLDER]`.

Against the number of sites (an MLP of width 64, 5 to 200 layers), of elements (10 layers, width 64 to 2048), and of
steps already recorded (width 64, 20 layers). Saves growth.json and growth.png. Run it where nothing else runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from benchmarks.overhead.endurance import Endurance
from benchmarks.overhead.growth_picture import draw
from benchmarks.overhead.machine import machine
from benchmarks.overhead.processes import endured, measured
from benchmarks.overhead.result import Result
from benchmarks.overhead.tools import TOOLS

DEPTHS = (5, 10, 20, 50, 100, 200)
WIDTHS = (64, 128, 256, 512, 1024, 2048)
TOOLS_SHOWN = ("gradscope", "gradscope-tenth", "gradscope-torch")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead.growth", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=TOOLS_SHOWN, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of blocks for each point (default 10)")
    parser.add_argument("--tries", type=int, default=3, help="how often at most, where the machine was not quiet")
    parser.add_argument("--steps", type=int, default=5000, help="length of the long run (default 5000)")
    parser.add_argument("--out", type=Path, default=Path("reports/overhead"), help="folder (default reports/overhead)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)

    def points(tool: str, names: list[str]) -> list[Result]:
        found = []
        for name in names:
            found.append(measured(tool, name, given.rounds, given.tries))
            print(f"{name} {found[-1].summary()}", flush=True)
        return found

    sites = {tool: points(tool, [f"mlp-64x{depth}" for depth in DEPTHS]) for tool in given.tools}
    elements = {tool: points(tool, [f"mlp-{width}x10" for width in WIDTHS]) for tool in given.tools}
    steps: dict[str, Endurance] = {tool: endured(tool, "mlp-64x20", given.steps) for tool in given.tools}
    content = {
        "machine": machine(),
        "sites": {tool: [dataclasses.asdict(result) for result in results] for tool, results in sites.items()},
        "elements": {tool: [dataclasses.asdict(result) for result in results] for tool, results in elements.items()},
        "steps": {tool: dataclasses.asdict(endurance) for tool, endurance in steps.items()},
    }
    (given.out / "growth.json").write_text(json.dumps(content, indent=1))
    draw(sites, elements, steps, given.out / "growth.png")


if __name__ == "__main__":
    main()
