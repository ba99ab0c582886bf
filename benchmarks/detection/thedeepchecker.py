"""TheDeepChecker's rules (Ben Braiek & Khomh 2022, TOSEM), at its default thresholds.

| check | condition | named here |
| --- | --- | --- |
| numbers | NaN or infinity | non-finite |
| vanishing | mean absolute gradient < 1e-6, or halved at each of 5 steps | vanishing-gradient |
| exploding | mean absolute gradient > 1e6, or doubled at each of 5 steps | exploding-gradient |
| activations | std beyond [0.5, 2], from step 10, at 5 checks each 10 steps apart | vanishing-, exploding-activation |
| dead | 95th percentile of the activation < 1e-5 in > 50 % of units | dead-units |
| saturated | ρ_B ≥ 0.85 in > 50 % of units | saturated-units |
| updates | log10 of mean absolute update over weight beyond [−4, −1] | update-too-large, update-too-small |
| initial weights | all alike | symmetric-units |
| initial weights | F-test (0.1) of their variance against He, Glorot, LeCun | init-mismatch |

The initial loss against −log(1/C) is left out: nothing in a recording says that there are classes. ρ_B, the mean size
of an output scaled to [−1, 1], is taken as its root mean square. The F-test judges each layer by itself, as published:
torch's own default for linear layers, of variance 1/(3 fan_in), is none of the three, so it fires on most programs.
`without_test` leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.detection.alarm import Alarm, in_order
from benchmarks.detection.reading import Columns, Values, broken, columns, dead_share, kernels, mean_abs, update_ratio
from gradscope.recording import Recording

WINDOW = 5
BELOW_5_PERCENT = 1.645
"""Standard deviations of log variance either side that a two-sided test at 0.1 allows."""


def thedeepchecker(recording: Recording) -> tuple[Alarm, ...]:
    """Every alarm, by step."""
    gradients, ratio = kernels(mean_abs(recording, "weight_grad")), kernels(update_ratio(recording))
    halved, doubled = _trend(gradients, lambda r: r <= 0.5), _trend(gradients, lambda r: r >= 2)
    spread = _checked(columns(recording, "activation", "std").where(lambda site: site.role == "activation"))
    dead = dead_share(recording)
    return in_order(
        [
            *_initial(recording),
            broken(recording),
            gradients.alarm("vanishing-gradient", (gradients.values < 1e-6) | halved),
            gradients.alarm("exploding-gradient", (gradients.values > 1e6) | doubled),
            spread.alarm("vanishing-activation", spread.values < 0.5, patience=5),
            spread.alarm("exploding-activation", spread.values > 2.0, patience=5),
            dead.alarm("dead-units", dead.values > 0.5),
            _saturated(recording),
            ratio.alarm("update-too-large", ratio.values > 1e-1),
            ratio.alarm("update-too-small", ratio.values < 1e-4),
        ]
    )


def without_test(recording: Recording) -> tuple[Alarm, ...]:
    """Every alarm but that of the F-test."""
    return tuple(alarm for alarm in thedeepchecker(recording) if alarm.family != "init-mismatch")


def _trend(found: Columns, wanted: Callable[[Values], NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Where each of the last five steps changed it so."""
    out = np.zeros(found.values.shape, dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        so = wanted(found.values[1:] / found.values[:-1])
    for t in range(WINDOW, len(found.values)):
        out[t] = so[t - WINDOW : t].all(0)
    return out


def _checked(found: Columns) -> Columns:
    """Each tenth step from step 10 on."""
    kept = (found.steps >= 10) & (found.steps % 10 == 0)
    return Columns(found.sites, found.steps[kept], found.values[kept])


def _saturated(recording: Recording) -> Alarm | None:
    alarms = []
    for kind, scale, shift in (("Tanh", 1.0, 0.0), ("Sigmoid", 2.0, -1.0)):
        mean, std = (
            columns(recording, "activation", stat).where(lambda site, kind=kind: site.module_type == kind)  # type: ignore[misc]
            for stat in ("mean", "std")
        )
        rho = np.hypot(scale * mean.values + shift, scale * std.values)
        alarms.append(mean.alarm("saturated-units", rho >= 0.85))
    return min((a for a in alarms if a is not None), key=lambda a: a.step, default=None)


def _initial(recording: Recording) -> list[Alarm | None]:
    variance = kernels(columns(recording, "weight", "var"))
    first = Columns(variance.sites, variance.steps[:1], variance.values[:1])
    strange = np.zeros(first.values.shape, dtype=bool)
    for i, site in enumerate(first.sites):
        if site.fan_in is None or site.fan_out is None or not len(first.values):
            continue
        known = np.array([2 / site.fan_in, 1 / site.fan_in, 2 / (site.fan_in + site.fan_out)])
        error = np.sqrt(2 / np.prod(site.shape))  # of the log of a variance of so many Gaussian entries
        with np.errstate(divide="ignore"):
            away = np.abs(np.log(first.values[:, i, None] / known))
        strange[:, i] = (away > BELOW_5_PERCENT * error).all(1)
    return [
        first.alarm("symmetric-units", first.values == 0),
        first.alarm("init-mismatch", strange & (first.values > 0)),
    ]
