"""Some positions of a sequence, and sequences one after another: where each comes from, both ways.

A token that is chosen has a gradient of its own and the others have none; a class token before the patches is a
parameter among what depends on the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope.theory.prediction import _grid
from gradscope.theory.prediction._alike import NOTHING, Alike
from gradscope.theory.prediction._capture import Operation
from gradscope.theory.prediction._constant import Constant
from gradscope.theory.prediction._flow import Flow
from gradscope.theory.prediction._places import classes, membership
from gradscope.theory.prediction._value import Dims, Root, Value

Numbers = NDArray[np.int64]


def over_positions(dims: Dims, dim: int) -> bool:
    """Whether this dimension has all the positions."""
    atoms = dims[dim % len(dims)]
    every = math.prod(atom.size for one in dims for atom in one if atom.label == "position")
    own = {atom.label for atom in atoms if atom.size > 1}
    return own == {"position"} and math.prod(atom.size for atom in atoms) == every


def taken_positions(operation: Operation, dims: Dims, output: int, args: tuple[Any, ...]) -> Numbers | None:
    """Which positions a part has; None where it is none of positions, or it is not known of which."""
    name = operation.name.removeprefix("aten.")
    at = {"unbind": 0, "select": 0, "slice": 0, "narrow": 0}.get(name, 1)
    dim = int(args[at]) if len(args) > at else 0
    if name in ("index", "index_select") or not over_positions(dims, dim):
        return None
    count = math.prod(atom.size for atom in dims[dim % len(dims)])
    every = np.arange(count)
    if name in ("unbind", "select"):
        index = output if name == "unbind" else int(args[1])
        return every[[index]]
    if name == "narrow":
        return every[int(args[1]) :][: int(args[2])]
    if name == "slice":
        start, stop, step = (*args[1:4], None, None, None)[:3]
        return every[start:stop:step]
    before = sum(shape[dim % len(dims)] for shape in operation.shapes[:output])
    return every[before : before + operation.shapes[output][dim % len(dims)]]


def some_positions(flow: Flow, x: Value, dims: Dims, taken: Numbers) -> Value:
    """What is at these positions; at the others there is no gradient."""
    whole, alike = x.count("position"), x.alike
    members = membership(taken, len(taken), whole)
    part = alike if alike.places is None else Alike.of(alike.places.moved(members, classes(len(taken))))
    sizes = _sizes_at(part.same, x)
    root = Root.of(_grid.quantiles(x.values, _grid.WEIGHTS) * sizes, part)

    def back() -> None:
        arrived = root.gradient.by_position(len(taken))
        flow.give(x, Alike.of(arrived.moved(members.T, classes(whole))))

    flow.later(back)
    return Value(dims, root, root.h)


def _sizes_at(same: float, x: Value) -> float:
    whole = _grid.square(x.values)
    return math.sqrt(same / whole) if whole > 0.0 else 1.0


def one_after_another(flow: Flow, pieces: Sequence[Value | Constant], dims: Dims, dim: int) -> Value:
    """Positions of several tensors: a mixture of their entries, each with its own mean square."""
    count = Value(dims, None, torch.zeros(())).count("position")
    sizes, lengths = classes(count), [one.shape[dim % len(dims)] for one in pieces]
    starts = np.cumsum([0, *lengths[:-1]])
    members = [
        membership(np.arange(length), count, length, at=int(start))
        for start, length in zip(starts, lengths, strict=True)
    ]
    distribution, weights, alike = [], [], NOTHING
    for one, length, own in zip(pieces, lengths, members, strict=True):
        found = one.alike if isinstance(one, Value) else _for_all_inputs(one, length)
        entries = one.values if isinstance(one, Value) else Root.gaussian(found, one.moments.mean).h.detach()
        distribution.append(entries)
        weights.append(_grid.WEIGHTS * (length / count))
        alike = alike + Alike.of(found.by_position(length).moved(own, sizes))
    root = Root.of(_grid.quantiles(torch.cat(distribution), torch.cat(weights)), alike)
    made = Value(dims, root, root.h)

    def back() -> None:
        arrived = root.gradient.by_position(count)
        for one, length, own in zip(pieces, lengths, members, strict=True):
            gradient = Alike.of(arrived.moved(own.T, classes(length)))
            if isinstance(one, Value):
                flow.give(one, gradient)
            else:
                flow.note(one, made.at_one_position, gradient)

    flow.later(back)
    return made


def _for_all_inputs(one: Constant, length: int) -> Alike:
    square = one.moments.square
    apart = one.moments.mean**2 if length > 1 else square
    return Alike(square, apart, square, apart)
