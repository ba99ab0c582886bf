"""Recurrent layers: their units are drawn, their weights enter as moments.

4,096 units see in each step gates of the right spread. What the inputs give has a part that stays and one that is
drawn anew; what the last outputs give is as alike from step to step as these are; the biases stay. Back through time
each unit has the gradient that its own slopes give it, and what comes over the recurrent weights is drawn, as alike
from step to step as what went into them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradscope.theory.prediction import _grid
from gradscope.theory.prediction._alike import Alike
from gradscope.theory.prediction._capture import Operation
from gradscope.theory.prediction._constant import Constant
from gradscope.theory.prediction._flow import Flow
from gradscope.theory.prediction._registry import NoRule, rule
from gradscope.theory.prediction._value import Atom, Root, Value

_UNITS = 4096
_SEEN = 8
"""Of so many units one is looked at for the gradients of weights: products of any two steps are averaged."""


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(flow: Flow, operation: Operation, x: Any, *args: Any, **kwargs: Any) -> Any:
    """All layers and directions of one module."""
    if not isinstance(x, Value) or len(args) < 8 or not isinstance(args[1], (list, tuple)):
        raise NoRule("of packed sequences")
    weights, biases, layers, _, _, both_ways, batch_first = args[1:8]
    per = 4 if biases else 2
    if len(weights) % per or len(weights) // per != layers * (2 if both_ways else 1):
        raise NoRule("with projections")
    time_dim = 1 if batch_first else 0
    steps, hidden, directions = x.shape[time_dim], weights[1].shape[-1], 2 if both_ways else 1
    stacks = [
        [
            _Layer(operation.name, weights[at : at + per], hidden, directions)
            for at in range(layer * directions * per, (layer + 1) * directions * per, per)
        ]
        for layer in range(layers)
    ]
    draw = _Draw()
    alike, biased = x.alike, max(sum(stacks[0][0].biases), 1e-300)
    sequences = [draw.sequence(steps, 1, alike.same, alike.position)[:, 0]]
    for stack in stacks:
        sequences = [layer.forward(draw, sequences, backwards=way == 1) for way, layer in enumerate(stack)]
    same, position = _alike(torch.stack(sequences, 1))
    moving = stacks[0][0].fan_in * stacks[0][0].w_ih * alike.same
    common = (biased + moving * max(alike.input, 0.0) / max(alike.same, 1e-300)) / (biased + moving)
    entries = torch.stack(sequences).ravel()
    entries = entries[:: max(1, entries.numel() // (1 << 16))]
    spread = Alike(same, position, position * common, position * common)
    root = Root.of(_grid.quantiles(entries, torch.ones_like(entries)), spread)

    def back() -> None:
        arriving = draw.sequence(steps, directions, root.gradient.same, root.gradient.position)
        gradients = list(arriving.unbind(1))
        for stack in reversed(stacks):
            parts = [layer.back(draw, gradients[way]) for way, layer in enumerate(stack)]
            gradients = [torch.stack([part[i] for part in parts]).sum(0) for i in range(len(parts[0]))]
            for layer in stack:
                layer.note(flow, x.count("input"))
        same, position = _alike(gradients[0])
        flow.give(x, Alike(same, position, 0.0, 0.0))

    flow.later(back)
    out = Value((*x.dims[:-1], (Atom("unit", hidden * directions),)), root, root.h)
    return [out, None, None] if operation.name == "lstm" else [out, None]


class _Draw:
    """Normal numbers, always the same."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, rows: int) -> Tensor:
        return torch.randn((rows, _UNITS), generator=self._generator, dtype=torch.float64)

    def sequence(self, steps: int, rows: int, same: float, position: float) -> Tensor:
        """Of this mean square, and this mean product of two steps, `(steps, rows, units)`."""
        stays = min(max(position, 0.0), same)
        fixed = self(rows) * math.sqrt(stays)
        return torch.stack([fixed + self(rows) * math.sqrt(same - stays) for _ in range(steps)])


class _Layer:
    """One layer in one direction."""

    def __init__(self, kind: str, weights: list[Constant], hidden: int, directions: int) -> None:
        self.w_ih, self.w_hh = weights[0].moments.square, weights[1].moments.square
        self.biases = [one.moments.square for one in weights[2:]]
        self.fan_in, self.hidden, self._parameters = weights[0].shape[1], hidden, weights
        cells: dict[str, Callable[[str], Any]] = {"lstm": _Lstm, "gru": _Gru}
        self._cell = cells.get(kind, _Plain)(kind)
        self._slopes: list[Any] = []
        self._inputs: list[Tensor] = []
        self._before: dict[int, Tensor] = {}
        self._into: dict[int, Tensor] = {}
        self._across: dict[int, Tensor] = {}
        self._backwards = False
        self._sources = 1

    def forward(self, draw: _Draw, sequences: list[Tensor], *, backwards: bool) -> Tensor:
        """The outputs `(steps, units)`, of inputs from each of the sequences."""
        cell, gates = self._cell, self._cell.gates
        self._backwards, self._sources, self._inputs = backwards, len(sequences), sequences
        stay = [draw(gates) * math.sqrt(b) for b in self.biases] or [
            torch.zeros((gates, _UNITS), dtype=torch.float64)
        ] * 2
        each = [_Mixed(draw, gates) for _ in sequences]
        state, mixed, outputs = cell.start(), _Mixed(draw, gates), []
        steps = sequences[0].shape[0]
        for t in range(steps)[:: -1 if backwards else 1]:
            weight = self.fan_in / len(sequences) * self.w_ih
            into = sum((m.of(x[t], weight) for m, x in zip(each, sequences, strict=True)), stay[0])
            across = mixed.of(state[0], self.hidden * self.w_hh) + stay[1]
            self._before[t] = state[0][::_SEEN]
            state, slope = cell.step(into, across, state)
            self._slopes.append(slope)
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backwards else outputs)

    def back(self, draw: _Draw, gradient: Tensor) -> list[Tensor]:
        """The gradients of the inputs `(steps, units)`, of each sequence."""
        cell, steps = self._cell, gradient.shape[0]
        order = list(range(steps)[:: -1 if self._backwards else 1])
        returned, carry = _Mixed(draw, 1), cell.nothing()
        sources = [_Mixed(draw, 1) for _ in range(self._sources)]
        from_next: Any = 0.0
        found: list[list[Tensor]] = [[] for _ in sources]
        for t, slope in zip(order[::-1], reversed(self._slopes), strict=True):
            into, across, carry = cell.back(slope, gradient[t] + from_next, carry)
            self._into[t], self._across[t] = into[:, ::_SEEN], across[:, ::_SEEN]
            for one, source in zip(found, sources, strict=True):
                one.append(source.of(into, self.hidden * self.w_ih)[0])
            from_next = returned.of(across, self.hidden * self.w_hh)[0] + carry[0]
        return [torch.stack(one if self._backwards else one[::-1]) for one in found]

    def note(self, flow: Flow, inputs: int) -> None:
        """The gradients of the parameters: sums over the steps, and over inputs, which have nothing in common."""
        into, across = (_products(one) for one in (self._into, self._across))
        before = _products(self._before)
        given = sum(_products(dict(enumerate(one[:, ::_SEEN]))) for one in self._inputs) / len(self._inputs)
        found = (into * given, across * before, into, across)
        for parameter, products in zip(self._parameters, found, strict=False):
            flow.add_weight_grad(parameter, inputs * float(products.sum()))


def _products(steps: dict[int, Tensor]) -> Tensor:
    """Mean products of the entries of two steps, `(steps, steps)`."""
    every = torch.stack([steps[t].flatten() for t in sorted(steps)])
    return every @ every.T / every.shape[1]


def _alike(every: Tensor) -> tuple[float, float]:
    """Mean square, and mean product of two steps, of `(steps, …)`."""
    steps = every.shape[0]
    same = float(every.square().mean())
    if steps == 1:
        return same, same
    whole = float(every.mean(0).square().mean())
    return same, (whole * steps - same) / (steps - 1)


class _Mixed:
    """Sums over all units with fixed random weights: normal, as alike from step to step as what they are sums of."""

    def __init__(self, drawn: Any, rows: int) -> None:
        self._drawn, self._rows = drawn, rows
        self._noise = drawn(rows)
        self._before: Tensor | None = None

    def of(self, x: Tensor, weight: float) -> Tensor:
        """Sums of the entries of x `(…, units)`, whose squares weigh so much."""
        if self._before is not None:
            norm = math.sqrt(float(x.square().mean()) * float(self._before.square().mean()))
            c = float((x * self._before).mean()) / norm if norm > 0.0 else 0.0
            c = min(max(c, -1.0), 1.0)
            self._noise = c * self._noise + math.sqrt(1.0 - c * c) * self._drawn(self._rows)
        self._before = x
        rows = x.shape[0] if x.dim() > 1 else 1
        found: Tensor = self._noise * math.sqrt(weight * rows * float(x.square().mean()))
        return found


class _Lstm:
    gates = 4

    def __init__(self, kind: str) -> None:
        pass

    def start(self) -> tuple[Tensor, ...]:
        return torch.zeros(_UNITS, dtype=torch.float64), torch.zeros(_UNITS, dtype=torch.float64)

    def nothing(self) -> tuple[Any, ...]:
        return 0.0, 0.0

    def step(self, into: Tensor, across: Tensor, state: Any) -> Any:
        i, f, g, o = into + across
        i, f, o, g = torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o), torch.tanh(g)
        before = state[1]
        c = f * before + i * g
        t = torch.tanh(c)
        to_gates = torch.stack([g * i * (1 - i), before * f * (1 - f), i * (1 - g * g)])
        return (o * t, c), (o * (1 - t * t), f, to_gates, t * o * (1 - o))

    def back(self, slope: Any, h: Any, carry: Any) -> Any:
        to_c, f, to_gates, to_o = slope
        c = h * to_c + carry[1]
        gates = torch.cat([c * to_gates, (h * to_o)[None]])
        return gates, gates, (0.0, c * f)


class _Gru:
    gates = 3

    def __init__(self, kind: str) -> None:
        pass

    def start(self) -> tuple[Tensor, ...]:
        return (torch.zeros(_UNITS, dtype=torch.float64),)

    def nothing(self) -> tuple[Any, ...]:
        return (0.0,)

    def step(self, into: Tensor, across: Tensor, state: Any) -> Any:
        h = state[0]
        r, z = torch.sigmoid(into[0] + across[0]), torch.sigmoid(into[1] + across[1])
        n = torch.tanh(into[2] + r * across[2])
        candidate = (1 - z) * (1 - n * n)
        slopes = candidate * across[2] * r * (1 - r), (h - n) * z * (1 - z), candidate, r, z
        return ((1 - z) * n + z * h,), slopes

    def back(self, slope: Any, h: Any, carry: Any) -> Any:
        to_r, to_z, to_n, r, z = slope
        into = torch.stack([h * to_r, h * to_z, h * to_n])
        return into, torch.stack([h * to_r, h * to_z, h * to_n * r]), (h * z,)


class _Plain:
    gates = 1

    def __init__(self, kind: str) -> None:
        self._tanh = kind == "rnn_tanh"

    def start(self) -> tuple[Tensor, ...]:
        return (torch.zeros(_UNITS, dtype=torch.float64),)

    def nothing(self) -> tuple[Any, ...]:
        return (0.0,)

    def step(self, into: Tensor, across: Tensor, state: Any) -> Any:
        a = (into + across)[0]
        new = torch.tanh(a) if self._tanh else torch.relu(a)
        return (new,), 1 - new * new if self._tanh else (a > 0).double()

    def back(self, slope: Any, h: Any, carry: Any) -> Any:
        into = (h * slope)[None]
        return into, into, (0.0,)
