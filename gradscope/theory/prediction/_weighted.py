"""Rules of products with weights: linear layers, convolutions, tables of embeddings."""

from __future__ import annotations

import math
from typing import Any

from gradscope.theory.prediction._alike import Alike
from gradscope.theory.prediction._attention import bilinear
from gradscope.theory.prediction._capture import Operation
from gradscope.theory.prediction._constant import Constant, Indices
from gradscope.theory.prediction._flow import Flow
from gradscope.theory.prediction._registry import NoRule, rule
from gradscope.theory.prediction._value import Atom, Dims, Root, Value


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
    near, far = (0.0, 0.0) if over_positions else apart
    alike = alike.scaled(position=near, both=near)
    alike = alike.flat if over_positions or apart != (1.0, 1.0) else alike
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
        gradient = (root.gradient * (fan_out * w_square)).scaled(position=far, both=far)
        flow.give(x, gradient.flat if over_positions or apart != (1.0, 1.0) else gradient)

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
    root = Root.gaussian(same * w.moments.square)
    made = Value((*indices.dims, (Atom("unit", w.shape[1]),)), root, root.h)
    flow.later(lambda: flow.note(w, made, root.gradient, same, 1.0 / w.shape[0]))  # of all rows, those that were used
    return made
