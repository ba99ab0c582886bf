"""`probe`: one forward and one backward of any model on one batch, which leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.hooks import GradScope
from gradscope.hooks._guard import alone
from gradscope.hooks._tensors import floating_tensors
from gradscope.init._untouched import run, untouched
from gradscope.recording import Recording, Signal

_GRADIENT_SEED = 0


def probe(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    functional: bool = False,
) -> Recording:
    """Record one forward and one backward of a model on one batch.

    Afterwards the model is as before: parameters, gradients, buffers (the running statistics of batch norm), mode
    and the random state. Its mode is used as it is: in `eval()`, dropout is off.

    Args:
        model: any module.
        inputs: a tensor, a tuple (positional arguments) or a mapping (keyword arguments); the model gets copies.
        target: passed to the loss, where there is one.
        loss_fn: the loss is `loss_fn(out, target)`, or `loss_fn(out)` without a target. With neither it is `out.loss`
            where the output has one, else Σ v·out with fixed v ~ N(0, 1) over all floating outputs: a gradient
            of rms 1 enters at the output, whatever the model's scale.
        functional: functional activations (`F.relu`, `x.sigmoid()`) are sites too.

    Returns:
        A recording of one step, without `update`; the loss is noted as `loss`.

    Raises:
        TypeError, ValueError: an argument is not as above, or nothing in the output has a gradient.

    >>> recording = probe(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.ones(2, 4))
    >>> recording.values("activation_grad", "rms").shape
    (1, 2)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is of type {type(model).__name__}; probe takes a torch.nn.Module")
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        raise ValueError("model has parameters without a shape; run it once on an input, then probe it")
    if target is not None and loss_fn is None:
        raise ValueError("target is given without loss_fn; give loss_fn, or leave both out")
    signals: tuple[Signal, ...] = ("activation", "activation_grad", "weight", "weight_grad")
    scope = GradScope(model, every=1, signals=signals, functional=functional)
    with alone(scope._observer), untouched(model), _gradients_set_aside(model), torch.enable_grad(), scope:
        out = run(model, inputs)
        loss, its_own = _loss(out, target, loss_fn)
        scope.note(loss=loss if its_own else loss.detach())  # before the backward, when its graph still has the target
        loss.backward()
        scope.step()
        scope.recording.set_fact("source", "probe")
    return scope.recording


def _loss(out: Any, target: Any, loss_fn: Callable[..., Tensor] | None) -> tuple[Tensor, bool]:
    """The loss, and whether it is the user's."""
    its_own = True
    if loss_fn is not None:
        loss = loss_fn(out) if target is None else loss_fn(out, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{type(loss).__name__}"
            raise ValueError(f"loss_fn returned {what}; a tensor with one entry is allowed")
    elif isinstance(getattr(out, "loss", None), Tensor):
        loss = out.loss
    else:
        terms = [(t * _direction(t)).sum() for t in floating_tensors(out) if t.requires_grad]
        loss, its_own = torch.stack([term.double() for term in terms]).sum() if terms else torch.zeros(()), False
    if not loss.requires_grad:
        raise ValueError("the model's output has no gradient: nothing in it requires one")
    return loss, its_own


def _direction(output: Tensor) -> Tensor:
    """v ~ N(0, 1), the same for the same shape, from a generator of its own."""
    generator = torch.Generator(output.device).manual_seed(_GRADIENT_SEED)
    return torch.randn(output.shape, generator=generator, device=output.device).to(output.dtype)


@contextmanager
def _gradients_set_aside(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter has a gradient; afterwards each has its own again."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
