"""Which initial weights keep which model's signal: `python -m benchmarks.init_table [docs/schemes.md]`.

Each scheme on each model of the zoo of `tests/test_prediction.py`, measured by a probe: the decades between the largest
and the smallest rms of the layers' pre-activations or their gradients, the larger of the two, median of 3 networks.
Writes the table between its markers. About 4 minutes on one core.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gradscope import init, probe
from gradscope.experiments._suggest import strayed as strayed_of
from gradscope.init._model_schemes._branches import branches
from tests.test_init_model_schemes import Residual, plain
from tests.test_prediction import MODELS

BEGIN, END = "<!-- init table: begin -->", "<!-- init table: end -->"
SEEDS = 3
SCHEMES: dict[str, Any] = {
    "auto": "auto",
    "propagate": "propagate",
    "by activation": {"*": "auto"},
    **{name: name for name in ("edge_of_chaos", "lsuv", "scaled_branches", "he_normal", "glorot_normal")},
    **{name: name for name in ("lecun_normal", "orthogonal")},
}
"""Column → scheme. In a pattern, as without inputs, `auto` looks at the activation that follows alone."""


def _plain(activation: Callable[[], nn.Module]) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (plain(activation, 30), torch.randn(16, 256))


ZOO: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "30 × tanh": _plain(nn.Tanh),
    "30 × ReLU": _plain(nn.ReLU),
    "30 × GELU": _plain(nn.GELU),
    "24 residual branches": lambda: (Residual(24, 128, 10), torch.randn(16, 128)),
    **MODELS,
}


def strayed(model: nn.Module, inputs: Any, scheme: Any, seed: int) -> float | None:
    """Decades, None where the scheme is not for this model."""
    tried = copy.deepcopy(model)
    if scheme is not None:
        try:
            init.initialize(tried, scheme, generator=torch.Generator().manual_seed(seed), inputs=inputs)
        except ValueError:
            return None
    return max(map(abs, strayed_of(probe(tried, inputs), branches(model, inputs))))


def row(make: Callable[[], tuple[nn.Module, Any]]) -> list[float | None]:
    """As it is, and by each scheme."""
    found: list[list[float | None]] = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        model, inputs = make()
        found.append([strayed(model, inputs, scheme, seed) for scheme in (None, *SCHEMES.values())])
    return [None if None in column else float(np.median(column)) for column in zip(*found, strict=True)]  # type: ignore[arg-type]


def main() -> None:
    lines = [f"| model | as it is | {' | '.join(SCHEMES)} |", "| --- |" + " --- |" * (len(SCHEMES) + 1)]
    for name, make in ZOO.items():
        values = row(make)
        best = min(value for value in values if value is not None)
        cells = ["–" if v is None else f"**{v:.2f}**" if v <= best + 0.05 else f"{v:.2f}" for v in values]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    for path in map(Path, sys.argv[1:]):
        text = path.read_text()
        start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
        path.write_text(f"{text[:start]}\n\n{table}\n\n{text[end:]}")


if __name__ == "__main__":
    main()
