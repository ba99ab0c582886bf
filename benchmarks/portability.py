"""How far another torch, or another processor's kernels, move what a baseline holds: what its tolerances have to cover.

`python -m benchmarks.portability write DIR`, then `read DIR` under another torch, or with the kernels of an older
processor, as `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2`. Baselines are of one
probe of each model of tests/cases.py, and of three steps of SGD of the models of `benchmarks.sensitivity`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.sensitivity import MODELS, Recipe, run
from gradscope.recording import Baseline, baseline_of, compare
from gradscope.testing import load_baseline, save_baseline
from gradscope.testing._deterministic import seeded
from gradscope.testing._observe import Subject, observed
from tests.cases import CASES, Case, call

_ALL = 1e-9
"""A tolerance below the rounding of the file."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("write", "read"))
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    worst: list[tuple[float, str, str]] = []
    for name, make in subjects():
        path = options.directory / f"{name}.json"
        if options.what == "write":
            save_baseline(make(), path)
            continue
        found = compare(load_baseline(path), make(), _ALL)
        first = found.differences[0] if found.differences else None
        said = "; ".join(change.text for change in found.changes) or (first.place if first else "nothing")
        worst.append((10 ** abs(first.decades) - 1 if first else 0.0, name, said))
    for away, name, said in sorted(worst, reverse=True)[:10]:
        print(f"{away:.2g} relative: {name}, {said}")


def subjects() -> Iterator[tuple[str, Callable[[], Baseline]]]:
    for case in CASES:
        yield str(case).replace("/", "-"), partial(probed, case)
    for model in MODELS:
        for seed in range(3):
            yield f"{model}-{seed}", partial(run, model, Recipe(), seed)


def probed(case: Case) -> Baseline:
    def make() -> nn.Module:
        model = case.model()
        if case.name == "lazy":
            call(model, case.inputs())
        return model

    with seeded(0):
        inputs = case.inputs()
    return baseline_of(observed(Subject(make, inputs), 0))


if __name__ == "__main__":
    main()
