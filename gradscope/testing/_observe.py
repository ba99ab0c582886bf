"""A model observed as a test does it: one batch, or a few steps of training, that nothing is left of."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.experiments import probe
from gradscope.experiments._probe import _loss
from gradscope.hooks import GradScope
from gradscope.hooks._guard import alone
from gradscope.init._untouched import run, untouched
from gradscope.recording import Recording
from gradscope.testing._deterministic import deterministic, training_undone

MakesModel = Callable[[], nn.Module]
MakesOptimizer = Callable[[Any], torch.optim.Optimizer]


@dataclass(frozen=True)
class Subject:
    """What is observed.

    Attributes:
        model: a module, or a function without arguments that makes one.
        inputs, target, loss_fn: as `gradscope.probe` takes them.
        steps: of training; without an optimizer one forward and one backward.
        optimizer: for a module one that holds its parameters; for either, a function of the parameters that makes one.
    """

    model: nn.Module | MakesModel
    inputs: Any
    target: Any = None
    loss_fn: Callable[..., Tensor] | None = None
    steps: int = 1
    optimizer: torch.optim.Optimizer | MakesOptimizer | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module) and not callable(self.model):
            raise TypeError(
                f"model is of type {type(self.model).__name__}; a torch.nn.Module, or a function without arguments that"
                " makes one, is allowed"
            )
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps is {self.steps!r}; a whole number from 1 is allowed")
        if self.optimizer is None and self.steps > 1:
            raise ValueError(f"steps is {self.steps} and there is no optimizer; give one, as optimizer=torch.optim.SGD")
        if self.is_factory and isinstance(self.optimizer, torch.optim.Optimizer):
            raise ValueError(
                "model is a function that makes a new model each time, and optimizer holds another's parameters; give a"
                " function of the parameters, as optimizer=lambda p: torch.optim.SGD(p, lr=0.1)"
            )

    @property
    def is_factory(self) -> bool:
        """The model is made anew for each run."""
        return not isinstance(self.model, nn.Module)


def observed(subject: Subject, seed: int = 0, *, functional: bool = False) -> Recording:
    """Its recording, from a seed on, on one thread; model, optimizer, random state and settings are as before.

    Args:
        subject: what is observed.
        seed: from which everything starts.
        functional: of a probe, functional activations are sites too.

    Raises:
        TypeError, ValueError: something is not as `Subject` says, or nothing in the output has a gradient.
    """
    __tracebackhide__ = True
    with deterministic(seed):
        model = subject.model if isinstance(subject.model, nn.Module) else subject.model()
        if not isinstance(model, nn.Module):
            raise TypeError(f"the function returned {type(model).__name__}; a torch.nn.Module is allowed")
        if subject.optimizer is None:
            return probe(model, subject.inputs, subject.target, subject.loss_fn, functional=functional)
        return _trained(model, subject)


def _trained(model: nn.Module, subject: Subject) -> Recording:
    """`steps` updates on the one batch."""
    __tracebackhide__ = True
    if subject.target is not None and subject.loss_fn is None:
        raise ValueError("target is given without loss_fn; give loss_fn, or leave both out")
    given = subject.optimizer
    if isinstance(given, torch.optim.Optimizer):
        optimizer = given
    else:
        assert given is not None
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("the model has no parameter that is trained, so there is nothing to optimize")
        optimizer = given(model.parameters())
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer made {type(optimizer).__name__}; a torch.optim.Optimizer is allowed")
    with training_undone(model, (optimizer,)):
        scope = GradScope(model, optimizer, every=1)
        with alone(scope._observer), untouched(model), torch.enable_grad(), scope:
            for _ in range(subject.steps):
                losses: list[Tensor] = []

                def closure(losses: list[Tensor] = losses) -> Tensor:
                    optimizer.zero_grad(set_to_none=True)
                    loss, its_own = _loss(run(model, subject.inputs), subject.target, subject.loss_fn)
                    if not losses:  # of several evaluations the first, at the weights that the step starts from
                        scope.note(loss=loss if its_own else loss.detach())
                    losses.append(loss.detach())
                    loss.backward()
                    return loss

                if _needs_closure(optimizer):
                    optimizer.step(closure)  # type: ignore[arg-type]  # torch's annotation says float
                else:
                    closure()
                    optimizer.step()
    return scope.recording


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """As L-BFGS, which evaluates the loss several times in a step."""
    given = inspect.signature(optimizer.step).parameters.get("closure")
    return given is not None and given.default is inspect.Parameter.empty
