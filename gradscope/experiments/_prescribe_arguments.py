"""What `prescribe` takes, and what it says where it is given something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradscope.diagnosis import Finding
from gradscope.experiments._checks import nearest
from gradscope.experiments._remedies import REMEDIES

FEWEST_STEPS = 10
"""Rules over steps need a few to be sure of anything, and so does a loss's noise."""


@dataclass(frozen=True)
class Given:
    """The arguments of `prescribe` that can be wrong."""

    model: nn.Module
    optimizer: Any
    steps: int
    batches: Any
    findings: Sequence[Finding] | None
    remedies: Sequence[str] | None
    seed: int
    most: int
    loss_fn: Callable[..., Any] | None
    max_norm: float | None


def check(given: Given) -> None:
    """Raise TypeError or ValueError with a sentence that names the argument."""
    _check_model(given.model)
    _check_optimizer(given)
    _whole("steps", given.steps, FEWEST_STEPS)
    _whole("most", given.most, 1)
    _whole("seed", given.seed, 0)
    for name, value in (("loss_fn", given.loss_fn), ("batches", given.batches)):
        if value is not None and not callable(value):
            raise TypeError(f"{name} is of type {type(value).__name__}; a function, or None, is allowed")
    norm = given.max_norm
    if norm is not None and (isinstance(norm, bool) or not isinstance(norm, (int, float)) or not norm > 0):
        raise ValueError(f"max_norm is {norm!r}; a number above 0, or None, is allowed")
    for name in given.remedies or ():
        if name not in REMEDIES:
            raise ValueError(f"remedies has {name!r}{nearest(name, REMEDIES)}; {', '.join(REMEDIES)} are allowed")
    for one in given.findings or ():
        if not isinstance(one, Finding):
            raise TypeError(f"findings has a {type(one).__name__}; gradscope.diagnosis.Finding are allowed")


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is of type {type(model).__name__}; prescribe takes a torch.nn.Module")
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        raise ValueError("model has parameters without a shape; run it once on an input, then prescribe for it")
    if not any(True for _ in model.parameters()):
        raise ValueError("model has no parameters; there is nothing to train")


def _check_optimizer(given: Given) -> None:
    optimizer = given.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        own = {id(p) for p in given.model.parameters()}
        if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("optimizer holds no parameter of the model; give the one that trains it")
    elif optimizer is not None and not callable(optimizer):
        allowed = "a torch.optim.Optimizer, a function that makes one of parameters, or None is allowed"
        raise TypeError(f"optimizer is of type {type(optimizer).__name__}; {allowed}")


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; a whole number of at least {least} is allowed")
    if value < least:
        raise ValueError(f"{name} is {value}; a whole number of at least {least} is allowed")
