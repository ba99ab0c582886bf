"""DeepDiagnosis' detectors (Wardat et al. 2022, ICSE), with DeepLocalize's check of numbers, as in their source.

| symptom | condition | named here |
| --- | --- | --- |
| numerical error | NaN, infinity, or a mean of exactly 0, in any layer's output, weights or gradients | non-finite |
| vanishing gradient | mean of the gradient's absolute values < 1e-7 | vanishing-gradient |
| saturated activation | > 50 % of pre-activations with size ≥ 5 | saturated-units |
| dead node | ≥ 70 % of a layer's outputs ≤ 0 | dead-units |
| poor weights | variance beyond [1e-5, 10] | init-mismatch |
| update ratio | rate × gradient / weight beyond [1e-5, 1e-1] | update-too-large, update-too-small |
| input | beyond [−1, 1] | input-scale |

A mean of 0 counts of outputs and kernels' gradients; torch's own biases and norms begin with 0. Standardized inputs are
beyond [−1, 1], so the rule about the input fires on most programs, before all others: `without_input` leaves it out.
"""

from __future__ import annotations

from benchmarks.detection.alarm import Alarm, in_order
from benchmarks.detection.reading import (
    RELU,
    broken,
    columns,
    kernels,
    mean_abs,
    share_beyond,
    update_ratio,
)
from gradscope.recording import Recording


def deepdiagnosis(recording: Recording) -> tuple[Alarm, ...]:
    """Every alarm, by step."""
    gradients, ratio = kernels(mean_abs(recording, "weight_grad")), kernels(update_ratio(recording))
    saturated = share_beyond(recording, 5.0)
    silent = columns(recording, "activation", "zero_fraction").where(lambda site: site.module_type in RELU)
    weights = kernels(columns(recording, "weight", "var"))
    largest = columns(recording, "activation", "abs_max").where(lambda site: site.role == "input")
    outputs = columns(recording, "activation", "mean").where(lambda site: site.role != "input")
    means = kernels(columns(recording, "weight_grad", "mean"))
    return in_order(
        [
            largest.alarm("input-scale", largest.values > 1),
            broken(recording),
            outputs.alarm("non-finite", outputs.values == 0),
            means.alarm("non-finite", means.values == 0),
            weights.alarm("init-mismatch", (weights.values > 10) | (weights.values < 1e-5)),
            silent.alarm("dead-units", silent.values >= 0.7),
            saturated.alarm("saturated-units", saturated.values > 0.5),
            gradients.alarm("vanishing-gradient", gradients.values < 1e-7),
            ratio.alarm("update-too-large", ratio.values > 1e-1),
            ratio.alarm("update-too-small", ratio.values < 1e-5),
        ]
    )


def without_input(recording: Recording) -> tuple[Alarm, ...]:
    """Every alarm but that about the input."""
    return tuple(alarm for alarm in deepdiagnosis(recording) if alarm.family != "input-scale")
