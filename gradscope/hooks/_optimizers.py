"""What is asked of an optimizer: which parameters it holds, whether it unscales them itself, whether it runs now."""

from __future__ import annotations

import sys

import torch


def optimizers_of(optimizer: object) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers given, as a tuple; a wrapper's (accelerate's) own one for the wrapper.

    Raises:
        TypeError: one is none.
    """
    given = () if optimizer is None else tuple(optimizer) if isinstance(optimizer, (list, tuple)) else (optimizer,)
    found = []
    for each in given:
        inner = None if isinstance(each, torch.optim.lr_scheduler.LRScheduler) else getattr(each, "optimizer", None)
        each = inner if isinstance(inner, torch.optim.Optimizer) else each
        if not hasattr(each, "register_step_pre_hook"):
            allowed = "a torch.optim.Optimizer, a sequence of them, or None is allowed"
            raise TypeError(f"optimizer is of type {type(each).__name__}; {allowed}")
        found.append(each)
    return tuple(found)


def held_by(optimizer: torch.optim.Optimizer) -> set[int]:
    """Ids of the parameters that an optimizer changes."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def unscales_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the gradients it finds still carry a gradient scaler's factor: a fused kernel divides it out."""
    return getattr(optimizer, "grad_scale", None) is not None


def optimizer_running() -> bool:
    """Whether this thread is inside an optimizer's `step`."""
    frame = sys._getframe(1).f_back
    while frame is not None:
        if frame.f_code.co_qualname == "Optimizer.profile_hook_step.<locals>.wrapper":
            return True
        frame = frame.f_back
    return False
