"""What the rules see of a recording: arrays by signal over the steps that count, its layers, its loss.

Everything is read once, when a rule first asks for it. Steps that the optimizer skipped are left out, and so is what
comes after the first entry that is not finite: from there on every rule would only see its consequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis._limits import Limits
from gradscope.diagnosis._rows import Rows
from gradscope.recording import SIGNALS, Recording, Signal, Site

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Answer = TypeVar("Answer")

MOST_STEPS, EDGE = 2_000, 100
"""Of a longer recording so many steps are looked at: all of the first and the last hundred, of those between them the
hundred with the largest gradient norms, and the rest evenly."""

START, END = 3, 5
"""How many steps are the start of a recording, and its end: a median over them is no single batch."""


_TOGETHER: dict[Signal, tuple[str, ...]] = {
    "activation": ("rms", "mean", "std"),
    "activation_grad": ("rms", "count", "zero_fraction", "subnormal_fraction"),
    "weight": ("rms", "mean", "std", "abs_max"),
    "weight_grad": ("rms", "count", "zero_fraction", "subnormal_fraction"),
    "update": ("rms", "mean", "zero_fraction"),
}
"""What the rules ask of each signal: read at once, for most of the time goes into reading and checking the rows."""

_NOTES = ("loss", "lr", "grad_norm", "grad_norm_clipped", "clip_coefficient")
_OF_UNITS = ("saturated_fraction", "dead_fraction", "silent_fraction", "unit_spread", "batch_spread")


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
        rows: reads them; one that is kept from look to look reads only what is new.
    """

    def __init__(self, recording: Recording, limits: Limits, last: int | None = None, rows: Rows | None = None) -> None:
        self.recording = recording
        self._rows = Rows(recording) if rows is None else rows
        self.limits = limits
        self.last = last
        self._read: dict[tuple[str, ...], Floats] = {}
        self._sites: dict[Signal, tuple[Site, ...]] = {}
        self._answers: dict[Callable[[Evidence], Any], Any] = {}

    def once(self, question: Callable[[Evidence], Answer]) -> Answer:
        """What a function of the evidence gives: several rules ask it, and it is worked out once."""
        if question not in self._answers:
            self._answers[question] = question(self)
        return cast(Answer, self._answers[question])

    # Steps

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Of the run."""
        return self.recording.facts

    @property
    def of_a_run(self) -> bool:
        """Whether it records the steps of a training run, and not one batch."""
        return self.facts.get("source") not in ("probe", "theory", "validation")

    @property
    def training(self) -> bool:
        """Whether it records what an optimizer changed in these."""
        return self.of_a_run and self.has("update")

    @cached_property
    def broken_at(self) -> int | None:
        """Index of the first recorded step with an entry that is not finite, skipped steps left out."""
        if self.facts.get("first_nonfinite") is None and self.last is not None:
            return None  # the recorder has looked at each step already
        bad = np.zeros(len(self.recording.steps), dtype=bool)
        for signal in SIGNALS:
            if self.sites(signal):
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
            middle = found[EDGE:-EDGE]
            every = -(-len(middle) // (MOST_STEPS - 3 * EDGE))
            norms = np.nan_to_num(self.recording.notes("grad_norm")[middle], nan=-np.inf)
            largest = middle[np.argpartition(norms, -EDGE)[-EDGE:]]  # no spike is passed over
            chosen = [found[:EDGE], middle[::every], largest, found[-EDGE:]]
            found = np.unique(np.concatenate(chosen))
        return found

    @cached_property
    def window(self) -> Ints:
        """Indices of all recorded steps that are looked at, also of those that do not count."""
        every = np.arange(len(self.recording.steps))
        return every if self.last is None else every[-self.last :]

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
        return bool(self.sites(signal))

    def sites(self, signal: Signal) -> tuple[Site, ...]:
        """In order of execution."""
        if signal not in self._sites:
            self._sites[signal] = self.recording.sites_of(signal)
        return self._sites[signal]

    @cached_property
    def reached(self) -> frozenset[str]:
        """Names of the activation sites that a gradient has reached at some step."""
        there = np.any(np.isfinite(self.values("activation_grad")), axis=0)
        return frozenset(s.name for s, one in zip(self.sites("activation_grad"), there.tolist(), strict=True) if one)

    def values(self, signal: Signal, stat: str = "rms") -> Floats:
        """A statistic, `(steps that count, sites)`; NaN where nothing was recorded."""
        if (signal, stat) not in self._read:
            stats = _TOGETHER[signal] if stat in _TOGETHER[signal] else (stat,)
            found = self._rows.values_of(signal, stats, self.at)
            self._read |= {(signal, one): values for one, values in zip(stats, found, strict=True)}
        return self._read[signal, stat]

    def level(self, signal: Signal, stat: str = "rms") -> Floats:
        """log10 of it; −inf where it is zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log10(self.values(signal, stat))

    def notes(self, name: str) -> Floats:
        """A note of each step that counts, `(steps,)`; NaN where there was none."""
        if ("note", name) not in self._read:
            names = _NOTES if name in _NOTES else (name,)
            found = self._rows.notes_of(names, self.at)
            self._read |= {("note", one): values for one, values in zip(names, found, strict=True)}
        return self._read["note", name]

    def notes_of_all(self, name: str) -> Floats:
        """A note of all steps that are looked at, also of those that do not count."""
        return np.asarray(self._rows.notes_of((name,), self.window)[0])

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
        key = ("by layer", signal, stat)
        if key not in self._read:
            place = {site.name: i for i, site in enumerate(self.sites(signal))}
            known = [i for i, layer in enumerate(self.layers) if layer.weight.name in place]
            out = np.full((len(self.at), len(self.layers)), np.nan)
            out[:, known] = self.values(signal, stat)[:, [place[self.layers[i].weight.name] for i in known]]
            self._read[key] = out
        return self._read[key]

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
        key = ("unit", stat)
        if key not in self._read:
            stats = _OF_UNITS if stat in _OF_UNITS else (stat,)
            found = self._rows.values_of("activation", stats, self.at[self.unit_at])
            self._read |= {("unit", one): values for one, values in zip(stats, found, strict=True)}
        return self._read[key]


def _ratio(a: Floats, b: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(b > 0, a / b, np.nan)


def lasting_since(bad: NDArray[np.bool_]) -> int:
    """The place from which the earliest of some columns is bad to the end; each is at the end."""
    sound = ~bad
    last_sound = np.where(sound.any(axis=0), len(bad) - 1 - np.argmax(sound[::-1], axis=0), -1)
    return int(last_sound.min()) + 1


def median(values: Floats) -> Floats:
    """The median over the first axis of what is there; NaN where nothing is."""
    if not len(values):
        return np.full(values.shape[1:], np.nan)
    ordered = np.sort(values, axis=0)  # NaN comes last
    known = np.asarray(np.sum(~np.isnan(values), axis=0))
    low, high = (np.take_along_axis(ordered, np.maximum(i, 0)[None], 0)[0] for i in ((known - 1) // 2, known // 2))
    with np.errstate(invalid="ignore"):  # of −∞ and ∞
        return np.asarray(np.where(known > 0, low / 2 + high / 2, np.nan), dtype=np.float64)
