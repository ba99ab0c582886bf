"""Operations entry by entry: they are done, on the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradscope.theory.prediction._alike import Alike
from gradscope.theory.prediction._capture import Operation
from gradscope.theory.prediction._constant import Constant
from gradscope.theory.prediction._flow import Flow
from gradscope.theory.prediction._grid import POINTS, WEIGHTS, conditional, mean, outer, square
from gradscope.theory.prediction._parameters import added, multiplied
from gradscope.theory.prediction._places import Array
from gradscope.theory.prediction._registry import NoRule, rule
from gradscope.theory.prediction._value import Dims, Root, Value, broadcast, number

_NAMES = """abs add celu clamp clamp_min clamp_max cos div elu erf exp gelu hardsigmoid hardswish hardtanh
leaky_relu log log1p log_sigmoid_forward mish mul neg pow reciprocal relu relu6 rsqrt rsub selu sigmoid silu sin
softplus softshrink sqrt square sub tanh threshold true_divide _prelu_kernel prelu"""
POINTWISE = tuple("aten." + name for name in _NAMES.split())
"""Those that make of one entry, or of two, another."""


@rule(*POINTWISE)
def pointwise(flow: Flow, operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """Of one root: the same operation on the grid. Of two: a sum or a product of independent entries."""
    values = [one for one in args if isinstance(one, Value)]
    roots = {id(one.root) for one in values if one.root is not None}
    constants = [one for one in args if isinstance(one, Constant)]
    if len(roots) > 1:
        return _two_roots(flow, operation, values, args, kwargs)
    if not values:
        raise NoRule("of whole numbers alone")
    dims = values[0].dims
    for one in values[1:]:
        dims = broadcast(dims, one.dims)
    scores = next((one.scores for one in values if one.scores is not None), None)
    if scores is not None and constants and operation.name == "aten.add":
        return replace(values[0], scores=replace(scores, mask=constants[0]))
    if (
        len(values) == 1
        and len(constants) == 1
        and (made := _with_a_constant(flow, operation, args, kwargs)) is not None
    ):
        return made
    function = getattr(torch.ops.aten, operation.name.removeprefix("aten."))
    given = [
        one.f if isinstance(one, Value) else number(one.moments.mean) if isinstance(one, Constant) else one
        for one in args
    ]
    with torch.enable_grad():
        f = function(*given, **{key: value for key, value in kwargs.items() if key != "dtype"})
    if isinstance(f, tuple):
        f = f[0]
    if f.shape not in ((), values[0].f.shape, (1025,)):
        raise NoRule("no function of one entry")
    root = next((one.root for one in values if one.root is not None), None)
    if scores is not None and root is not None and values[0].root is root:
        scores = replace(
            scores, factor=math.sqrt(square(f.detach().expand(POINTS)) / max(square(root.h.detach()), 1e-300))
        )
    sizes = [one.sizes for one in values]
    if all(one is None for one in sizes):
        return Value(dims, root, f, scores=scores)
    template = next(one for one in values if one.root is root)
    return replace(template, scores=scores).resized(f, _sizes(function, args, kwargs, f), dims)


def _sizes(function: Any, args: Sequence[Any], kwargs: Any, f: Tensor) -> Array:
    """Mean squares by class of position, relative to those of f: the same operation at each class's size."""
    given, most = [], max(one.count("position") for one in args if isinstance(one, Value))
    for one in args:
        if isinstance(one, Value):
            sizes = one.sizes if one.count("position") == most else None
            size = np.ones(1) if sizes is None else sizes
            given.append(one.f.detach() * torch.from_numpy(np.sqrt(size))[:, None])
        else:
            given.append(number(one.moments.mean) if isinstance(one, Constant) else one)
    made = function(*given, **{key: value for key, value in kwargs.items() if key != "dtype"})
    made = made[0] if isinstance(made, tuple) else made
    squares = made.square().expand(-1, POINTS) @ WEIGHTS
    relative: Array = squares.numpy() / max(square(f.detach().expand(POINTS)), 1e-300)
    return relative


def _with_a_constant(flow: Flow, operation: Operation, args: tuple[Any, ...], kwargs: Any) -> Value | None:
    """A bias that is added, a factor; None where the entries are made another way."""
    name = operation.name.removeprefix("aten.")
    first, second = args[:2]
    value, constant = (first, second) if isinstance(first, Value) else (second, first)
    if name in ("add", "sub"):
        alpha = float(kwargs.get("alpha", 1.0)) * (-1.0 if name == "sub" else 1.0)
        return added(flow, value, constant, *((alpha, 1.0) if value is first else (1.0, alpha)))
    return multiplied(flow, value, constant) if name == "mul" else None


def _two_roots(flow: Flow, operation: Operation, values: list[Value], args: tuple[Any, ...], kwargs: Any) -> Value:
    name = operation.name.removeprefix("aten.")
    if len(values) != 2 or name not in ("add", "sub", "mul"):
        raise NoRule("of tensors that have nothing to do with each other")
    one, other = values
    dims = broadcast(one.dims, other.dims)
    factor = float(kwargs.get("alpha", 1.0)) * (-1.0 if name == "sub" else 1.0)
    if name == "mul":
        alike = one.alike.times(other.alike)
        root = Root.of(outer(one.values, other.values, "mul"), alike)

        def back_through_product() -> None:
            flow.give(one, _summed(root.gradient.times(other.alike), dims, one))
            flow.give(other, _summed(root.gradient.times(one.alike), dims, other))

        flow.later(back_through_product)
        return Value(dims, root, root.h)
    alike = one.alike + other.alike * factor**2 + Alike.shared(2.0 * factor * one.mean * other.mean)
    root = Root.of(outer(one.values, factor * other.values, "add"), alike)

    ours, theirs = one.values, factor * other.values

    def back_through_sum() -> None:
        for part, mine, its, by in ((one, ours, theirs, 1.0), (other, theirs, ours, factor**2)):
            given = _summed(root.gradient, dims, part) * by
            shape = conditional(root.profile, root.h.detach(), mine, its)
            flow.give(part, given, shape * (given.same / max(mean(shape), 1e-300)))

    flow.later(back_through_sum)
    return Value(dims, root, root.h)


def _summed(gradient: Alike, dims: Dims, value: Value) -> Alike:
    """The gradient of what was the same for all inputs, or at all positions: the sum over them."""
    whole = Value(dims, None, value.f)
    for label in ("input", "position"):
        times = whole.count(label) / value.count(label)
        if times <= 1.0:
            continue
        if label == "input":
            gradient = gradient.over_inputs(times) * times
        else:
            same, position, inputs, both = gradient.numbers
            gradient = Alike(same + (times - 1) * position, 0.0, inputs + (times - 1) * both, 0.0) * times
            gradient = replace(gradient, position=gradient.same, both=gradient.input)
    return gradient
