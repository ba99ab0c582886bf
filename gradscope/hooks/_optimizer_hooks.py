"""The hooks before and after an optimizer's step: of those that were given, or of whatever the loop uses."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gradscope.hooks._guard import Hook, Removable, guarded_call
from gradscope.hooks._observer import Observer
from gradscope.hooks._optimizers import held_by
from gradscope.hooks._stepper import Stepper


def hook_optimizers(given: Sequence[torch.optim.Optimizer], observer: Observer, stepper: Stepper) -> list[Removable]:
    """Hooks on the optimizers given, or, where none is, on every step of any: those of other models are passed by."""
    handles: list[Removable] = []
    for optimizer in given:
        before = partial(_before_optimizer, observer, stepper)
        after = partial(_after_optimizer, observer, stepper)
        handles.append(optimizer.register_step_pre_hook(Hook(before)))
        handles.append(optimizer.register_step_post_hook(Hook(after)))
    if not given:  # torch tells of every optimizer's step; that shall not keep our observer, and the model, alive
        both = weakref.ref(observer), weakref.ref(stepper)
        handles.append(register_optimizer_step_pre_hook(Hook(partial(_before_foreign, *both))))
        handles.append(register_optimizer_step_post_hook(Hook(partial(_after_foreign, *both))))
        weakref.finalize(observer, _remove, handles)
    return handles


def _remove(handles: list[Removable]) -> None:
    for handle in handles:
        handle.remove()


def _before_optimizer(observer: Observer, stepper: Stepper, optimizer: torch.optim.Optimizer, *_: Any) -> None:
    guarded_call(observer, partial(stepper.before_optimizer, optimizer))


def _after_optimizer(observer: Observer, stepper: Stepper, optimizer: torch.optim.Optimizer, *_: Any) -> None:
    guarded_call(observer, partial(stepper.after_optimizer, optimizer))


def _before_foreign(
    observer: weakref.ref[Observer], stepper: weakref.ref[Stepper], optimizer: torch.optim.Optimizer, *_: Any
) -> None:
    seen, clock = observer(), stepper()
    if seen is not None and clock is not None and seen.observes(parameters := held_by(optimizer)):
        guarded_call(seen, partial(clock.before_foreign, optimizer, parameters))


def _after_foreign(
    observer: weakref.ref[Observer], stepper: weakref.ref[Stepper], optimizer: torch.optim.Optimizer, *_: Any
) -> None:
    seen, clock = observer(), stepper()
    if seen is not None and clock is not None and seen.observes(parameters := held_by(optimizer)):
        guarded_call(seen, partial(clock.after_foreign, optimizer, parameters))
