"""`python -m benchmarks.papers [NAME …] [--out FOLDER] [--reduced]`: papers measured again, on one core.

Prints every row, leaves a picture of each paper in the folder (reports/papers), and puts the rows into docs/papers.md,
with the pictures that the page shows. At reduced size, as the tests run it, the page stays as it is. Ends with 1 where
a row does not hold.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.papers.gallery import PAPERS
from benchmarks.papers.page import rewrite, table
from gradscope.report._write import save_png

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "papers.md"
SHOWN = ("glorot2010", "pennington2017", "schoenholz2017")
"""Whose pictures the page has, in docs/images."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers", description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all by default: {', '.join(PAPERS)}")
    parser.add_argument("--out", type=Path, default=Path("reports/papers"), help="folder (default reports/papers)")
    parser.add_argument("--reduced", action="store_true", help="small and quick; leaves docs/papers.md alone")
    given = parser.parse_args()
    names = given.names or list(PAPERS)
    if unknown := [name for name in names if name not in PAPERS]:
        parser.error(f"NAME has {', '.join(unknown)}; there are {', '.join(PAPERS)}")
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in names:
        paper, started = PAPERS[name], time.perf_counter()
        rows = paper.reproduce(given.reduced)
        picture = paper.figure(given.reduced)
        save_png(picture, given.out / f"papers_{name}.png")
        print(f"{paper.citation}: {time.perf_counter() - started:.1f} s", flush=True)
        for row in rows:
            print(f"  {row}", flush=True)
            failed += not row.holds
        if not given.reduced:
            rewrite(PAGE, {name: table(rows)})
            if name in SHOWN:
                save_png(picture, ROOT / "docs" / "images" / f"papers_{name}.png")
    print(f"pictures in {given.out}/; {'every row holds' if not failed else f'{failed} rows do not hold'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
