"""Biases and factors: parameters that meet the entries of a value one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from gradscope.theory.prediction._alike import Alike
from gradscope.theory.prediction._constant import Constant
from gradscope.theory.prediction._flow import Flow
from gradscope.theory.prediction._grid import WEIGHTS, at_values, quantiles
from gradscope.theory.prediction._value import Root, Value, broadcast


def added(flow: Flow, x: Value, bias: Constant, sign: float = 1.0, own: float = 1.0) -> Value:
    """own·x + sign·bias: where it differs from unit to unit, the bias spreads the entries."""
    dims = broadcast(x.dims, ((),) * len(bias.shape))
    centre = sign * bias.moments.mean
    with torch.enable_grad():
        f = own * x.f + centre
    if bias.spread == 0.0:
        if bias.name is None or x.root is None:
            return replace(x, dims=dims, f=f)
        return _with_own_root(flow, x, replace(x, dims=dims, f=f), bias, own, None)
    alike = x.alike * own**2 + bias.alike(x.dims) + Alike.shared(2.0 * own * x.mean * centre)
    root = Root.gaussian(alike, own * x.mean + centre)
    made = Value(dims, root, root.h)

    def back() -> None:
        flow.note(bias, _once(made, bias), root.gradient)
        flow.give(x, root.gradient * own**2)

    flow.later(back)
    return made


def multiplied(flow: Flow, x: Value, factor: Constant) -> Value:
    """x·factor, of which only the size counts where it differs from unit to unit."""
    size = factor.moments.mean if factor.spread == 0.0 else math.sqrt(factor.moments.square)
    with torch.enable_grad():
        made = replace(x, dims=broadcast(x.dims, ((),) * len(factor.shape)), f=x.f * size)
    if factor.name is None or x.root is None:
        return made
    return _with_own_root(flow, x, made, factor, size, x.alike)


def _once(value: Value, parameter: Constant) -> Value:
    """As a parameter sees it that has a number of its own for each position: it gets the gradient of that one alone."""
    return value.at_one_position if "position" in parameter.varies(value.dims) else value


def _with_own_root(flow: Flow, x: Value, made: Value, parameter: Constant, slope: float, of: Alike | None) -> Value:
    """The same entries, of which the gradient's mean products are known: the parameter's is made of them."""
    values = made.values
    root = Root.of(quantiles(values, WEIGHTS), made.alike)
    own = Value(made.dims, root, root.h)

    def back() -> None:
        flow.note(parameter, _once(own, parameter), root.gradient, of)
        flow.give(x, root.gradient * slope**2, at_values(root.profile, root.h.detach(), values) * slope**2)

    flow.later(back)
    return own
