"""A step in flight: what its forward passes, backward passes and optimizer have left so far, as rows of one arena."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.hooks._moments import Arena, Rows
from gradscope.recording import Moments, Signal, StepRecord


@dataclass
class Step:
    """One optimizer update: one or more forward passes, each with the backward that followed."""

    number: int
    due: bool
    arena: Arena
    forwards: list[Forward] = field(default_factory=list)
    weights: list[tuple[int, Rows]] = field(default_factory=list)
    weights_read: bool = False
    updates: list[tuple[int, Rows]] = field(default_factory=list)
    before: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    """Update site, parameter, and its value before the optimizer's step."""
    notes: dict[str, Any] = field(default_factory=dict)
    backward: bool = False
    closed: bool = False
    done: bool = False
    scale: Tensor | float | None = None
    """The gradient scaler's factor when the step began."""
    unscaled_weight_grads: bool = False
    skipped: bool = False


class Forward:
    """One root forward, or the module calls between two backwards where the root is not called itself."""

    def __init__(self, step: Step, root: bool) -> None:
        self.step = step
        self.root = root
        self.thread = threading.get_ident()
        self.calls: dict[str, int] = {}
        self.depth = 0
        self.activations: list[tuple[int, Rows]] = []
        self.activation_grads: list[tuple[int, Rows]] = []
        self.weight_grads: dict[int, Rows] = {}
        self.with_gradient: set[int] = set()
        self.hooked: set[str] = set()
        self.backward = False
        self.layer_nodes: dict[tuple[str, int], Any] = {}
        self.followed: dict[tuple[str, int], str] = {}
        """Module call -> the activation module that took its output."""
        self.activation_nodes: dict[Any, str] = {}
        self.fed_nodes: dict[Any, str] = {}
        self._known: dict[int, tuple[weakref.ref[Tensor], int, tuple[str, int]]] = {}

    def next_call(self, name: str) -> int:
        """Index of this call of the module, from 0."""
        call = self.calls.get(name, 0)
        self.calls[name] = call + 1
        return call

    def remember(self, tensor: Tensor, source: tuple[str, int]) -> None:
        """This call of a module returned this tensor, in its present version."""
        self._known[id(tensor)] = (weakref.ref(tensor), tensor._version, source)

    def source(self, tensor: Tensor) -> tuple[str, int] | None:
        """The call of a module that returned this very tensor, changed in place since or not."""
        found = self._known.get(id(tensor))
        return found[2] if found is not None and found[0]() is tensor else None

    def knows(self, tensor: Tensor) -> bool:
        """An earlier module returned this very tensor, and nothing changed it in place since."""
        found = self._known.get(id(tensor))
        return found is not None and found[0]() is tensor and found[1] == tensor._version

    def forget_graph(self) -> None:
        """Let go of the autograd nodes, which keep what their operations saved."""
        self.layer_nodes, self.activation_nodes, self.fed_nodes, self._known = {}, {}, {}, {}
        self.followed = {}


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
    return first


def to_record(step: Step) -> StepRecord:
    """The step's rows, brought to the host by one transfer, merged by site and unscaled."""
    forwards = [f for f in step.forwards if f.backward] or step.forwards
    weight_grads: dict[int, Rows] = {}
    for forward in forwards:  # a gradient accumulates: what the last backward left is the gradient
        weight_grads.update(forward.weight_grads)
    signals: dict[Signal, list[tuple[int, Rows]]] = {
        "activation": [pair for f in forwards for pair in f.activations],
        "activation_grad": [pair for f in forwards for pair in f.activation_grads],
        "weight": step.weights,
        "weight_grad": list(weight_grads.items()),
        "update": step.updates,
    }
    step.arena.to_host()
    scale = 1.0 if step.scale is None else float(step.scale)
    moments: dict[Signal, tuple[NDArray[np.int64], Moments]] = {}
    histograms: dict[Signal, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    for signal, pairs in signals.items():
        if not pairs:
            continue
        ids, merged = _by_site(step.arena, pairs)
        if signal == "activation_grad" or (signal == "weight_grad" and not step.unscaled_weight_grads):
            merged = _divide(merged, scale)
        moments[signal] = (ids, merged)
        if step.arena.histograms:
            histograms[signal] = _histograms(ids, pairs)
    notes = {name: _plain(value) for name, value in step.notes.items()}
    return StepRecord(step=step.number, skipped=step.skipped, notes=notes, moments=moments, histograms=histograms)


def _by_site(arena: Arena, pairs: Iterable[tuple[int, Rows]]) -> tuple[NDArray[np.int64], Moments]:
    joined: dict[int, Rows] = {}
    for site, rows in pairs:
        joined[site] = rows if site not in joined else joined[site] + rows
    return np.array(list(joined), dtype=np.int64), arena.read(list(joined.values()))


def _histograms(
    ids: NDArray[np.int64], pairs: Iterable[tuple[int, Rows]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    counts: Mapping[int, list[Tensor]] = {int(i): [] for i in ids}
    for site, rows in pairs:
        counts[site].extend(rows.histogram)
    table = torch.stack([torch.stack(parts).sum(0) for parts in counts.values()])
    return ids, table.cpu().numpy()


def _divide(moments: Moments, scale: float) -> Moments:
    if scale == 1.0:
        return moments
    return replace(
        moments,
        mean=moments.mean / scale,
        std=moments.std / scale,
        min=moments.min / scale,
        max=moments.max / scale,
    )


def _plain(value: Any) -> Any:
    """A note as the file keeps it: one-entry tensors and arrays become numbers."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.item() if np.prod(value.shape) == 1 else str(value)
    return value
