"""Rules of operations that give the same entries in another form, parts of them, or several one after another."""

from __future__ import annotations

import math
from typing import Any

import torch

from gradscope.theory.prediction import _grid
from gradscope.theory.prediction._alike import NOTHING, Alike
from gradscope.theory.prediction._capture import Operation
from gradscope.theory.prediction._constant import Constant, Indices
from gradscope.theory.prediction._flow import Flow, regroup_or_guess
from gradscope.theory.prediction._positions import one_after_another, over_positions, some_positions, taken_positions
from gradscope.theory.prediction._registry import NoRule, rule
from gradscope.theory.prediction._value import Atom, Dims, Root, Value


@rule(
    "aten.view", "aten._unsafe_view", "aten.reshape", "aten.clone", "aten.detach", "aten.alias", "aten._to_copy",
    "aten.contiguous", "aten.expand", "aten.unsqueeze", "aten.squeeze", "aten.lift_fresh", "aten.copy",
)  # fmt: skip
def in_another_form(flow: Flow, operation: Operation, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Reshaped, copied or expanded; a copy into a buffer is what was copied."""
    if operation.name == "aten.copy" and args and isinstance(args[0], (Value, Indices)):
        x = args[0]
    if isinstance(x, Constant):
        raise NoRule("a constant with what depends on inputs")
    shape = operation.shapes[0]
    if operation.name == "aten.expand":
        dims = ((),) * (len(shape) - len(x.dims)) + x.dims
        dims = tuple(d if d or size == 1 else (Atom("input", size),) for d, size in zip(dims, shape, strict=True))
    else:
        dims = regroup_or_guess(x.dims, shape)
    return _with_dims(x, dims)


def _with_dims(x: Any, dims: Dims) -> Any:
    return Indices(dims, x.alike, x.tensor) if isinstance(x, Indices) else x.with_dims(dims)


@rule("aten.t", "aten.transpose", "aten.permute")
def turned(flow: Flow, operation: Operation, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Dimensions in another order."""
    order = list(range(len(x.dims)))
    if operation.name == "aten.t":
        order = order[::-1]
    elif operation.name == "aten.permute":
        order = [i % len(order) for i in args[0]]
    else:
        a, b = (i % len(order) for i in args[:2])
        order[a], order[b] = order[b], order[a]
    dims = tuple(x.dims[i] for i in order)
    moved = [i for i in order if any(atom.label == "position" and atom.size > 1 for atom in x.dims[i])]
    if moved != sorted(moved) and isinstance(x, Value) and x.root is not None:  # they are not counted as they were
        return _copy(flow, x, dims, 1.0, flat=True)
    return _with_dims(x, dims)


@rule(
    "aten.slice", "aten.select", "aten.unbind", "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.narrow",
    "aten.index", "aten.unsafe_split", "aten.index_select",
)  # fmt: skip
def parts(flow: Flow, operation: Operation, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Parts along a dimension: of units they have nothing to do with each other, though they are spread alike."""
    made: list[Value | Indices] = []
    for i, shape in enumerate(operation.shapes):
        if isinstance(x, Indices):
            made.append(Indices(regroup_or_guess(x.dims, shape), x.alike, x.tensor))
            continue
        if not isinstance(x, Value):
            raise NoRule("a constant chosen by what depends on inputs")
        share = math.prod(shape) / math.prod(x.shape)
        dims = _cut(x.dims, shape)
        if share == 1.0:
            made.append(x.with_dims(dims))
            continue
        taken = None if x.root is None else taken_positions(operation, x.dims, i, args)
        made.append(_copy(flow, x, dims, share) if taken is None else some_positions(flow, x, dims, taken))
    return made


def _copy(flow: Flow, x: Value, dims: Dims, share: float, *, flat: bool = False) -> Value:
    """Other entries of the same kind; their gradient is a part of all."""
    if x.root is None:
        return x.with_dims(dims)
    alike = x.alike.flat if flat else x.alike
    root = Root.of(_grid.quantiles(x.values, _grid.WEIGHTS), alike)
    flow.later(lambda: flow.give(x, (root.gradient.flat if flat else root.gradient) * share))
    return Value(dims, root, root.h)


def _cut(dims: Dims, shape: tuple[int, ...]) -> Dims:
    """After a slice, or after a dimension was selected."""
    sizes = [math.prod(a.size for a in dim) for dim in dims]
    if len(shape) == len(dims):
        return tuple(_shrunk(dim, size) for dim, size in zip(dims, shape, strict=True))
    for gone in range(len(dims)):
        rest = [size for i, size in enumerate(sizes) if i != gone]
        if tuple(rest) == tuple(shape):
            return tuple(dim for i, dim in enumerate(dims) if i != gone)
    return regroup_or_guess(dims, shape)


def _shrunk(dim: tuple[Atom, ...], size: int) -> tuple[Atom, ...]:
    if math.prod(atom.size for atom in dim) == size:
        return dim
    label = dim[0].label if dim else "unit"
    return (Atom(label, size),) if size > 1 else ()


@rule("aten.cat", "aten.stack", "aten.concat")
def together(flow: Flow, operation: Operation, pieces: Any, *args: Any, **kwargs: Any) -> Any:
    """One after another: a mixture of their entries."""
    shape = operation.shapes[0]
    pieces = [one for one in pieces if math.prod(one.shape)]
    values = [one for one in pieces if isinstance(one, Value)]
    longest = max(values, key=lambda one: math.prod(one.shape))
    dims = _grown(longest.dims, shape)
    if operation.name != "aten.stack" and over_positions(dims, args[0] if args else 0):
        return one_after_another(flow, pieces, dims, args[0] if args else 0)
    total = sum(math.prod(one.shape) for one in pieces)
    distribution, weights, alike = [], [], NOTHING
    for one in pieces:
        share = math.prod(one.shape) / total
        if isinstance(one, Value):
            distribution.append(one.values)
            weights.append(_grid.WEIGHTS * share)
            alike = alike + one.alike * share
        else:
            part = Root.gaussian(Alike.shared(one.moments.square), one.moments.mean)
            distribution.append(part.h.detach())
            weights.append(_grid.WEIGHTS * share)
            alike = alike + Alike.shared(one.moments.square) * share
    root = Root.of(_grid.quantiles(torch.cat(distribution), torch.cat(weights)), alike)

    def back() -> None:
        for one in values:
            flow.give(one, root.gradient)

    flow.later(back)
    return Value(dims, root, root.h)


def _grown(dims: Dims, shape: tuple[int, ...]) -> Dims:
    if len(dims) != len(shape):
        return regroup_or_guess(dims, shape)
    return tuple(
        dim if math.prod(a.size for a in dim) == size else (Atom(dim[0].label if dim else "position", size),)
        for dim, size in zip(dims, shape, strict=True)
    )
