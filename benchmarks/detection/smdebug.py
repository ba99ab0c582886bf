"""AWS SageMaker Debugger's built-in rules, at their documented defaults.

| rule | condition | named here |
| --- | --- | --- |
| ExplodingTensor | any NaN or infinity | non-finite |
| VanishingGradient | mean of the gradient's absolute values < 1e-7 | vanishing-gradient |
| AllZero | all of a gradient is zero | no-gradient |
| DeadRelu | a unit is active for < 1 %; fires if > 50 % of a layer's units are dead | dead-units |
| SaturatedActivation | > 50 % of a layer's inputs beyond ±9.4999 (tanh), 16.99999 (sigmoid) | saturated-units |
| PoorWeightInitialization | largest over smallest variance of the layers' weights > 10, in the first 10 steps, or for 5 steps the smallest range of gradients from the 5th to the 95th percentile < 0.001 | init-mismatch |
| WeightUpdateRatio | mean of updates over mean of weights > 10 or < 1e-8 | update-too-large, update-too-small |
| TensorVariance, of weights | variance > 10 or < 1e-5 | init-mismatch |

LossNotDecreasing names no cause. UnchangedTensor (of 3 steps, relative 1e-5, absolute 1e-8) is told as update-too-small.
"""  # noqa: E501

from __future__ import annotations

import numpy as np

from benchmarks.detection.alarm import Alarm, in_order
from benchmarks.detection.reading import (
    PERCENTILES_5_TO_95,
    broken,
    columns,
    dead_share,
    kernels,
    mean_abs,
    share_beyond,
    update_ratio,
)
from gradscope.recording import Recording


def smdebug(recording: Recording) -> tuple[Alarm, ...]:
    """Every alarm, by step."""
    gradients, zeros = mean_abs(recording, "weight_grad"), columns(recording, "weight_grad", "zero_fraction")
    dead, ratio = dead_share(recording), update_ratio(recording)
    weights = kernels(columns(recording, "weight", "var"))
    return in_order(
        [
            broken(recording),
            zeros.alarm("no-gradient", zeros.values == 1),
            gradients.alarm("vanishing-gradient", gradients.values < 1e-7),
            dead.alarm("dead-units", dead.values > 0.5),
            _saturated(recording, "tanh", 9.4999),
            _saturated(recording, "sigmoid", 16.99999),
            _poor_weights(recording),
            weights.alarm("init-mismatch", (weights.values > 10) | (weights.values < 1e-5)),
            ratio.alarm("update-too-large", ratio.values > 10),
            ratio.alarm("update-too-small", ratio.values < 1e-8),
            _unchanged(recording),
        ]
    )


def _saturated(recording: Recording, act: str, limit: float) -> Alarm | None:
    found = share_beyond(recording, limit).where(lambda site: (site.activation_after or "").lower() == act)
    return found.alarm("saturated-units", found.values > 0.5)


def _poor_weights(recording: Recording) -> Alarm | None:
    variance = kernels(columns(recording, "weight", "var"))
    early = variance.steps < 10
    if variance.sites and early.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = variance.values[early].max(1) / variance.values[early].min(1)
        if (spread > 10).any():
            worst = int(np.argmin(variance.values[early][0]))
            return Alarm("init-mismatch", (variance.sites[worst].name,), int(variance.steps[early][spread > 10][0]))
    deviation = kernels(columns(recording, "weight_grad", "std"))
    narrow = PERCENTILES_5_TO_95 * deviation.values < 0.001
    return deviation.alarm("init-mismatch", narrow & (deviation.steps < 10)[:, None], patience=5)


def _unchanged(recording: Recording) -> Alarm | None:
    updates, weights = columns(recording, "update", "abs_max"), columns(recording, "weight", "rms")
    place = {site.name: i for i, site in enumerate(weights.sites)}
    found = updates.where(lambda site: site.name in place)
    limit = 1e-8 + 1e-5 * weights.values[:, [place[site.name] for site in found.sites]]
    return found.alarm("update-too-small", found.values <= limit, patience=3)
