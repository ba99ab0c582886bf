"""What the rules see of a recording: arrays by signal over the steps that count, its layers, its loss.

Everything is read once, when a rule first asks for it. Steps that the optimizer skipped are left out, and so is what
comes after the first entry that is not finite: from there on every rule would only see its consequences.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis._limits import Limits
from gradscope.recording import SIGNALS, Recording, Signal, Site

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_STEPS = 2_000
"""Of a longer recording so many steps are looked at: all of the first and the last hundred, the rest evenly."""

START, END = 3, 5
"""How many steps are the start of a recording, and its end: a median over them is no single batch."""


@dataclass(frozen=True)
class Layer:
    """A module with a weight of two or more dimensions.

    Attributes:
        module: its qualified name.
        weight: the site of its largest weight.
        site: the site of its first output, None where it has none (its module is never called by itself).
    """

    module: str
    weight: Site
    site: Site | None

    @property
    def depth(self) -> int:
        """In order of execution."""
        return self.weight.depth if self.site is None else self.site.depth


class Evidence:
    """A recording as rules read it.

    Attributes:
        recording: of one or many steps.
        limits: the rules' own.
        last: look at so many of the latest recorded steps only, as a run that is watched does.
    """

    def __init__(self, recording: Recording, limits: Limits, last: int | None = None) -> None:
        self.recording = recording
        self.limits = limits
        self.last = last
        self._values = lru_cache(maxsize=None)(self._read)

    # Steps

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Of the run."""
        return self.recording.facts

    @property
    def training(self) -> bool:
        """Whether it records steps of an optimizer, and not one batch."""
        return self.facts.get("source") not in ("probe", "theory", "validation") and self.has("update")

    @cached_property
    def broken_at(self) -> int | None:
        """Index of the first recorded step with an entry that is not finite, skipped steps left out."""
        if self.facts.get("first_nonfinite") is None and self.last is not None:
            return None  # the recorder has looked at each step already
        bad = np.zeros(len(self.recording.steps), dtype=bool)
        for signal in SIGNALS:
            if self.recording.sites_of(signal):
                bad |= self.recording.nonfinite(signal)
        found = np.flatnonzero(bad & ~self.recording.skipped)
        return int(found[0]) if found.size else None

    @cached_property
    def at(self) -> Ints:
        """Indices of the recorded steps that count."""
        counts = ~self.recording.skipped
        if self.broken_at is not None:
            counts[self.broken_at :] = False
        found = np.flatnonzero(counts)
        if self.last is not None:
            return found[-self.last :]
        if len(found) > MOST_STEPS:
            middle = found[100:-100]
            every = -(-len(middle) // (MOST_STEPS - 200))
            found = np.concatenate([found[:100], middle[::every], found[-100:]])
        return found

    @property
    def from_the_start(self) -> bool:
        """Whether the first recorded step is among them: only then do first weights and the first loss show."""
        return bool(len(self.at)) and self.at[0] == 0

    @cached_property
    def steps(self) -> Ints:
        """Their numbers."""
        return self.recording.steps[self.at]

    def step(self, place: int) -> int:
        """The number of one of them."""
        return int(self.steps[place])

    # Signals

    def has(self, signal: Signal) -> bool:
        """Whether anything of it was recorded."""
        return bool(self.recording.sites_of(signal))

    @cache  # noqa: B019  # an Evidence lives as long as one diagnosis
    def sites(self, signal: Signal) -> tuple[Site, ...]:
        """In order of execution."""
        return self.recording.sites_of(signal)

    @cached_property
    def reached(self) -> frozenset[str]:
        """Names of the activation sites that a gradient has reached at some step."""
        there = np.any(np.isfinite(self.values("activation_grad")), axis=0)
        return frozenset(s.name for s, one in zip(self.sites("activation_grad"), there.tolist(), strict=True) if one)

    def values(self, signal: Signal, stat: str = "rms") -> Floats:
        """A statistic, `(steps that count, sites)`; NaN where nothing was recorded."""
        return self._values(signal, stat)

    def _read(self, signal: Signal, stat: str) -> Floats:
        return self.recording.values(signal, stat, self.at)

    def level(self, signal: Signal, stat: str = "rms") -> Floats:
        """log10 of it; −inf where it is zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log10(self.values(signal, stat))

    def notes(self, name: str) -> Floats:
        """A note of each step that counts, `(steps,)`; NaN where there was none."""
        if name not in self.recording.note_names:
            return np.full(len(self.at), np.nan)
        return np.asarray(self.recording.notes(name)[self.at], dtype=np.float64)

    @cached_property
    def loss(self) -> Floats:
        """As it was noted."""
        return self.notes("loss")

    # The model

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The modules that have weights, in order of execution."""
        outputs: dict[str, Site] = {}
        for signal in ("activation", "activation_grad"):
            for site in self.sites(signal):
                if site.call == 0 and site.output == 0:
                    outputs.setdefault(site.module, site)
        largest: dict[str, Site] = {}
        for site in self.parameters:
            known = largest.get(site.module)
            if len(site.shape) >= 2 and (known is None or np.prod(site.shape) > np.prod(known.shape)):
                largest[site.module] = site
        found = [Layer(module, site, outputs.get(module)) for module, site in largest.items()]
        return tuple(sorted(found, key=lambda layer: layer.depth))

    @cached_property
    def parameters(self) -> tuple[Site, ...]:
        """All that were recorded of any signal, one site a parameter."""
        found: dict[str, Site] = {}
        for signal in ("weight", "weight_grad", "update"):
            for site in self.sites(signal):
                found.setdefault(site.name, site)
        return tuple(sorted(found.values(), key=lambda site: site.depth))

    def by_layer(self, signal: Signal, stat: str = "rms") -> Floats:
        """A statistic of a parameter's signal at each layer's weight, `(steps that count, layers)`."""
        place = {site.name: i for i, site in enumerate(self.sites(signal))}
        values = self.values(signal, stat)
        out = np.full((len(self.at), len(self.layers)), np.nan)
        for i, layer in enumerate(self.layers):
            if layer.weight.name in place:
                out[:, i] = values[:, place[layer.weight.name]]
        return out

    @cached_property
    def relative_gradient(self) -> Floats:
        """rms of each layer's weight gradient over that of its weight."""
        return _ratio(self.by_layer("weight_grad"), self.by_layer("weight"))

    @cached_property
    def relative_update(self) -> Floats:
        """rms of each layer's update over that of its weight."""
        return _ratio(self.by_layer("update"), self.by_layer("weight"))

    # Unit moments

    @cached_property
    def unit_at(self) -> Ints:
        """Places among the steps that count at which unit moments were taken."""
        return np.flatnonzero(self.recording.has_unit_moments[self.at])

    def unit(self, stat: str) -> Floats:
        """A statistic of the units, `(steps that have them, activation sites)`."""
        if not self.unit_at.size:
            return np.full((0, len(self.sites("activation"))), np.nan)
        return self.values("activation", stat)[self.unit_at]


def _ratio(a: Floats, b: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(b > 0, a / b, np.nan)


def median(values: Floats, axis: int = 0) -> Floats:
    """The median of what is there; NaN, without a warning, where nothing is."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of a slice without a number
        return np.asarray(np.nanmedian(values, axis=axis), dtype=np.float64)
