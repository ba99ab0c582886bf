"""When a step begins and ends, and how its rows become a line of the recording.

A step is closed by `scope.step()`, by the optimizer given, or, with neither, by the first forward pass after a
backward. Until `scope.step()` is called for the first time nobody knows whether it will be: a forward that finds
the parameters unchanged may belong to the same step (gradient accumulation), so such steps are kept apart and
joined or split once it is known.

A closed step is written when the next one begins: only then is it sure what the optimizer changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from gradscope.hooks._moments import Arena, Block
from gradscope.hooks._parameters import Parameters
from gradscope.hooks._step import Forward, Step, joined, to_record
from gradscope.recording import Recording

Mode = Literal["unknown", "each forward", "scope.step()", "optimizer"]

_MOST_UNDECIDED = 64
"""Forward passes kept undecided; then each is taken for a step."""

_CLOSED_BY = {
    "unknown": "the next forward after a backward",
    "each forward": "the next forward after a backward",
    "scope.step()": "scope.step()",
    "optimizer": "optimizer.step()",
}


class Stepper:
    """The steps of one scope."""

    def __init__(
        self,
        recording: Recording,
        parameters: Parameters,
        *,
        every: int | None,
        histograms: bool,
        optimizer: bool,
        scaler: Any,
    ) -> None:
        self.after_last_write: Callable[[], None] = lambda: None
        self._parameters = parameters
        self._recording = recording
        self._every = every
        self._histograms = histograms
        self._scaler = scaler
        self._pool: dict[torch.device, list[Block]] = {}
        self._number = 0
        self._open: Step | None = None
        self._early_notes: dict[str, Any] = {}
        self._closed: list[Step] = []
        """Closed, not yet written: the last one, or those that may turn out to be one."""
        self._mode: Mode = "optimizer" if optimizer else "unknown"

    def due(self, number: int) -> bool:
        """Whether the step of this number is recorded."""
        if self._every is None:
            return number < 100 or number % 10 == 0
        return number % self._every == 0

    def open_step(self) -> Step | None:
        """The step in progress."""
        return self._open

    def begin_forward(self, root: bool) -> Forward:
        """A forward pass of a training step starts: close and write what came before, where that is due."""
        if self._open is None:
            self.write_closed()
        elif self._open.backward:
            self._forward_after_backward(self._open)
        if self._open is None:
            self._open = self._new_step()
        forward = Forward(self._open, root)
        self._open.forwards.append(forward)
        return forward

    def _new_step(self) -> Step:
        number = self._number + len(self._closed)
        # While it is undecided whether this is a step of its own, it is recorded like the one it may belong to.
        step = Step(number, self.due(number) or bool(self._closed), Arena(self._pool, self._histograms))
        step.notes, self._early_notes = self._early_notes, {}
        step.scale = self._scale()
        if self._closed:  # nothing has changed since: the copy serves again
            step.before, self._closed[-1].before = self._closed[-1].before, []
        return step

    def _forward_after_backward(self, step: Step) -> None:
        if self._mode == "unknown" and step.due and len(self._closed) < _MOST_UNDECIDED and not self._changed(step):
            self.close_step()
        elif self._mode in ("unknown", "each forward"):
            self._mode = "each forward"
            self.close_step()
            self.write_closed()
        elif self._mode == "optimizer" and self._scale_fell(step):
            step.skipped = True  # the scaler called no optimizer step
            self.close_step()
            self.write_closed()

    def _changed(self, step: Step) -> bool:
        """Whether the optimizer has run since the step's forward; without `update` to tell it, it has."""
        if not step.before:
            return True
        return any(not torch.equal(parameter, before) for _, parameter, before in step.before)

    def close_step(self) -> None:
        """No forward or backward of this step will follow."""
        if self._open is not None:
            self._open.closed = True
            self._closed.append(self._open)
            self._open = None

    def close_by_call(self) -> None:
        """`scope.step()` was called."""
        if self._mode == "optimizer":
            return
        self._mode = "scope.step()"
        self.close_step()
        if len(self._closed) > 1:
            self._closed = [joined(self._closed)]
        self.write_closed(settled=False)

    def note(self, facts: dict[str, Any]) -> None:
        """Facts of the step of the latest forward pass, or, where that is written already, of the next."""
        step = self._open or (self._closed[-1] if self._closed else None)
        (self._early_notes if step is None else step.notes).update(facts)

    # The optimizer's own hooks

    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients and weights as the optimizer finds them."""
        step = self._open
        if step is None or not step.due:
            return
        in_kernel = getattr(optimizer, "grad_scale", None) is not None  # a fused optimizer unscales by itself
        step.unscaled_weight_grads = not in_kernel
        self._parameters.read_weights(step)
        if step.backward:
            self._parameters.read_gradients(step)
        self._parameters.keep_before(step)

    def after_optimizer(self) -> None:
        """What it changed; this closes the step."""
        step = self._open
        if step is None:
            return
        if step.due:
            if not any(f.weight_grads for f in step.forwards):  # a closure computed them inside the step
                self._parameters.read_weights(step)
                self._parameters.read_gradients(step)
            self._parameters.read_updates(step)
        self.close_step()

    # Writing

    def write_closed(self, *, settled: bool = True) -> None:
        """Write the closed steps; where it is not settled that the optimizer has run, the last may have to wait."""
        while self._closed:
            step = self._closed[0]
            if not settled and len(self._closed) == 1 and step.before and not self._changed(step):
                return
            self._closed.pop(0)
            self._number = step.number + 1
            if step.due and self.due(step.number):
                self._parameters.read_updates(step)
                step.skipped = step.skipped or self._scale_fell(step)
                self._recording.append(to_record(step))
            step.done = True
            step.before = []
            step.arena.release()
            if not self._closed:
                self.after_last_write()
                self._recording.set_fact("closed_by", _CLOSED_BY[self._mode])

    def write_what_is_sure(self) -> None:
        """Before somebody reads the recording in the middle of training."""
        if self._mode != "unknown":  # else what is closed may be a part of one step yet
            self.write_closed(settled=False)

    def finish(self) -> None:
        """Write what is complete: closed steps, and the open one if its backward is done."""
        if self._open is not None and self._open.backward:
            self.close_step()
        self.write_closed()

    # The gradient scaler

    def _scale(self) -> Tensor | float | None:
        if self._scaler is None or not self._scaler.is_enabled():
            return None
        on_device = getattr(self._scaler, "_scale", None)  # read at the end of the step, without a synchronization
        return on_device.clone() if isinstance(on_device, Tensor) else float(self._scaler.get_scale())

    def _scale_fell(self, step: Step) -> bool:
        return step.scale is not None and self._scaler.get_scale() < float(step.scale)
