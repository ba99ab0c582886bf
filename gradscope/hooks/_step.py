"""A step in flight: what its forward passes, backward passes and optimizer have left so far, as rows of one arena."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from gradscope.hooks._parameters import Before

from gradscope.hooks._clipping import ClipSamples
from gradscope.hooks._layout import Layout
from gradscope.hooks._moments import Arena
from gradscope.hooks._transfer import sent
from gradscope.hooks._unit_moments import UnitReading


class Readings:
    """What was read of one signal: sites, and the number of each one's row."""

    __slots__ = ("rows", "sites")

    def __init__(self) -> None:
        self.sites: list[int] = []
        self.rows: list[int] = []

    def add(self, site: int, row: int) -> None:
        """One more."""
        self.sites.append(site)
        self.rows.append(row)

    def extend(self, sites: Iterable[int], rows: Iterable[int]) -> None:
        """Many more."""
        self.sites.extend(sites)
        self.rows.extend(rows)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.sites, self.rows, strict=True)

    def __len__(self) -> int:
        return len(self.sites)


@dataclass
class Step:
    """One optimizer update: one or more forward passes, each with the backward that followed."""

    number: int
    due: bool
    """It goes into the recording."""
    arena: Arena
    watched: bool = False
    """Its moments are taken also where it is not due."""
    slow: bool = False
    """Unit moments are taken in it."""
    forwards: list[Forward] = field(default_factory=list)
    weights: Readings = field(default_factory=Readings)
    weights_read: bool = False
    updates: Readings = field(default_factory=Readings)
    before: Before | None = None
    """The parameters before the optimizer's step."""
    clip: ClipSamples = field(default_factory=ClipSamples)
    notes: dict[str, Any] = field(default_factory=dict)
    units: list[tuple[int, UnitReading, Tensor]] = field(default_factory=list)
    """Once it was sent: activation sites, what was read there, and its numbers on the host."""
    versions: list[tuple[Tensor, int]] = field(default_factory=list)
    """The parameters when it began, and how often they had been changed in place."""
    backward: bool = False
    new_gradients: bool = False
    """A backward has left some since an optimizer was last about to step."""
    done: bool = False
    scale: Tensor | float | None = None
    """The gradient scaler's factor when the step began."""
    unscaled_weight_grads: bool = False
    lr: Tensor | float | None = None
    """Learning rate of the largest group that has stepped, of so many entries."""
    lr_entries: int = -1
    stepped: bool = False
    """An optimizer that holds parameters of the model has run."""
    stepped_by: set[int] = field(default_factory=set)
    """Ids of those that have."""
    skipped: bool = False
    serial: int = field(default_factory=count().__next__)
    """No other step of this process has it; a number may be given a second time, where a pass was let go."""

    @property
    def observed(self) -> bool:
        """Whether moments are taken in it."""
        return self.due or self.watched

    def send(self) -> None:
        """Start all that the record needs on its way to the host; `arena.arrived()` tells when it is there."""
        self.gather()
        notes = {name: value for name, value in self.notes.items() if isinstance(value, Tensor)}
        before, after = self.clip.before, self.clip.after
        scale = [self.scale] if isinstance(self.scale, Tensor) else []
        lr = [self.lr] if isinstance(self.lr, Tensor) else []
        units = self._unit_readings()
        numbers = [reading.numbers for reading in units.values()]
        host = iter(sent([*notes.values(), *before.values(), *after.values(), *scale, *lr, *numbers]))
        self.notes |= {name: next(host) for name in notes}
        self.clip.before = {name: next(host) for name in before}
        self.clip.after = {name: next(host) for name in after}
        if scale:
            self.scale = next(host)
        if lr:
            self.lr = next(host)
        self.units = [(site, reading, next(host)) for site, reading in units.items()]
        for forward in self.forwards:
            forward.units = None
        self.arena.send()

    def gather(self) -> None:
        """Take over the rows of its forward passes, to send or to look at."""
        for forward in self.forwards:
            self.arena.absorb(forward.arena)

    def takes_units(self) -> bool:
        """Whether a pass that begins now takes unit moments: until a backward has followed one that did."""
        return self.slow and not any(f.units and f.backward for f in self.forwards)

    def _unit_readings(self) -> dict[int, UnitReading]:
        """Those of the first pass that counts."""
        return next((f.units for f in self.counted_forwards() if f.units), {}) if self.slow else {}

    def counted_forwards(self) -> list[Forward]:
        """The forward passes that count: those that a backward followed, where any did."""
        return [f for f in self.forwards if f.backward] or self.forwards


class Forward:
    """One root forward, or the module calls between two backwards where the root is not called itself."""

    def __init__(self, step: Step, root: bool, arena: Arena) -> None:
        self.step = step
        self.arena = arena
        """Its own rows, which go where it goes."""
        self.root = root
        self.calls: dict[str, int] = {}
        self.fired: set[str] = set()
        """Modules whose hook has told of a call, whatever it returned."""
        self.depth = 0
        self.graph: list[weakref.ref[Any]] | None = None
        """Once the root has returned, our hooks on its outputs, which live as long as their graph."""
        self.failed = False
        """It has ended with an error, or an interrupt."""
        self.batch: Any = None
        """The model's inputs, where they may have to be dumped."""
        self.activations = Readings()
        self.gradients: dict[int, int] = {}
        """In the order in which the backward reached the sites."""
        self.units: dict[int, UnitReading] | None = None
        """By activation site; None where unit moments are not taken."""
        self.layouts: dict[tuple[str, int], Layout] = {}
        """By module call, the axes of what it returned, where unit moments are taken."""
        self.provisional: set[int] = set()
        """Gradient sites that only a backward with `create_graph` has reached."""
        self.weight_grads: dict[int, int] = {}
        self.input_rows: dict[int, list[int]] = {}
        """Activation site -> rows of the module's inputs, where no site has them and its output is not finite."""
        self.backward = False
        self.layer_nodes: dict[tuple[str, int], Any] = {}
        self.followed: dict[tuple[str, int], str] = {}
        """Module call -> the activation module that took its output."""
        self.activation_nodes: dict[Any, str] = {}
        self.fed_nodes: dict[Any, str] = {}
        self.views: dict[int, View] = {}
        """By gradient site."""
        self._known: dict[int, tuple[weakref.ref[Tensor], int, tuple[str, int]]] = {}

    @property
    def over(self) -> bool:
        """Whether no backward can follow."""
        return self.failed or (bool(self.graph) and all(hook() is None for hook in self.graph or ()))

    def next_call(self, name: str) -> int:
        """Index of this call of the module, from 0."""
        call = self.calls.get(name, 0)
        self.calls[name] = call + 1
        return call

    def remember(self, tensor: Tensor, source: tuple[str, int]) -> None:
        """This call of a module returned this tensor, in its present version."""
        self._known[id(tensor)] = (weakref.ref(tensor), version(tensor), source)

    def source(self, tensor: Tensor) -> tuple[str, int] | None:
        """The call of a module that returned this very tensor, changed in place since or not."""
        found = self._known.get(id(tensor))
        return found[2] if found is not None and found[0]() is tensor else None

    def knows(self, tensor: Tensor) -> bool:
        """An earlier module returned this very tensor, and nothing changed it in place since."""
        found = self._known.get(id(tensor))
        return found is not None and found[0]() is tensor and found[1] == version(tensor)

    def forget_graph(self) -> None:
        """Let go of the autograd nodes, which keep what their operations saved."""
        self.layer_nodes, self.activation_nodes, self.fed_nodes, self._known = {}, {}, {}, {}
        self.followed, self.views, self.layouts = {}, {}, {}


@dataclass(frozen=True)
class View:
    """A view that a module returned: a change in place takes its node out of the graph, and its hook with it."""

    node: Any
    base: Any
    """The node of what it is a view of."""
    whole: bool
    """The base is all of it, and the module's own."""


def version(tensor: Tensor) -> int:
    """How often the tensor was changed in place; one made in inference mode does not count it."""
    return -1 if tensor.is_inference() else tensor._version


def joined(steps: list[Step]) -> Step:
    """Several forward passes, first taken for a step each, as the one step that they are."""
    first, *rest = steps
    for step in rest:
        for forward in step.forwards:
            forward.step = first
        first.forwards += step.forwards
        first.arena.absorb(step.arena)
        first.notes |= step.notes
        first.before = step.before or first.before
        first.clip = step.clip
        first.stepped = first.stepped or step.stepped
        first.backward = first.backward or step.backward
    return first
