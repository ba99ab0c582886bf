"""What `on_finding` costs: a training step with it, over the same step recorded without it.

python benchmarks/on_finding.py [ROUNDS [STEPS]]

A multilayer perceptron of 8 × 64, batch 128, Adam, on classes that it learns: a healthy run, of which nothing is told.
ROUNDS (31) rounds of STEPS (300) steps, each a run from the start, one with and one without `on_finding` and one that
is not recorded, in turns and in changing order; the ratio of a round is of process times, and figures are medians over
rounds. The first steps, at which the rules are asked one after the other, are part of each run.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch
from torch import nn

from gradscope import Finding, GradScope
from gradscope.diagnosis import Watch

KINDS = ("bare", "recorded", "with on_finding")


def run(kind: str, steps: int) -> float:
    """Seconds of process time a step."""
    torch.manual_seed(0)
    hidden = (m for _ in range(8) for m in (nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU()))
    model = nn.Sequential(*hidden, nn.Linear(64, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    centres = torch.randn(8, 64)
    told: list[Finding] = []
    settings = {"on_finding": told.append} if kind == "with on_finding" else {}
    scope = None if kind == "bare" else GradScope(model, optimizer, every=1, **settings)
    start = time.process_time()
    for _ in range(steps):
        target = torch.randint(8, (128,))
        loss = nn.functional.cross_entropy(model(centres[target] + torch.randn(128, 64)), target)
        optimizer.zero_grad()
        if scope is not None:
            scope.note(loss=loss)
        loss.backward()
        optimizer.step()
    if scope is not None:
        scope.close()
    spent = (time.process_time() - start) / steps
    assert not told, told
    return spent


def looks(steps: int) -> int:
    """How often the rules are asked in so many recorded steps that are like each other."""
    count = 0

    class Counting(Watch):
        def look(self, *_: object) -> None:
            nonlocal count
            count += 1

    watch = Counting(print)
    for step in range(steps):
        watch.step_recorded(None, step, {})  # type: ignore[arg-type]  # `look` is not the watch's own
    return count


def main() -> None:
    given = [int(word) for word in sys.argv[1:]]
    rounds, steps = (*given, *(31, 300)[len(given) :])
    torch.set_num_threads(1)
    run("with on_finding", 20)
    spent: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for i in range(rounds):
        for kind in (KINDS, KINDS[::-1])[i % 2]:
            spent[kind].append(run(kind, steps))
    bare, recorded, watched = (spent[kind] for kind in KINDS)
    extra = median(b - a for a, b in zip(recorded, watched, strict=True))
    asked = looks(steps)
    print(f"{rounds} rounds of {steps} steps; medians")
    print(f"bare {1e6 * median(bare):.0f} µs a step; recorded {_ratio(recorded, bare):.3f} × that")
    print(
        f"with on_finding {_ratio(watched, recorded):.3f} × a recorded step: {1e6 * extra:.0f} µs a step more, "
        f"{1e3 * extra * steps / asked:.1f} ms for each of the {asked} times at which the rules are asked"
    )


def _ratio(one: list[float], other: list[float]) -> float:
    return median(a / b for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    main()
