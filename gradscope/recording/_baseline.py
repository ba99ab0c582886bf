"""A baseline: what is kept of a run to compare later ones with.

Sizes are log10 of the rms, one number for each site and step. Rounding noise counts as zero: a bias before a norm has a
gradient of 0 that float arithmetic makes 1e-9, and another machine another 1e-9. Such is a bias's gradient of rms

    r < 16·ε·n·g

where n gradients of rms g were summed up for each of its entries, and ε is the spacing of the dtype at 1. An optimizer
that divides by the gradient's size makes a full update of it, which is noise too. A tensor with a NaN or an infinity
has no size at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.recording._gradient_states import gradient_states
from gradscope.recording._recording import Recording
from gradscope.recording._site import SIGNALS, Signal, Site

Array = NDArray[np.float64]
Sizes = Mapping[Signal, Mapping[str, Array]]
Compared = Signal | Literal["gradient norm", "loss"]
Spreads = Mapping[Compared, Mapping[str, Array]]
"""By what is compared and site, `(steps,)`; the site of what belongs to the whole model is empty."""

MOST_STEPS = 100
"""Of a longer recording so many steps are compared, evenly spread, the first and the last among them."""
KEPT_FACTS = ("device", "dtype", "machine", "model", "optimizer", "parameters", "seed", "torch")
_NOISE = 16.0
_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Place:
    """A site as far as it is structure: what was there, and of which shape."""

    name: str
    module_type: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Baseline:
    """What is compared of a run.

    Attributes:
        facts: torch version, machine, device, dtype, seed, model: what a reader of a difference needs.
        places: the sites of modules in order of execution.
        gradients: by parameter, whether its gradient `flows`, is `zero`, or the parameter `unused` or `frozen`.
        steps: numbers of the steps, `(steps,)`.
        sizes: by signal and site, log10 of the rms `(steps,)`: −inf for zero or rounding noise, NaN where some entry
            was not finite, or there are no data.
        gradient_norm: log10 of the norm of all parameters' gradients together, `(steps,)`.
        loss: `(steps,)`; NaN where none was noted.
        spread: of several seeds, the standard deviation of each size over them, of the gradient norm and of the loss;
            else empty.
    """

    facts: Mapping[str, Any]
    places: tuple[Place, ...]
    gradients: Mapping[str, str]
    steps: NDArray[np.int64]
    sizes: Sizes
    gradient_norm: Array
    loss: Array
    spread: Spreads = field(default_factory=dict)


def baseline_of(recording: Recording, steps: ArrayLike | None = None) -> Baseline:
    """What is compared of a recording; of over a hundred steps a hundred.

    Args:
        recording: of any length.
        steps: numbers of the steps to choose from; None is every step. Those that it does not have are left out.
    """
    at = np.arange(len(recording.steps))
    if steps is not None:
        at = np.flatnonzero(np.isin(recording.steps, steps))
    if len(at) > MOST_STEPS:
        at = at[np.linspace(0, len(at) - 1, MOST_STEPS).round().astype(np.int64)]
    sizes: dict[Signal, dict[str, Array]] = {s: _sizes(recording, s, at) for s in SIGNALS if recording.sites_of(s)}
    _without_noise(recording, sizes)
    places = tuple(
        Place(site.name, site.module_type, site.dtype, tuple(site.shape)) for site in recording.sites_of("activation")
    )
    states: dict[str, str] = {}
    if "weight_grad" in sizes or "weight_grad" in recording.facts.get("signals", ()):
        states = dict(gradient_states(recording, int(at[-1]))) if at.size else {}
    noise = {name for name, of in sizes.get("weight_grad", {}).items() if np.isneginf(of).all()}
    states = {name: "zero" if state == "flows" and name in noise else state for name, state in states.items()}
    return Baseline(
        facts={key: recording.facts[key] for key in KEPT_FACTS if key in recording.facts},
        places=places,
        gradients=states,
        steps=recording.steps[at],
        sizes=sizes,
        gradient_norm=_norm(recording, at),
        loss=recording.notes("loss")[at],
    )


def _sizes(recording: Recording, signal: Signal, at: NDArray[np.int64]) -> dict[str, Array]:
    rms = recording.values(signal, "rms", at)
    rms = np.where(recording.values(signal, "nonfinite_count", at) > 0, np.nan, rms)
    with np.errstate(divide="ignore"):
        logs = np.log10(rms)
    return {site.name: logs[:, i] for i, site in enumerate(recording.sites_of(signal))}


def _without_noise(recording: Recording, sizes: dict[Signal, dict[str, Array]]) -> None:
    """Set what is rounding noise to zero: gradients and updates of biases."""
    outputs = {(s.module, s.call, s.output): s for s in recording.sites_of("activation_grad")}
    for bias in recording.sites_of("weight_grad"):
        owner = outputs.get((bias.module, 0, 0))
        if owner is None or len(bias.shape) != 1:
            continue
        floor = sizes["activation_grad"][owner.name] + math.log10(_noise_factor(bias, owner))
        noise = sizes["weight_grad"][bias.name] < floor
        for signal in ("weight_grad", "update"):
            if bias.name in sizes.get(signal, {}):
                sizes[signal][bias.name] = np.where(noise, -np.inf, sizes[signal][bias.name])


def _noise_factor(bias: Site, owner: Site) -> float:
    summed = max(math.prod(owner.shape) / max(math.prod(bias.shape), 1), 1.0)
    return _NOISE * _EPSILON.get(owner.dtype, _EPSILON["float32"]) * summed


def _norm(recording: Recording, at: NDArray[np.int64]) -> Array:
    """log10 of √Σ g², by the largest first so that no square leaves float64."""
    if not recording.sites_of("weight_grad"):
        return np.full(len(at), np.nan)
    rms, count = (recording.values("weight_grad", stat, at) for stat in ("rms", "count"))
    sick = (recording.values("weight_grad", "nonfinite_count", at) > 0).any(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(count > 0, np.log10(rms) + np.log10(count) / 2, -np.inf)
        largest = logs.max(axis=1)
        shifted = np.where(np.isfinite(largest)[:, None], logs - largest[:, None], -np.inf)
        norm = largest + np.log10(np.sum(10.0 ** (2.0 * shifted), axis=1)) / 2
    return np.where(sick, np.nan, np.where(np.isneginf(largest), -np.inf, norm))
