"""The rules of operations that are more than one entry's."""

from __future__ import annotations

import math
from typing import Any

import torch

from gradscope.theory.prediction import _grid
from gradscope.theory.prediction._attention import bilinear
from gradscope.theory.prediction._capture import Operation
from gradscope.theory.prediction._constant import Constant, Indices
from gradscope.theory.prediction._flow import Flow, regroup_or_guess
from gradscope.theory.prediction._grid import largest_of, mean, square
from gradscope.theory.prediction._parameters import added, multiplied
from gradscope.theory.prediction._registry import NoRule, rule
from gradscope.theory.prediction._value import NOTHING, Alike, Atom, Dims, Root, Value

# -- the same entries in another form -----------------------------------------------------------------------


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
    return _with_dims(x, tuple(x.dims[i] for i in order))


@rule(
    "aten.slice", "aten.select", "aten.unbind", "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.narrow",
    "aten.index", "aten.unsafe_split", "aten.index_select",
)  # fmt: skip
def parts(flow: Flow, operation: Operation, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Parts along a dimension: of units they have nothing to do with each other, though they are spread alike."""
    made: list[Value | Indices] = []
    for shape in operation.shapes:
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
        made.append(_copy(flow, x, dims, share))
    return made


def _copy(flow: Flow, x: Value, dims: Dims, share: float) -> Value:
    """Other entries of the same kind; their gradient is a part of all."""
    if x.root is None:
        return x.with_dims(dims)
    alike = x.alike
    root = Root.of(_grid.quantiles(x.values, _grid.WEIGHTS), alike)
    flow.later(lambda: flow.give(x, root.gradient * share))
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
    longest = max(values, key=lambda one: math.prod(one.shape))
    dims = _grown(longest.dims, shape)
    return Value(dims, root, root.h)


def _grown(dims: Dims, shape: tuple[int, ...]) -> Dims:
    if len(dims) != len(shape):
        return regroup_or_guess(dims, shape)
    return tuple(
        dim if math.prod(a.size for a in dim) == size else (Atom(dim[0].label if dim else "position", size),)
        for dim, size in zip(dims, shape, strict=True)
    )


# -- products with weights ----------------------------------------------------------------------------------


@rule("aten.mm", "aten.addmm", "aten.linear", "aten.bmm", "aten.matmul", "aten.baddbmm")
def product(flow: Flow, operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """x·W + b."""
    bias = None
    if operation.name in ("aten.addmm", "aten.baddbmm"):
        bias, x, w = args[:3]
    elif operation.name == "aten.linear":
        x, w = args[:2]
        bias = args[2] if len(args) > 2 else None
    else:
        x, w = args[:2]
    if isinstance(x, Value) and isinstance(w, Value):
        return bilinear(flow, operation, x, w, bias)
    if isinstance(x, Constant) and isinstance(w, Value):
        raise NoRule("a constant from the left")
    if not (isinstance(x, Value) and isinstance(w, Constant)):
        raise NoRule("of these")
    shape = operation.shapes[0]
    fan_in = x.shape[-1]
    summed = {atom.label for atom in x.dims[-1]}
    if "input" in summed:
        raise NoRule("which sums over inputs")
    mixed = "position" in summed and any(atom.label == "unit" for dim in x.dims[:-1] for atom in dim)
    dims = (*x.dims[:-1], (Atom("position" if mixed else "unit", shape[-1]),))
    w_square, w_mean = w.moments.square, w.moments.mean
    over = "position" in summed
    return weighted(flow, x, dims, w, w_square, w_mean, fan_in, shape[-1], bias, over_positions=over)


def weighted(
    flow: Flow,
    x: Value,
    dims: Dims,
    weight: Constant,
    w_square: float,
    w_mean: float,
    fan_in: float,
    fan_out: float,
    bias: Any = None,
    *,
    over_positions: bool = False,
    often: float = 1.0,
    apart: tuple[float, float] = (1.0, 1.0),
) -> Value:
    """Sums of fan_in entries with random weights: normal entries. Back, each entry has the gradients of fan_out sums.

    Over positions: each has weights of its own, so that what is made at two of them is not alike. Where a kernel
    reaches beyond the picture, two positions have a part of their weights in common: `apart`, of outputs and inputs.
    """
    alike = x.alike * (fan_in * w_square)
    if over_positions:
        alike = Alike(alike.same, 0.0, alike.input, 0.0)
    alike = Alike(alike.same, alike.position * apart[0], alike.input, alike.both * apart[0])
    centre = fan_in * w_mean * x.mean
    alike = alike + Alike.shared(max(centre**2 - fan_in * (w_mean * x.mean) ** 2, 0.0))
    if isinstance(bias, Constant):
        alike = alike + Alike.shared(bias.moments.square + 2.0 * centre * bias.moments.mean)
        centre += bias.moments.mean
    root = Root.gaussian(alike, centre)
    made = Value(dims, root, root.h)
    given = x.alike

    def back() -> None:
        flow.note(weight, made, root.gradient, given, often)
        flow.note(bias, made, root.gradient)
        gradient = root.gradient * (fan_out * w_square)
        far = 0.0 if over_positions else apart[1]
        flow.give(x, Alike(gradient.same, gradient.position * far, gradient.input, gradient.both * far))

    flow.later(back)
    return made


@rule("aten.convolution")
def convolution(
    flow: Flow,
    operation: Operation,
    x: Any,
    w: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Any:
    """Of each output the taps that lie within the picture are counted, exactly, per dimension."""
    if not (isinstance(x, Value) and isinstance(w, Constant)):
        raise NoRule("of these")
    shape, kernel = operation.shapes[0], w.shape[2:]
    pairs, squares, outputs, inputs = 1.0, 1.0, 1, 1
    for d, size in enumerate(kernel):
        here, there = x.shape[2 + d], shape[2 + d]
        s, p, dil = (one[d] if len(one) > 1 else one[0] for one in (stride, padding, dilation))
        many, few = (there, here) if transposed else (here, there)
        taps = [sum(0 <= o * s - p + t * dil < many for o in range(few)) for t in range(size)]
        outputs, inputs = outputs * there, inputs * here
        pairs, squares = pairs * sum(taps), squares * sum(n * n for n in taps)
    into, out = (w.shape[0], w.shape[1] * groups) if transposed else (w.shape[1] * groups, w.shape[0])
    dims = (x.dims[0], (Atom("unit", out),), *(((Atom("position", n),) if n > 1 else ()) for n in shape[2:]))
    return weighted(
        flow,
        x,
        dims,
        w,
        w.moments.square,
        w.moments.mean,
        into / groups * pairs / outputs,
        out / groups * pairs / inputs,
        bias,
        often=pairs / (outputs * math.prod(kernel)),
        apart=(_shared(pairs, squares, outputs), _shared(pairs, squares, inputs)),
    )


def _shared(pairs: float, squares: float, places: int) -> float:
    """The part of its taps that a place has in common with another one, on average over two different places.

    `pairs` counts places and taps, `squares` pairs of places that have the same tap, each place with itself included.
    """
    return (squares - pairs) / (places - 1) / pairs if places > 1 else 1.0


@rule("aten.embedding")
def embedding(flow: Flow, operation: Operation, w: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:
    """A row of the table for each token."""
    if not (isinstance(w, Constant) and isinstance(indices, Indices)):
        raise NoRule("of these")
    same = indices.alike
    alike = Alike(*(n * w.moments.square for n in same.numbers))
    root = Root.gaussian(alike)
    return Value((*indices.dims, (Atom("unit", w.shape[1]),)), root, root.h)


# -- norms --------------------------------------------------------------------------------------------------


@rule("aten.native_layer_norm")
def layer_norm(
    flow: Flow, operation: Operation, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """The units of each position have mean 0 and variance 1."""
    var = square(x.values) - x.mean**2
    return [_affine(flow, _scaled(x, x.mean, var + eps), weight, bias), None, None]


@rule("rms_norm", "aten._fused_rms_norm", "aten.rms_norm")
def rms_norm(flow: Flow, operation: Operation, x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """The units of each position have mean square 1."""
    return [_affine(flow, _scaled(x, 0.0, square(x.values) + (eps or 1e-7)), weight, None), None]


def _scaled(x: Value, centre: float, var: float) -> Value:
    with torch.enable_grad():
        return Value(x.dims, x.root, (x.f - centre) / math.sqrt(var))


def _affine(flow: Flow, x: Value, weight: Any, bias: Any) -> Value:
    if isinstance(weight, Constant):
        x = multiplied(flow, x, weight)
    return added(flow, x, bias) if isinstance(bias, Constant) else x


@rule(
    "aten.native_batch_norm", "aten._native_batch_norm_legit", "aten.cudnn_batch_norm", "aten._batch_norm_with_update"
)
def batch_norm(
    flow: Flow,
    operation: Operation,
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: Any = True,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
    *rest: Any,
) -> Any:
    """Each unit has mean 0 and variance 1 over inputs and positions: what all of them share is taken away."""
    if training is False:
        var = running_var.moments.mean if isinstance(running_var, Constant) else 1.0
        centre = running_mean.moments.mean if isinstance(running_mean, Constant) else 0.0
        return [_affine(flow, _scaled(x, centre, var + eps), weight, bias), None, None]
    inputs, places = x.count("input"), x.count("position")
    alike = x.alike
    shared = _average(alike, inputs, places)
    var = max(alike.same - shared, 0.0)
    gain = 1.0 / (var + eps)
    root = Root.gaussian((alike + Alike.shared(-shared)) * gain)

    def back() -> None:
        gradient = root.gradient
        all_alike = _average(gradient, inputs, places)
        count = inputs * places
        along = gradient.same / count  # what changes the variance
        narrow = count / (count - 3) if count > 3 else 1.0  # E[1/s²]·σ² of a variance from so many entries
        flow.give(x, (gradient + Alike.shared(-all_alike) + Alike(-along, 0.0, 0.0, 0.0)) * (gain * narrow))

    flow.later(back)
    return [_affine(flow, Value(x.dims, root, root.h), weight, bias), None, None]


def _average(alike: Alike, inputs: int, places: int) -> float:
    """Over all pairs of a unit's entries, each with itself included."""
    b, p = inputs, places
    total = alike.same + (p - 1) * alike.position + (b - 1) * alike.input + (b - 1) * (p - 1) * alike.both
    return total / (b * p)


@rule("aten.native_group_norm")
def group_norm(
    flow: Flow, operation: Operation, x: Any, weight: Any, bias: Any, n: int, c: int, hw: int, group: int, eps: float
) -> Any:
    """The units of a group, at all positions of an input, have mean 0 and variance 1."""
    units, places = c // group, x.count("position")
    alike = x.alike
    own = (alike.same + (places - 1) * alike.position) / places  # of a unit's mean over the positions
    shared = x.mean**2 + (own - x.mean**2) / units
    var = max(alike.same - shared, 0.0)
    gain = 1.0 / (var + eps)
    moved = Alike(shared, shared, min(shared, alike.input), min(shared, alike.both))
    root = Root.gaussian((alike + moved * -1.0) * gain)
    flow.later(lambda: flow.give(x, root.gradient * gain))
    return [_affine(flow, Value(x.dims, root, root.h), weight, bias), None, None]


# -- pooling and means --------------------------------------------------------------------------------------


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
        return Value(dims, None, torch.tensor(factor * x.mean, dtype=torch.float64))
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


# -- chance -------------------------------------------------------------------------------------------------


@rule("aten.native_dropout")
def dropout(flow: Flow, operation: Operation, x: Any, p: float, train: Any = True) -> Any:
    """A share p of the entries is 0, the others are larger."""
    if train is False or p == 0.0:
        return [x, None]
    a = x.alike
    alike = Alike(a.same / (1.0 - p), a.position, a.input, a.both)
    kept = torch.cat([x.values / (1.0 - p), torch.zeros(1, dtype=torch.float64)])
    weights = torch.cat([_grid.WEIGHTS * (1.0 - p), torch.full((1,), p, dtype=torch.float64)])
    root = Root.of(_grid.quantiles(kept, weights), alike)

    def back() -> None:
        g = root.gradient
        flow.give(x, Alike(g.same / (1.0 - p), g.position, g.input, g.both))

    flow.later(back)
    return [Value(x.dims, root, root.h), None]


@rule("aten.empty_like", "aten.zeros_like", "aten.ones_like", "aten.rand_like")
def like(flow: Flow, operation: Operation, x: Any, *args: Any, **kwargs: Any) -> Any:
    """New entries in the form of others."""
    return Value(x.dims, None, torch.tensor(1.0 if "ones" in operation.name else 0.0, dtype=torch.float64))


@rule("aten.bernoulli")
def chance(flow: Flow, operation: Operation, x: Any, p: float = 0.5, *args: Any, **kwargs: Any) -> Any:
    """1 for a share p of the entries, else 0: each by itself."""
    h = (1.0 - p < _grid.CDF).double()
    root = Root.of(h, Alike(p, p * p, p * p, p * p))
    return Value(x.dims, root, root.h)
