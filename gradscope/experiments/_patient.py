"""A model with all that trains it, so that a remedy may change any of it; copies of it, and a few steps of training."""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.hooks import GradScope
from gradscope.hooks._guard import alone
from gradscope.init._untouched import _forked_random_state, run
from gradscope.recording import Recording

Batches = Sequence[tuple[Any, Any]]


@dataclass
class Patient:
    """What a remedy may change.

    Attributes:
        model, optimizer, loss_fn: the user's, or copies of these.
        max_norm: to which the loop clips the norm of all gradients; None does not clip.
        scaler: a `torch.amp.GradScaler`.
        autocast: the type in which the forward runs; None is that of the weights.
        factor: times which the loss is taken before the backward, and not divided out.
        inputs_as: the type to which floating inputs are cast.
        units: times which a loss is told, so that it can be compared with that of the original.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    loss_fn: Callable[..., Tensor] | None
    max_norm: float | None = None
    scaler: Any = None
    autocast: torch.dtype | None = None
    factor: float = 1.0
    inputs_as: torch.dtype | None = None
    units: float = 1.0

    def copied(self) -> Patient:
        """Another that shares no tensor with it; a loss function that is part of the model is that of the copy."""
        memo: dict[int, Any] = {}
        model, optimizer, scaler = copy.deepcopy((self.model, self.optimizer, self.scaler), memo)
        loss_fn = self.loss_fn
        owner = loss_fn.__self__ if isinstance(loss_fn, MethodType) else loss_fn
        if isinstance(owner, nn.Module):
            loss_fn = copy.deepcopy(loss_fn, memo)
        return replace(self, model=model, optimizer=optimizer, scaler=scaler, loss_fn=loss_fn)

    def loss(self, inputs: Any, target: Any) -> Tensor:
        """Of one batch.

        Raises:
            TypeError, ValueError: it is no tensor with one entry.
        """
        if self.inputs_as is not None:
            inputs = cast_floating(inputs, self.inputs_as)
        device = next((p.device.type for p in self.model.parameters()), "cpu")
        mixed: Any = contextlib.nullcontext() if self.autocast is None else torch.autocast(device, self.autocast)
        with mixed:
            out = run(self.model, inputs)
            if self.loss_fn is None:
                loss = getattr(out, "loss", None)
            else:
                loss = self.loss_fn(out) if target is None else self.loss_fn(out, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            whose = "the model's output has as loss" if self.loss_fn is None else "loss_fn returned"
            raise ValueError(f"{whose} {what}; a tensor with one entry is allowed")
        return loss


@dataclass(frozen=True)
class Course:
    """What became of a patient in training.

    Attributes:
        losses: of each step, without `factor`; it ends two steps after the first that is not finite.
        norms: of all gradients together, before clipping, unscaled.
        recording: where one was asked for.
    """

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    recording: Recording | None = None


PATIENCE = 3
"""Steps in a row whose loss is not finite, after which nothing will be learned any more."""


def train(patient: Patient, batches: Batches, seed: int, *, record: bool = False) -> Course:
    """Train it, a step a batch, from the same random state each time."""
    seed_all(seed)
    if not record:
        return _train(patient, batches, None)
    scope = GradScope(patient.model, patient.optimizer, every=1, scaler=patient.scaler, histograms=is_low(patient))
    with alone(scope._observer), scope:
        course = _train(patient, batches, scope)
    return replace(course, recording=scope.recording)


def _train(patient: Patient, batches: Batches, scope: GradScope | None) -> Course:
    losses, norms = [], []
    for inputs, target in batches:
        patient.model.zero_grad()
        loss = patient.loss(inputs, target)
        if scope is not None:
            scope.note(loss=loss)
        if loss.requires_grad:
            whole = loss * patient.factor if patient.factor != 1.0 else loss
            (whole if patient.scaler is None else patient.scaler.scale(whole)).backward()
        losses.append(float(loss.detach()) * patient.units)
        norms.append(_update(patient))
        patience = 2 * PATIENCE if patient.scaler is not None else PATIENCE
        if len(losses) >= patience and not any(map(math.isfinite, losses[-patience:])):
            break
    return Course(tuple(losses), tuple(norms))


def _update(patient: Patient) -> float:
    optimizer, scaler = patient.optimizer, patient.scaler
    if optimizer is None:
        return math.nan
    held = [p for p in patient.model.parameters() if p.grad is not None]
    if scaler is not None and held:
        scaler.unscale_(optimizer)
    limit = math.inf if patient.max_norm is None else patient.max_norm
    norm = math.nan
    if held:
        norm = math.sqrt(math.fsum(float(_dense(p.grad).double().square().sum()) for p in held if p.grad is not None))
        if patient.max_norm is not None and not norm <= limit:
            torch.nn.utils.clip_grad_norm_(held, limit)
    if scaler is None:
        optimizer.step()
    elif held:
        scaler.step(optimizer)
        scaler.update()
    return norm


def _dense(gradient: Tensor) -> Tensor:
    """Its entries, a sparse one's too."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


@contextlib.contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside, all random states are those of the seed; afterwards as before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with _forked_random_state(model):
        seed_all(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def seed_all(seed: int) -> None:
    """All random states that a model may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


LOW = (torch.float16, torch.bfloat16)


def is_low(patient: Patient) -> bool:
    """Whether anything of it runs in a type of 16 bits."""
    return patient.autocast in LOW or any(p.dtype in LOW for p in patient.model.parameters())


def cast_floating(inputs: Any, dtype: torch.dtype) -> Any:
    """The same with its floating tensors in another type."""
    if isinstance(inputs, Tensor):
        return inputs.to(dtype) if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {key: cast_floating(value, dtype) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields"):
        return type(inputs)(cast_floating(one, dtype) for one in inputs)
    return inputs
