"""Rules of means and of pooling."""

from __future__ import annotations

import math
from typing import Any

import torch

from gradscope.theory.prediction import _grid
from gradscope.theory.prediction._alike import Alike
from gradscope.theory.prediction._capture import Operation
from gradscope.theory.prediction._flow import Flow
from gradscope.theory.prediction._grid import largest_of, mean, square
from gradscope.theory.prediction._registry import NoRule, rule
from gradscope.theory.prediction._value import Atom, Dims, Root, Value


@rule("aten.mean", "aten.sum")
def averaged(flow: Flow, operation: Operation, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Over units a mean is a number; over positions it is what they share."""
    if not isinstance(x, Value):
        raise NoRule("of these")
    over = args[0] if args and isinstance(args[0], (list, tuple)) else list(range(len(x.dims)))
    over = [i % len(x.dims) for i in over]
    labels = {atom.label for i in over for atom in x.dims[i]}
    count = math.prod(x.shape[i] for i in over)
    dims = tuple(() if i in over else dim for i, dim in enumerate(x.dims))
    if len(operation.shapes[0]) < len(dims):
        dims = tuple(dim for i, dim in enumerate(x.dims) if i not in over)
    factor = 1.0 if operation.name == "aten.mean" else float(count)
    if labels <= {"unit"}:
        made = Value(dims, None, torch.tensor(factor * x.mean, dtype=torch.float64))
        return made if x.sizes is None else made.resized(made.f, x.sizes)
    if labels <= {"position"}:
        return _pooled(flow, x, dims, count, count, 1, factor)
    raise NoRule("over inputs, or over units and positions at once")


def _pooled(flow: Flow, x: Value, dims: Dims, window: float, inputs: int, outputs: int, factor: float = 1.0) -> Value:
    a = x.alike
    same = (a.same + (window - 1) * a.position) / window
    at_inputs = (a.input + (window - 1) * a.both) / window
    alike = Alike(same, a.position, at_inputs, a.both) * factor**2
    root = Root.gaussian(alike, factor * x.mean) if window > 4 else Root.of(_sum_of(x, window, same, factor), alike)
    times = outputs * window / inputs  # in how many windows a position is

    def back() -> None:
        g = root.gradient * (factor / window) ** 2
        same_g = times * g.same + times * (times - 1) * g.position if times >= 1 else times * g.same
        share = min((window - 1) / max(inputs - 1, 1), 1.0)
        position = share * g.same + (1.0 - share) * g.position
        both = share * g.input + (1.0 - share) * g.both
        flow.give(x, Alike(same_g, position * times, times * g.input, both * times))

    flow.later(back)
    return Value(dims, root, root.h)


def _sum_of(x: Value, window: float, same: float, factor: float) -> Any:
    """The mean of a few: their own distribution, brought to the mean's variance."""
    centre, var = x.mean, square(x.values) - x.mean**2
    narrow = math.sqrt(max(same - centre**2, 0.0) / var) if var > 0.0 else 0.0
    return factor * (centre + narrow * (_grid.quantiles(x.values, _grid.WEIGHTS) - centre))


def _pooled_dims(x: Value, shape: tuple[int, ...]) -> tuple[Dims, int, int]:
    spatial = [i for i, dim in enumerate(x.dims) if dim and dim[0].label == "position"]
    first = min(spatial) if spatial else len(x.dims)
    dims = tuple(
        dim if i < first else ((Atom("position", size),) if size > 1 else ())
        for i, (dim, size) in enumerate(zip(x.dims, shape, strict=True))
    )
    return dims, math.prod(x.shape[first:]), math.prod(shape[first:])


@rule("aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d")
def average_pool(flow: Flow, operation: Operation, x: Any, kernel: Any, *args: Any, **kwargs: Any) -> Any:
    """Means of windows."""
    dims, inputs, outputs = _pooled_dims(x, operation.shapes[0])
    window = math.prod(kernel) if len(kernel) > 1 else kernel[0] ** (len(x.dims) - 2)
    return _pooled(flow, x, dims, window, inputs, outputs)


@rule("aten._adaptive_avg_pool2d", "aten._adaptive_avg_pool3d", "aten.adaptive_avg_pool1d")
def adaptive_average_pool(flow: Flow, operation: Operation, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Means of windows that cover the picture."""
    dims, inputs, outputs = _pooled_dims(x, operation.shapes[0])
    return _pooled(flow, x, dims, inputs / outputs, inputs, outputs)


@rule("aten.max_pool2d_with_indices", "aten.max_pool3d_with_indices", "aten.max_pool1d_with_indices")
def max_pool(flow: Flow, operation: Operation, x: Any, kernel: Any, *args: Any, **kwargs: Any) -> Any:
    """The largest of each window; the gradient goes to it alone."""
    dims, inputs, outputs = _pooled_dims(x, operation.shapes[0])
    window = math.prod(kernel) if len(kernel) > 1 else kernel[0] ** (len(x.dims) - 2)
    if x.root is None:
        raise NoRule("of a constant")
    rising = bool((torch.diff(x.values) >= -1e-12).all())
    values = x.values if rising else _grid.quantiles(x.values, _grid.WEIGHTS)
    top = largest_of(window, x.root.position)
    h = _at(values, top)
    root = Root(h.clone().requires_grad_(), x.root.position, x.root.input, x.root.both)

    chosen = _grid.chance_to_be_largest(window, x.root.position)

    def back() -> None:
        share = outputs / inputs
        own = _grid.at_values(root.profile, root.h.detach(), values) * (share * window) * chosen
        flow.give(x, root.gradient * share, own * (share * root.gradient.same / max(mean(own), 1e-300)))

    flow.later(back)
    return [Value(dims, root, root.h), None]


def _at(values: Any, z: Any) -> Any:
    """A function on the grid, at other places."""
    step = float(_grid.Z[1] - _grid.Z[0])
    place = ((z - _grid.Z[0]) / step).clamp(0.0, _grid.POINTS - 1.001)
    low = place.floor().long()
    share = place - low
    return values[low] * (1.0 - share) + values[low + 1] * share
