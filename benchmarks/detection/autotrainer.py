"""AutoTrainer's detectors (Zhang et al. 2021, ICSE), at the thresholds of its source.

| problem | condition | named here |
| --- | --- | --- |
| vanishing | norm of the first kernel's gradient over the last's < 1e-3, and of the first < 1e-4 | vanishing-gradient |
| exploding | that ratio > 70 | exploding-gradient |
| exploding | NaN in weights or gradients, with a NaN loss | non-finite |
| dying ReLU | ≥ 70 % of all gradients' entries exactly 0 | dead-units |
| bad data | mean of a layer's absolute outputs ≥ 10 | input-scale |

Its oscillating and slow training are told from accuracies, which are in no recording. That outputs sum to 1 is demanded
of a softmax layer; torch's losses take logits, so it is left out.
"""

from __future__ import annotations

import numpy as np

from benchmarks.detection.alarm import Alarm, in_order
from benchmarks.detection.reading import Columns, broken, columns, kernels, mean_abs
from gradscope.recording import Recording


def autotrainer(recording: Recording) -> tuple[Alarm, ...]:
    """Every alarm, by step."""
    first, ratio = _ends(recording)
    outputs = mean_abs(recording, "activation").where(lambda site: site.role != "input")
    return in_order(
        [
            broken(recording),
            ratio.alarm("vanishing-gradient", (ratio.values < 1e-3) & (first.values < 1e-4)),
            ratio.alarm("exploding-gradient", ratio.values > 70),
            _dying(recording),
            outputs.alarm("input-scale", outputs.values >= 10),
        ]
    )


def _ends(recording: Recording) -> tuple[Columns, Columns]:
    """Norm of the first kernel's gradient, and its ratio to the last's; both empty where there are not two."""
    rms, count = (kernels(columns(recording, "weight_grad", stat)) for stat in ("rms", "count"))
    norms = rms.values * np.sqrt(count.values)
    if len(rms.sites) < 2:
        nothing = Columns((), rms.steps, norms[:, :0])
        return nothing, nothing
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = norms[:, :1] / norms[:, -1:]
    return Columns(rms.sites[:1], rms.steps, norms[:, :1]), Columns(rms.sites[:1], rms.steps, ratio)


def _dying(recording: Recording) -> Alarm | None:
    zeros, count = (columns(recording, "weight_grad", stat) for stat in ("zero_fraction", "count"))
    with np.errstate(invalid="ignore"):
        share = np.nansum(zeros.values * count.values, 1) / np.maximum(np.nansum(count.values, 1), 1)
    late = np.flatnonzero(share >= 0.7)
    if not late.size:
        return None
    names = tuple(site.name for i, site in enumerate(zeros.sites) if zeros.values[late[0], i] >= 0.7)
    return Alarm("dead-units", names, int(zeros.steps[late[0]]))
