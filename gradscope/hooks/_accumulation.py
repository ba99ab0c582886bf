"""When the gradients of the parameters are read: as they arrive, or once the backward, or the averaging, has ended."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradscope.hooks._guard import Hook, Listener, guarded_call
from gradscope.hooks._parameters import Parameters
from gradscope.hooks._step import Forward, Step
from gradscope.hooks._tensors import is_replaying


class Accumulation:
    """Reads what a backward pass leaves on the parameters.

    Args:
        listener: whose hooks these are.
        parameters: reads them.
        open_step: the step in progress.
        settles: gradients are final only after the backward, when ranks have averaged them.
    """

    def __init__(
        self, listener: Listener, parameters: Parameters, open_step: Callable[[], Step | None], *, settles: bool
    ) -> None:
        self.settles = settles
        self._listener = listener
        self._parameters = parameters
        self._open_step = open_step
        self._awaited: int | None = None
        self._last: Forward | None = None
        self._arrived: set[int] = set()
        """Ids of the parameters that have got a gradient, to be read together."""
        self._expected: set[int] = set()
        """Ids of those that have taken the long way once."""

    def backward_reached(self, forward: Forward) -> None:
        """A backward pass of this forward is under way."""
        if forward is not self._last and torch._C._current_graph_task_id() != self._awaited:
            self._arrived = set()  # those of a backward that has raised
        self._last = forward
        if self.settles:
            self._await_the_end()

    def arrived(self, step: Step, name: str, parameter: Tensor) -> None:
        """A parameter has its gradient, or more of it."""
        if self.settles:
            self._await_the_end()
        elif self._parameters.reads_together(step, parameter) and not _goes_on(parameter) and is_replaying():
            self._arrived.add(id(parameter))
            self._expected.add(id(parameter))
            self._await_the_end()
        else:
            self._parameters.sample_before(step, name, parameter)
            if not self._parameters.at_step:
                self._parameters.read_gradient(self._forward(step), name, parameter)

    def awaits(self, task: int, parameter: Tensor) -> bool:
        """Whether this parameter's gradient is one of those that are read when this backward ends, as others are."""
        if task != self._awaited or id(parameter) not in self._expected or _goes_on(parameter):
            return False
        self._arrived.add(id(parameter))
        return True

    def forget(self) -> None:
        """Nothing of a forward pass is kept."""
        self._last, self._arrived = None, set()

    def _forward(self, step: Step) -> Forward:
        return self._last if self._last in step.forwards and self._last is not None else step.forwards[-1]

    def _await_the_end(self) -> None:
        """Read the gradients once this backward has ended and the ranks have averaged them."""
        task = torch._C._current_graph_task_id()
        if is_replaying() and task != self._awaited:
            self._awaited = task
            queue = torch.autograd.Variable._execution_engine.queue_callback
            ended = Hook(partial(guarded_call, self._listener, self._ended))
            queue((lambda: queue(ended)) if self.settles else ended)  # the averaging itself is such a callback

    def _ended(self) -> None:
        self._awaited = None
        step = self._open_step()
        arrived, self._arrived = self._arrived, set()
        if step is not None and step.observed and step.forwards:
            only = None if self.settles else arrived
            self._parameters.sample_all_before(step, only)
            if not self._parameters.at_step:
                self._parameters.read_gradients(step, only, self._forward(step))


def _goes_on(parameter: Tensor) -> bool:
    """Whether others have hooks that run when its gradient has arrived: an optimizer there frees the gradient."""
    hooks: Any = parameter._post_accumulate_grad_hooks
    return len(hooks) > 1
