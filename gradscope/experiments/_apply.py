"""`apply`: what a trial did to a copy, done to the model itself."""

from __future__ import annotations

import torch
from torch import nn

from gradscope.diagnosis import Trial
from gradscope.experiments._patient import Patient


def apply(trial: Trial, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Change the model, or its optimizer, in place, exactly as the trial changed its copy.

    First weights are drawn from the trial's own seed: they are those of the trial to the bit, and the random state
    stays as it is. Inputs are normalized by a forward pre-hook on the model; it is not in the `state_dict`, so write
    `trial.code` into your own program where you keep the model.

    Args:
        trial: of `prescribe`, as it came from it: one that was read from JSON does not know what it did.
        model: for which it was prescribed, or one like it.
        optimizer: that of the model; needed where the trial changed the optimizer.

    Raises:
        TypeError: an argument is not as above.
        ValueError: the trial is advice or failed, changes the training loop, or the optimizer that was not given.
    """
    if not isinstance(trial, Trial):
        raise TypeError(f"trial is of type {type(trial).__name__}; a gradscope.diagnosis.Trial is allowed")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is of type {type(model).__name__}; a torch.nn.Module is allowed")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is of type {type(optimizer).__name__}; a torch.optim.Optimizer is allowed")
    if not trial.applied or trial.change is None:
        why = trial.error or trial.advice or "it does not know what it did"
        raise ValueError(f"trial was not applied ({why}); one that was is allowed")
    if trial.changes == "loop":
        raise ValueError(f"trial changes the training loop, which is yours: {'; '.join(trial.code)}")
    if trial.changes == "optimizer" and optimizer is None:
        raise ValueError("trial changes the optimizer, and none is given: apply(trial, model, optimizer)")
    trial.change(Patient(model, optimizer, None))
