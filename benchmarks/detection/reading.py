"""What the other tools' rules read, from the moments of a recording.

Moments are those of whole tensors, so three quantities are taken as of a Gaussian of that mean and standard deviation:
mean |x| = √(2/π)·rms, the range from the 5th to the 95th percentile = 3.29·std, and the share of entries beyond
a limit. The share of dead units follows from the zeros: half of a living ReLU's outputs are zeros, so
z = dead + (1 − dead)/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.detection.alarm import Alarm
from gradscope.recording import Recording, Signal, Site

Values = NDArray[np.float64]
MEAN_ABS = math.sqrt(2 / math.pi)
PERCENTILES_5_TO_95 = 3.29
RELU = ("ReLU", "relu", "relu_", "ReLU6")
SATURATING = ("Sigmoid", "Tanh", "sigmoid", "tanh")


@dataclass(frozen=True)
class Columns:
    """A statistic of some sites: `(steps, sites)`, NaN where there is none."""

    sites: tuple[Site, ...]
    steps: NDArray[np.int64]
    values: Values

    def where(self, wanted: Callable[[Site], bool]) -> Columns:
        """Those of some sites."""
        kept = [i for i, site in enumerate(self.sites) if wanted(site)]
        return Columns(tuple(self.sites[i] for i in kept), self.steps, self.values[:, kept])

    def alarm(self, family: str, wrong: NDArray[np.bool_], patience: int = 1) -> Alarm | None:
        """An alarm where a site is wrong for so many steps on end; None where none is."""
        run = np.zeros(wrong.shape[1], dtype=np.int64) if wrong.ndim == 2 else np.zeros(0, dtype=np.int64)
        first: dict[int, int] = {}
        for t, row in enumerate(wrong):
            run = np.where(row, run + 1, 0)
            for i in np.flatnonzero(run == patience):
                first.setdefault(int(i), int(self.steps[t]))
        if not first:
            return None
        step = min(first.values())
        names = tuple(self.sites[i].name for i in sorted(first) if first[i] == step)
        return Alarm(family, names, step)


def columns(recording: Recording, signal: Signal, stat: str) -> Columns:
    """A statistic of a signal."""
    return Columns(recording.sites_of(signal), recording.steps, recording.values(signal, stat))


def mean_abs(recording: Recording, signal: Signal) -> Columns:
    """Mean |x|, about."""
    found = columns(recording, signal, "rms")
    return Columns(found.sites, found.steps, MEAN_ABS * found.values)


def kernels(found: Columns) -> Columns:
    """Of weights only, without biases and what belongs to a norm."""
    return found.where(lambda site: len(site.shape) >= 2)


def update_ratio(recording: Recording) -> Columns:
    """Mean |update| over mean |weight|, of the parameters that were updated and are not zero."""
    updates, weights = columns(recording, "update", "rms"), columns(recording, "weight", "rms")
    place = {site.name: i for i, site in enumerate(weights.sites)}
    both = updates.where(lambda site: site.name in place)
    below = weights.values[:, [place[site.name] for site in both.sites]]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(below > 0, both.values / below, np.nan)
    return Columns(both.sites, both.steps, ratio)


def share_beyond(recording: Recording, limit: float) -> Columns:
    """Share of the pre-activations of sigmoid and tanh that are beyond ±limit, about."""
    mean, std = (columns(recording, "activation", stat).where(before_saturating) for stat in ("mean", "std"))
    with np.errstate(divide="ignore", invalid="ignore"):
        above, below = ((limit - sign * mean.values) / np.maximum(std.values, 1e-30) for sign in (1, -1))
        share = 0.5 * (_erfc(above / math.sqrt(2)) + _erfc(below / math.sqrt(2)))
    return Columns(mean.sites, mean.steps, share)


def before_saturating(site: Site) -> bool:
    """Whether a sigmoid or tanh follows."""
    return (site.activation_after or "") in SATURATING


def dead_share(recording: Recording) -> Columns:
    """Share of a ReLU's units that are dead, about."""
    zeros = columns(recording, "activation", "zero_fraction").where(lambda site: site.module_type in RELU)
    return Columns(zeros.sites, zeros.steps, np.clip(2 * zeros.values - 1, 0, 1))


def broken(recording: Recording) -> Alarm | None:
    """The first NaN or infinity in any signal."""
    alarms = []
    for signal in ("activation", "activation_grad", "weight", "weight_grad", "update"):
        found = columns(recording, signal, "nonfinite_count")  # type: ignore[arg-type]
        alarms.append(found.alarm("non-finite", found.values > 0))
    raised = [alarm for alarm in alarms if alarm is not None]
    return min(raised, key=lambda alarm: alarm.step, default=None)


_erfc = np.vectorize(math.erfc, otypes=[np.float64])
