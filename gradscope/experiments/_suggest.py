"""`suggest`: which initial weights keep a model's signal, by theory, and for the best of them by one measured batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.experiments._probe import probe
from gradscope.init import (
    EdgeOfChaos,
    ModelScheme,
    Propagate,
    ScaledBranches,
    VarianceScaling,
    initialize,
)
from gradscope.init._flatness import branch_ends, decades, inner_layers, predicted_decades
from gradscope.init._initialize import setting_of, steps_of
from gradscope.init._layer_fans import is_layer
from gradscope.init._model_schemes import Setting
from gradscope.init._model_schemes._branches import Branches
from gradscope.init._plan_moments import moments_of_plan
from gradscope.init._untouched import run, untouched
from gradscope.recording import Recording, Signal
from gradscope.recording._profile import in_flow
from gradscope.theory.prediction._prediction import Flow

AnyScheme = str | VarianceScaling | ModelScheme

_NAMED = ("auto", "torch_default", "glorot_normal", "he_normal", "lecun_normal", "orthogonal")
_SCALES = (0.5, 1.5, 2.25, 3.0, 4.0)
_SEED = 0


@dataclass(frozen=True)
class Candidate:
    """One way to set a model's weights, and how far the signal strays under it.

    Attributes:
        name: of the scheme, with its settings.
        scheme: as `gradscope.init.initialize` takes it; None for the weights that the model has.
        forward: decades between the largest and the smallest rms of the layers' pre-activations, negative where they
            shrink with depth; predicted. Layers that a residual branch ends in, and the output, are not among them:
            they are meant to be smaller.
        backward: likewise of their gradients, negative where these shrink towards the input.
        measured_forward, measured_backward: of one batch; None where that was not measured.
    """

    name: str
    scheme: AnyScheme | None
    forward: float
    backward: float
    measured_forward: float | None = None
    measured_backward: float | None = None

    @property
    def worst(self) -> float:
        """The larger of the two predicted numbers, without sign."""
        return max(abs(self.forward), abs(self.backward))


@dataclass(frozen=True, repr=False)
class Suggestion:
    """What was tried, best first.

    Attributes:
        candidates: by the larger of their two decades; the first one was measured too.
        before: the model as it is, predicted and measured.
    """

    candidates: tuple[Candidate, ...]
    before: Candidate

    @property
    def best(self) -> Candidate:
        """The first one."""
        return self.candidates[0]

    def __str__(self) -> str:
        rows = [("", "forward", "backward", "measured"), *map(_row, (self.before, *self.candidates))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join((row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))))
            for row in rows
        ]
        lines.insert(1, "─" * len(lines[0]))
        lines.append(
            "Decades between the largest and the smallest rms over the layers, negative where it shrinks on its way."
        )
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


def suggest(model: nn.Module, inputs: Any = None) -> Suggestion:
    """Try schemes, gains and scales of residual branches on the predicted map, and measure the best of them.

    The model stays as it is: `initialize(model, suggestion.best.scheme, inputs=inputs)` does what is suggested.

    Args:
        model: any module with weights.
        inputs: one batch, as `probe` takes it; without it one is made up for the model's first layer.

    Raises:
        TypeError: model is no module.
        ValueError: there are no inputs, and what was made up does not fit.

    >>> deep = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.ReLU())))
    >>> found = suggest(deep, torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))
    >>> found.before.backward < -3, found.best.worst < 0.1
    (True, True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is of type {type(model).__name__}; suggest takes a torch.nn.Module")
    inputs = _made_up(model) if inputs is None else inputs
    setting = setting_of(model, None, inputs)
    real = not any(parameter.is_meta for parameter in model.parameters())
    found = []
    for name, scheme in _schemes(bool(setting.program.branches)):
        try:
            rows = [part.row for step in steps_of(setting, scheme) for part in step.parts]
        except ValueError:  # no scheme for this model: an activation without a critical point
            continue
        found.append(Candidate(name, scheme, *_predicted(setting, moments_of_plan(model, rows))))
    found.sort(key=lambda one: one.worst)
    before = Candidate("as it is", None, *(_predicted(setting, {}) if real else (float("nan"), float("nan"))))
    if real:
        before = _measured(before, setting)
        found[0] = _measured(found[0], setting)
    return Suggestion(tuple(found), before)


def _schemes(branches: bool) -> Iterator[tuple[str, AnyScheme]]:
    for name in _NAMED:
        yield name, name
    for scale in _SCALES:
        yield f"N(0, {scale:g}/fan_in)", VarianceScaling(scale, "fan_in", "normal")
    yield "edge_of_chaos", EdgeOfChaos()
    yield "propagate", Propagate()
    yield "propagate, without biases", Propagate(biases=False)
    if branches:
        for name in _NAMED:
            yield f"{name}, branches × 1/√L", ScaledBranches(name)


def _predicted(setting: Setting, moments: Any) -> tuple[float, float]:
    program = setting.program.program
    with torch.enable_grad():
        flow = Flow(program, moments, program.tensors)
        flow.run()
        flow.back()
    return predicted_decades(flow, setting.model, setting.program)


def _measured(candidate: Candidate, setting: Setting) -> Candidate:
    tried = copy.deepcopy(setting.model)
    if candidate.scheme is not None:
        initialize(tried, candidate.scheme, generator=_generator(setting.model), inputs=setting.inputs)
    forward, backward = strayed(probe(tried, setting.inputs), setting.program)
    return replace(candidate, measured_forward=forward, measured_backward=backward)


def _generator(model: nn.Module) -> torch.Generator:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return torch.Generator(device).manual_seed(_SEED)


def strayed(recording: Recording, program: Branches) -> tuple[float, float]:
    """Decades between the largest and the smallest rms of pre-activations, and of their gradients.

    Signed by the direction of flow. Layers that a residual branch ends in, and the last one, are left out where at
    least two others stay; what is nothing counts as 1e-36.
    """
    return _decades(recording, "activation", program), _decades(recording, "activation_grad", program)


def _decades(recording: Recording, signal: Signal, program: Branches) -> float:
    profile = recording.profile(signal, "rms")
    layers = np.flatnonzero(profile.layers)
    inner = inner_layers([profile.sites[i].module for i in layers], branch_ends(program))
    return decades(in_flow(profile.values[layers[inner]], profile.direction).tolist())


def _row(candidate: Candidate) -> tuple[str, str, str, str]:
    measured = ""
    if candidate.measured_forward is not None and candidate.measured_backward is not None:
        measured = f"{candidate.measured_forward:+.2f}, {candidate.measured_backward:+.2f}"
    return candidate.name, f"{candidate.forward:+.2f}", f"{candidate.backward:+.2f}", measured


def _made_up(model: nn.Module) -> Tensor:
    """A batch for the first layer, if it is the model's first and alone takes its input."""
    first = next((module for module in model.modules() if is_layer(module)), None)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    shape: tuple[int, ...] = ()
    if isinstance(first, nn.Linear):
        shape = (16, first.in_features)
    elif isinstance(first, nn.modules.conv._ConvNd):
        shape = (4, first.in_channels, *[32] * len(first.kernel_size))
    elif isinstance(first, nn.RNNBase):
        shape = (16, 16, first.input_size)
    if isinstance(first, nn.Embedding):
        generator = torch.Generator().manual_seed(_SEED)
        batch = torch.randint(first.num_embeddings, (4, 16), generator=generator).to(device)
    elif shape:
        batch = torch.randn(shape, generator=torch.Generator().manual_seed(_SEED)).to(device)
    else:
        raise ValueError("inputs is None, and the model's first layer does not tell what it takes: give one batch")
    try:
        with untouched(model), torch.no_grad():
            run(model, batch)
    except Exception as error:
        raise ValueError(
            f"inputs is None, and the model does not take a batch of shape {tuple(batch.shape)}: give one"
        ) from error
    return batch
