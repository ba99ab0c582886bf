"""Several seeds: what is kept of them, and the band within which another draw of a sound model lies.

For each site the medians over N seeds of two runs are compared. A median of N normal numbers has the variance π/2·σ²/N
at most, so the difference of two has π·σ²/N, and the band's half width is

    z·√(π/N)·σ,     z the normal quantile of 1 − 10⁻⁴/(2m)

for m numbers compared (Bonferroni): of sound models at most one run in 10,000 leaves any band. σ is what
`theory.chain_spread` says of a chain of these widths for one input, which a batch only narrows. It grows with depth and
falls with width.

Where the N + N networks themselves spread clearly more (no chain, another architecture, several steps), σ is
theirs, pooled, and z the quantile of Student's t with 2N − 2 degrees of freedom. So it is for the weights themselves,
whose rms hardly strays: they tell a change of the initial scale long before the signals do. And so it is for the total
norm of the gradients and the loss, of which the theory of one chain says nothing.

Sizes of gradients are taken relative to the last site's of the same kind (matrix, bias), as theory does; the last
itself is compared as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gradscope.recording import Baseline, Recording, Signal, baseline_of
from gradscope.recording._baseline import Array, Compared, Sizes, Spreads
from gradscope.testing._band import RELATIVE, expected_spread, half_width
from gradscope.testing._observe import Subject, observed

FEWEST = 4
_COMPARED: tuple[Signal, ...] = ("weight", "activation", *RELATIVE)
_OF_THE_MODEL: tuple[Compared, ...] = ("gradient norm", "loss")


def observed_over_seeds(subject: Subject, seeds: int) -> Baseline:
    """The medians and the spread of as many models as there are seeds.

    Raises:
        ValueError: the model is no function that makes one, there are too few seeds, or the models differ in structure.
    """
    if not subject.is_factory:
        raise ValueError("seeds needs a function without arguments that makes a model, and model is a module")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < FEWEST:
        raise ValueError(f"seeds is {seeds!r}; a whole number from {FEWEST} is allowed")
    recordings = [observed(subject, seed) for seed in range(seeds)]
    return merged([baseline_of(recording) for recording in recordings], entering(recordings[0]))


def merged(runs: Sequence[Baseline], last: Entering) -> Baseline:
    """One of several seeds."""
    first = runs[0]
    if any(run.places != first.places for run in runs):
        raise ValueError("model makes models of different structure with different seeds, so they cannot be compared")
    sizes: dict[Signal, dict[str, Array]] = {}
    spread: dict[Compared, dict[str, Array]] = {}
    adjusted = [relative(run.sizes, last) for run in runs]
    for signal, of in first.sizes.items():
        stacked = {site: np.stack([run[signal][site] for run in adjusted]) for site in of}
        sizes[signal] = {site: np.median(values, axis=0) for site, values in stacked.items()}
        spread[signal] = {site: _deviation(values) for site, values in stacked.items()}
    norms, losses = (np.stack([getattr(run, name) for run in runs]) for name in ("gradient_norm", "loss"))
    spread |= {"gradient norm": {"": _deviation(norms)}, "loss": {"": _deviation(losses)}}
    return Baseline(
        facts={**{k: v for k, v in first.facts.items() if k != "seed"}, "seeds": len(runs)},
        places=first.places,
        gradients=first.gradients,
        steps=first.steps,
        sizes=sizes,
        gradient_norm=np.median(norms, axis=0),
        loss=np.median(losses, axis=0),
        spread=spread,
    )


def _deviation(values: Array) -> Array:
    """Of what is not zero and finite; 0 where fewer than two are."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    safe = np.where(known, values, 0.0)
    mean = safe.sum(axis=0) / np.maximum(count, 1)
    squares = np.where(known, (safe - mean) ** 2, 0.0).sum(axis=0)
    return np.asarray(np.sqrt(squares / np.maximum(count - 1, 1)), dtype=np.float64)


Entering = Mapping[tuple[str, str], str]
"""By signal and site the site to which a size is relative."""


def entering(recording: Recording) -> Entering:
    """The last site of each kind that has a gradient: of matrices a matrix, of biases a bias, as theory pairs them."""
    sizes = baseline_of(recording).sizes
    found: dict[tuple[str, str], str] = {}
    for signal in RELATIVE:
        last: dict[bool, str] = {}
        sites = recording.sites_of(signal)
        kinds = {s.name: s.param is not None and len(s.shape) < 2 for s in sites}
        for site in sites:
            if np.isfinite(sizes[signal][site.name]).all():
                last[kinds[site.name]] = site.name
        found.update({(signal, name): last[kind] for name, kind in kinds.items() if kind in last})
    return found


def relative(sizes: Sizes, last: Entering) -> dict[Signal, dict[str, Array]]:
    """The sizes with those of gradients relative to the last of their kind, which itself stays as it is."""
    out: dict[Signal, dict[str, Array]] = {}
    for signal, of in sizes.items():
        out[signal] = {}
        for site, values in of.items():
            base = of.get(last.get((signal, site), site))
            keep = base is None or last.get((signal, site), site) == site or not np.isfinite(base).all()
            out[signal][site] = values if keep or base is None else values - base
    return out


def bands_of(expected: Baseline, obtained: Baseline, recording: Recording | None, rtol: float) -> Spreads:
    """By signal and site the decades by which the medians may differ, at each step.

    Args:
        expected, obtained: of as many seeds each.
        recording: of one of the models, for its widths, depths and activations; without one the networks' own spread is
            all there is.
        rtol: the least relative tolerance.
    """
    seeds = int(obtained.facts["seeds"])
    signals = [s for s in _COMPARED if s in obtained.sizes]
    common = {s: [n for n in obtained.sizes[s] if n in expected.sizes.get(s, {})] for s in signals}
    compared = (sum(map(len, common.values())) + len(_OF_THE_MODEL)) * len(obtained.steps)
    theory = {} if recording is None else expected_spread(recording)
    last = {} if recording is None else entering(recording)
    least = math.log10(1.0 + rtol)
    bands: dict[Compared, dict[str, Array]] = {}
    for signal in signals:
        bands[signal] = {}
        for name in common[signal]:
            own = 0.0 if last.get((signal, name)) == name else theory.get(signal, {}).get(name, 0.0)
            spreads = expected.spread[signal][name], obtained.spread[signal][name]
            bands[signal][name] = half_width(np.array(own), *spreads, seeds, compared) + least
    for what in _OF_THE_MODEL:
        width = half_width(np.zeros(()), expected.spread[what][""], obtained.spread[what][""], seeds, compared)
        bands[what] = {"": (_relative(width, expected.loss, obtained.loss) if what == "loss" else width) + least}
    return bands


def _relative(width: Array, first: Array, second: Array) -> Array:
    """A difference of losses as `compare` measures it: relative to the larger, in decades."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log10(1.0 + width / np.fmax(np.abs(first), np.abs(second))), dtype=np.float64)
