"""Rules of norms: over the units of a position, of a group, or over a batch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from gradscope.theory.prediction._alike import Alike
from gradscope.theory.prediction._capture import Operation
from gradscope.theory.prediction._constant import Constant
from gradscope.theory.prediction._flow import Flow
from gradscope.theory.prediction._grid import square
from gradscope.theory.prediction._parameters import added, multiplied
from gradscope.theory.prediction._registry import rule
from gradscope.theory.prediction._value import Root, Value


@rule("aten.native_layer_norm")
def layer_norm(
    flow: Flow, operation: Operation, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """The units of each position have mean 0 and variance 1."""
    return [_affine(flow, _normed(x, x.mean, eps), weight, bias), None, None]


@rule("rms_norm", "aten._fused_rms_norm", "aten.rms_norm")
def rms_norm(flow: Flow, operation: Operation, x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """The units of each position have mean square 1."""
    return [_affine(flow, _normed(x, 0.0, eps or 1e-7), weight, None), None]


def _scaled(x: Value, centre: float, var: float) -> Value:
    with torch.enable_grad():
        return replace(x, f=(x.f - centre) / math.sqrt(var))


def _normed(x: Value, centre: float, eps: float) -> Value:
    """Each position has a variance of its own, which a small eps leaves nothing of."""
    var = square(x.values) - centre**2
    made, sizes = _scaled(x, centre, var + eps), x.sizes
    if sizes is None:
        return made
    return x.resized(made.f, sizes * (var + eps) / (var * sizes + eps))


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
