"""Two runs cut to the steps that both have, so that a number of one stands beside the same number of the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gradscope.recording._baseline import Array, Baseline, baseline_of
from gradscope.recording._recording import Recording

Key = TypeVar("Key")


def at_common_steps(
    expected: Recording | Baseline, obtained: Recording | Baseline
) -> tuple[Baseline, Baseline, list[str]]:
    """Both as baselines of the same steps, at most a hundred of them, and notes of what was left out.

    Raises:
        TypeError: one is neither a recording nor a baseline.
        ValueError: no step is common to both.
    """
    for name, given in (("expected", expected), ("obtained", obtained)):
        if not isinstance(given, (Recording, Baseline)):
            raise TypeError(f"{name} is of type {type(given).__name__}; a Recording or a Baseline is allowed")
    common = np.intersect1d(expected.steps, obtained.steps)
    if not common.size:
        raise ValueError("the two runs have no step in common, so nothing can be compared")
    a, b = (one if isinstance(one, Baseline) else baseline_of(one, common) for one in (expected, obtained))
    steps = np.intersect1d(a.steps, b.steps)
    notes = []
    counts = len(expected.steps), len(obtained.steps)
    if len(common) < max(counts):
        have = f"{len(common)} step{'s' if len(common) > 1 else ''}"
        notes.append(f"of {counts[0]} and {counts[1]} steps both have {have}, and only there they are compared")
    if len(steps) < len(common):
        notes.append(f"of {len(common)} steps {len(steps)} are compared, evenly spread")
    return _cut(a, steps), _cut(b, steps), notes


def _cut(baseline: Baseline, steps: NDArray[np.int64]) -> Baseline:
    """The baseline at some of its steps."""
    at = np.isin(baseline.steps, steps)
    if at.all():
        return baseline
    return replace(
        baseline,
        steps=baseline.steps[at],
        sizes=_at(baseline.sizes, at),
        gradient_norm=baseline.gradient_norm[at],
        loss=baseline.loss[at],
        spread=_at(baseline.spread, at),
    )


def _at(sizes: Mapping[Key, Mapping[str, Array]], at: NDArray[np.bool_]) -> dict[Key, dict[str, Array]]:
    return {signal: {site: values[at] for site, values in of.items()} for signal, of in sizes.items()}
