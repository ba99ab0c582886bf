"""`predict`: what theory expects of every site of a model, as a recording."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.hooks._sites import ROOT, call_name, fans_of, role_of
from gradscope.init import InitPlan
from gradscope.init._plan_moments import moments_of_plan
from gradscope.init._untouched import run, untouched
from gradscope.recording import Moments as Row
from gradscope.recording import Recording, Signal, Site, StepRecord
from gradscope.theory.prediction import Moments
from gradscope.theory.prediction._capture import tensors
from gradscope.theory.prediction._flow import Flow
from gradscope.theory.prediction._prediction import predicted
from gradscope.theory.prediction._value import Value


def predict(model: nn.Module, inputs: Any, parameters: InitPlan | Mapping[str, Moments] | None = None) -> Recording:
    """What one forward and one backward of a model on one batch should give, by theory.

    The model's operations are captured in one forward pass, which on the meta device costs nothing, and moments are
    pushed through them both ways. At the output, as in `probe` without a loss, a gradient of rms 1 enters.

    Args:
        model: any module; its weights count as random, with the mean and the mean square that they have.
        inputs: as `probe` takes them; tensors on the meta device count as N(0, 1), or as tokens that are all different.
        parameters: moments of parameters, by name, or a plan (`gradscope.init.plan(model, scheme)`), to be taken in
            place of the values that they have; of those on the meta device all are needed. What a plan leaves as it is
            has its values or, on the meta device, torch's default: norms 1 and 0, embeddings N(0, 1).

    Returns:
        A recording of one step: `activation`, `activation_grad`, `weight` and `weight_grad`, the facts `source`
        (`theory`) and `coverage`: how many operations had a rule, and what was assumed of the others.

    Raises:
        TypeError, ValueError: an argument is not as above, or a parameter on the meta device has no moments.

    >>> recording = predict(nn.Sequential(nn.Linear(64, 64), nn.Tanh()), torch.ones(2, 64))
    >>> recording.facts["coverage"]
    {'covered': 2, 'assumed': {}}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is of type {type(model).__name__}; predict takes a torch.nn.Module")
    given = moments_of_plan(model, parameters) if isinstance(parameters, InitPlan) else dict(parameters or {})
    missing = [name for name, p in model.named_parameters() if p.device.type == "meta" and name not in given]
    if missing:
        raise ValueError(
            f"parameters has no moments of {missing[0]!r}, which is on the meta device ({len(missing)} are missing):"
            " gradscope.init.plan(model) tells them (on the command line --init auto)"
        )
    with untouched(model), torch.enable_grad():
        flow = predicted(model, lambda: run(model, inputs), list(tensors(inputs)), given)
    return recorded(model, flow)


def recorded(model: nn.Module, flow: Flow) -> Recording:
    """A prediction as a recording."""
    program = flow.program
    coverage = {"covered": flow.covered, "assumed": dict(flow.assumed)}
    recording = Recording.create(facts={"source": "theory", "coverage": coverage, "model": type(model).__name__})
    modules = dict(model.named_modules())
    rows: dict[Signal, tuple[list[int], list[Row]]] = {}

    def add(site: Site, row: Row) -> None:
        ids, found = rows.setdefault(site.signal, ([], []))
        ids.append(recording.add_site(site))
        found.append(row)

    for i, (value, tensor) in enumerate(program.inputs):
        one = flow.known.get(value)
        if isinstance(one, Value) and tensor.is_floating_point():
            name = call_name("<input>", 0, i)
            add(Site("activation", name, "<input>", "input", output=i, role="input", shape=one.shape), _row(one))
    depths: dict[str, int] = {}
    for depth, returned in enumerate(program.returned, start=1):
        one = flow.known.get(returned.value)
        module = modules[returned.module]
        name = returned.module or ROOT
        depths.setdefault(name, depth)
        if not isinstance(one, Value):
            continue
        fan_in, fan_out = fans_of(module)
        common: dict[str, Any] = {
            "module": name,
            "module_type": returned.type,
            "call": returned.call,
            "output": returned.index,
            "role": role_of(module, program.tensors[returned.value]),
            "depth": depth,
            "shape": returned.shape,
            "dtype": str(returned.dtype).removeprefix("torch."),
            "fan_in": fan_in,
            "fan_out": fan_out,
        }
        full = call_name(name, returned.call, returned.index)
        add(Site("activation", full, **common), _row(one))
        if one.root is not None:
            add(Site("activation_grad", full, **common), _centred(one.gradient, math.prod(returned.shape)))
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".")
        at = owner or ROOT
        place: dict[str, Any] = {
            "module": at,
            "module_type": type(modules[owner]).__name__,
            "param": own,
            "role": role_of(modules[owner]),
            "depth": depths.get(at, 0),
            "shape": tuple(parameter.shape),
            "dtype": str(parameter.dtype).removeprefix("torch."),
        }
        moments = flow.parameters.get(name) or _of(parameter)
        if moments is not None:
            add(Site("weight", name, **place), _spread(moments, parameter.numel()))
        if name in flow.weight_grads:
            add(Site("weight_grad", name, **place), _centred(flow.weight_grads[name], parameter.numel()))
    recording.append(
        StepRecord(
            step=0,
            moments={signal: (np.array(ids), Row.concat(found)) for signal, (ids, found) in rows.items()},
        )
    )
    recording.close()  # it is whole
    return recording


def _of(parameter: Tensor) -> Moments | None:
    if parameter.device.type == "meta":
        return None
    wide = parameter.detach().double()
    return Moments(float(wide.square().mean()), float(wide.mean()))


def _row(value: Value) -> Row:
    mean, square, count = value.mean, value.alike.same, math.prod(value.shape)
    zeros = round(count * float((value.values == 0.0).double().mean())) if value.root is not None else 0
    return _one(count, mean, square, zeros)


def _spread(moments: Moments, count: int) -> Row:
    return _one(count, moments.mean, moments.square)


def _centred(square: float, count: int) -> Row:
    return _one(count, 0.0, square)


def _one(count: int, mean: float, square: float, zeros: int = 0) -> Row:
    std = math.sqrt(max(square - mean * mean, 0.0))
    numbers = {"count": count, "mean": mean, "std": std, "min": math.nan, "max": math.nan, "zeros": zeros}
    return Row(**{k: np.array([v]) for k, v in numbers.items()}, nans=np.zeros(1, np.int64), infs=np.zeros(1, np.int64))
