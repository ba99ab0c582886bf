"""When the gradients of the parameters are read: each as it arrives, or all once the ranks have averaged them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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

    def backward_reached(self, forward: Forward) -> None:
        """A backward pass of this forward is under way."""
        self._last = forward
        self._await_the_end()

    def arrived(self, step: Step, name: str, parameter: Tensor) -> None:
        """A parameter has its gradient, or more of it."""
        if self.settles:
            self._await_the_end()
        else:
            self._read(step, name, parameter)

    def forget(self) -> None:
        """Nothing of a forward pass is kept."""
        self._last = None

    def _read(self, step: Step, name: str, parameter: Tensor) -> None:
        self._parameters.sample_before(step, name, parameter)
        if not self._parameters.at_step:
            last = self._last if self._last in step.forwards else None
            self._parameters.read_gradient(last or step.forwards[-1], name, parameter)

    def _await_the_end(self) -> None:
        """Read the gradients once this backward has ended and the ranks have averaged them."""
        task = torch._C._current_graph_task_id()
        if self.settles and is_replaying() and task != self._awaited:
            self._awaited = task
            queue = torch.autograd.Variable._execution_engine.queue_callback
            settled = Hook(partial(guarded_call, self._listener, self._settled))
            queue(lambda: queue(settled))  # the averaging itself is such a callback

    def _settled(self) -> None:
        step = self._open_step()
        if step is not None and step.observed and step.forwards:
            for name, _, parameter in self._parameters.named():
                self._read(step, name, parameter)
