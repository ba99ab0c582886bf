"""When a step begins and ends.

A step is closed by `scope.step()`, by the optimizers given, or, with neither, by the first forward pass after an
optimizer of the loop has run (torch tells of every optimizer's step) or, where none ever runs, after a backward.

Until `scope.step()` is called, or an optimizer seen, for the first time nobody knows whether one will be: a
forward that finds the parameters unchanged may belong to the same step (gradient accumulation), so such steps are
kept apart and joined or split once it is known.

A closed step is written when the next one begins: only then is it sure what the optimizer changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from gradscope.hooks._alike_rows import AlikeRows
from gradscope.hooks._blocks import Pool
from gradscope.hooks._lattice import Lattice
from gradscope.hooks._moments import Arena
from gradscope.hooks._optimizer_facts import OptimizerFacts, learning_rate
from gradscope.hooks._optimizers import held_by, optimizer_running, unscales_itself
from gradscope.hooks._outlet import Outlet
from gradscope.hooks._parameters import Parameters
from gradscope.hooks._schedule import Schedule
from gradscope.hooks._step import Forward, Step, joined, version
from gradscope.hooks._tensors import is_capturing, is_replaying

SampleMode = Literal["exact", "sample"]

Mode = Literal["unknown", "each forward", "scope.step()", "optimizer"]

_MOST_UNDECIDED = 256
"""Forward passes kept undecided; then each is taken for a step."""

SLOW_EVERY = 10
"""Of the recorded steps each tenth, beginning with the first, has unit moments."""

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
        outlet: Outlet,
        parameters: Parameters,
        facts: OptimizerFacts,
        alike: AlikeRows,
        *,
        schedule: Schedule,
        mode: SampleMode,
        histograms: bool | Literal["sample"],
        optimizers: int,
        scaler: Any,
        watch: bool,
        slow: bool,
    ) -> None:
        self.after_last_write: Callable[[], None] = lambda: None
        self.after_end: Callable[[], None] = lambda: None
        """A step has ended, and the next may begin."""
        self.missed_calls: Callable[[], bool] = lambda: False
        """An optimizer has stepped without a pass: whether parts of the model may have been called unseen."""
        self.in_step = True
        """Whether steps may be written between two forward passes: ranks write together, where all of them are."""
        self._parameters = parameters
        self._outlet = outlet
        self._facts = facts
        self._alike = alike
        self._schedule = schedule
        self._sample_moments = mode == "sample"
        self._sample_histograms = mode == "sample" or histograms == "sample"
        self._optimizers = optimizers
        self._scaler = scaler
        self._watch = watch
        self._slow = slow
        self._recorded = 0
        """How many steps have been recorded."""
        self._pool = Pool(bool(histograms))
        self._number = 0
        self._open: Step | None = None
        self._early_notes: dict[str, Any] = {}
        self._closed: list[Step] = []
        """Closed, not yet written: the last one, or those that may turn out to be one."""
        self._mode: Mode = "optimizer" if optimizers else "unknown"
        self._optimizer_seen = False
        """An optimizer that was not given has stepped: torch will tell of its next step too."""
        self._inside_optimizer = False
        """A forward that begins now belongs to a closure, which an optimizer calls as often as it likes."""

    @property
    def number(self) -> int:
        """Number of the step in progress, or of the next."""
        return self._number + len(self._closed)

    @property
    def made(self) -> int:
        """How many steps have been made, that in progress included once its backward has begun."""
        return self.number + (self._open is not None and self._open.backward)

    def due(self, number: int) -> bool:
        """Whether the step of this number is recorded."""
        return self._schedule.due(number)

    @property
    def began(self) -> bool:
        """Whether any forward has begun since the scope was made."""
        return self.made > 0 or self._open is not None

    @property
    def inside_optimizer(self) -> bool:
        """A forward now belongs to a closure, which an optimizer calls."""
        return self._inside_optimizer

    @property
    def tells_when_steps_end(self) -> bool:
        """An optimizer's hook, or the user, says so, and not only the next forward."""
        return self._mode in ("optimizer", "scope.step()") or self._optimizer_seen

    @property
    def latest(self) -> Step | None:
        """The step of the latest forward pass, unless it was written."""
        return self._open or (self._closed[-1] if self._closed else None)

    def open_step(self) -> Step | None:
        """The step in progress."""
        return self._open

    def aside(self, work: Callable[[], None]) -> None:
        """Do what is a part of recording, and lies within a step that is not recorded."""
        self._schedule.aside(work)

    def observes_next(self) -> bool:
        """Whether a forward that began now would be observed."""
        return self._open.observed if self._open is not None else self._watch or self.due(self.number)

    def observes_soon(self, within: int = 1) -> bool:
        """Whether the step in progress is observed, or one of those after it, so many."""
        begun = self._open is not None
        if self._watch or (begun and self.observes_next()):
            return True
        return any(self.due(self.number + begun + i) for i in range(within))

    def begin_forward(self, root: bool) -> Forward:
        """A forward pass of a training step starts: close and write what came before, where that is due."""
        if self._open is None:
            self.write_closed()
        elif self._open.backward:
            self._forward_after_backward(self._open)
        elif root:
            self._let_go(self._open)
        if self._open is None:
            self._open = self._new_step()
        forward = Forward(self._open, root, self.new_arena())
        if self._open.takes_units():
            forward.units = {}
        self._open.forwards.append(forward)
        return forward

    def new_arena(self) -> Arena:
        """Rows for a step."""
        lattice = Lattice(self.number)
        return Arena(
            self._pool, lattice if self._sample_moments else None, lattice if self._sample_histograms else None
        )

    def _new_step(self) -> Step:
        self._schedule.began(self.number)
        # While it is undecided whether this is a step of its own, it is recorded like the one it may belong to.
        due = self.due(self.number) or bool(self._closed)
        in_turn = (self._recorded + len(self._closed)) % SLOW_EVERY == 0
        slow = self._slow and due and (in_turn or self._outlet.wants_units)
        step = Step(self.number, due, self.new_arena(), self._watch, slow)
        if slow:
            self._schedule.slow(self.number, SLOW_EVERY)
        step.notes, self._early_notes = self._early_notes, {}
        step.scale = self._scale()
        if self._mode == "unknown":
            step.versions = self._parameters.versions()
        if self._closed:  # nothing has changed since: the copy serves again
            step.before, self._closed[-1].before = self._closed[-1].before, None
        return step

    def _let_go(self, step: Step) -> None:
        """Of the passes that no backward can follow, since their graphs are gone.

        The first in which something is wrong makes a step that was skipped: a loop may leave out each bad loss.
        """
        over = [forward for forward in step.forwards if forward.over]
        if over and self._outlet.something_new_and_bad(step):
            step.skipped = True
            self._end()
            return
        for forward in over:
            forward.arena.release()
            step.forwards.remove(forward)
        if over and not step.forwards:
            self.after_last_write()

    def _forward_after_backward(self, step: Step) -> None:
        if self._inside_optimizer and not optimizer_running():  # its step has raised
            self._inside_optimizer = False
        if self._inside_optimizer and not step.stepped:
            return  # one more evaluation of a closure
        if self._mode == "optimizer" or (self._mode != "scope.step()" and self._optimizer_seen):
            # No optimizer step was made of gradients that are gone: the scaler, or the loop, has skipped it.
            thrown_away = not step.stepped and (self._scale_fell(step) or self._parameters.gradients_gone())
            if step.stepped or thrown_away:
                step.skipped = thrown_away
                self._mode = "optimizer" if self._mode == "optimizer" else "each forward"
                self._end(join=True)
        elif (
            self._mode == "unknown"
            and step.observed
            and len(self._closed) < _MOST_UNDECIDED
            and not self._changed(step)
        ):
            self.close_step()
        elif self._mode in ("unknown", "each forward"):
            self._mode = "each forward"
            self._end()
        elif not step.stepped and self._parameters.gradients_gone():
            step.skipped = True  # an error in its backward, or in our hooks, has kept the loop from `scope.step()`
            self._end()

    def _end(self, *, join: bool = False) -> None:
        self.close_step()
        if join and len(self._closed) > 1:
            self._closed = [joined(self._closed)]
        self.write_closed()

    def _changed(self, step: Step) -> bool:
        """Whether an optimizer has run since the step's forward."""
        if step.stepped or any(version(parameter) != known for parameter, known in step.versions):
            return True
        return step.before is not None and step.before.changed()

    def close_step(self) -> None:
        """No forward or backward of this step will follow."""
        if self._open is not None:
            self._closed.append(self._open)
            self._open = None

    def close_by_call(self) -> None:
        """`scope.step()` was called."""
        if self._mode == "optimizer":
            return
        if self._open is not None:
            self._outlet.check(self._open)
        elif self.missed_calls():
            self._count_missed()
        self._mode = "scope.step()"
        self.close_step()
        if len(self._closed) > 1:
            self._closed = [joined(self._closed)]
        self.write_what_is_sure()
        self.after_end()

    def note(self, facts: dict[str, Any]) -> None:
        """Facts of the step of the latest forward pass, or, where that is written already, of the next."""
        step = self.latest
        (self._early_notes if step is None else step.notes).update(facts)

    # The hooks of the optimizers given

    def before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients and weights as the optimizer finds them."""
        self._inside_optimizer = not is_replaying()
        step = self._stepping()
        self._tell_of(optimizer, step)
        if step is None or not step.observed:
            return
        self._parameters.read_weights(step)
        if step.backward or is_replaying():
            self._read_as_found(step, optimizer, all_of_them=self._optimizers == 1 and not is_replaying())
        self._outlet.check(step)
        self._parameters.keep_before(step)

    def after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """What it changed; this closes the step."""
        self._inside_optimizer = False
        step = self._stepping()
        if not is_replaying() and _has_no_part(step, optimizer) and self.missed_calls():
            step = self._count_missed()
        if step is None:
            return
        step.stepped = True
        step.stepped_by.add(id(optimizer))
        if is_replaying():  # one of several that run inside the backward, a parameter each
            return
        if step.observed:
            if step.new_gradients:  # a closure computed them inside the step
                self._parameters.read_weights(step)
                self._read_as_found(step, optimizer, all_of_them=True)
            if self._optimizers == 1:  # of several, another may follow: the update is read when the step is written
                self._parameters.read_updates(step)
        self.close_step()
        self._outlet.meet()
        self.after_end()

    def _read_as_found(self, step: Step, optimizer: torch.optim.Optimizer, *, all_of_them: bool) -> None:
        """The gradients as they are for the optimizer: its own, or all of them."""
        parameters = held_by(optimizer)
        step.clip.read_after, step.clip.after_scaled = True, unscales_itself(optimizer)
        step.unscaled_weight_grads = not step.clip.after_scaled
        self._parameters.read_gradients(step, None if all_of_them else parameters, sampled=parameters)
        step.new_gradients = False

    def _tell_of(self, optimizer: torch.optim.Optimizer, step: Step | None) -> None:
        """The facts of an optimizer that is about to step, and its learning rate."""
        recorded = step is not None and step.due
        self._facts.stepping(optimizer, recorded=recorded, within_backward=is_replaying())
        if step is not None and recorded and step.slow and not is_capturing():  # it waits for the device
            self._alike.look(step.number)
        found = learning_rate(optimizer) if recorded else None
        if step is not None and found is not None and found[0] > step.lr_entries:
            step.lr_entries, step.lr = found

    def _stepping(self) -> Step | None:
        """The step that an optimizer belongs to: of several optimizers the second finds it closed by the first."""
        if self._open is None and self._optimizers > 1 and self._closed:
            return self._closed[-1]
        return self._open

    # Other optimizers of the loop

    def before_foreign(self, optimizer: torch.optim.Optimizer, parameters: set[int]) -> None:
        """An optimizer that was not given, but holds parameters of the model, is about to step."""
        self._inside_optimizer = not is_replaying()
        step = self.latest
        self._tell_of(optimizer, step)
        if step is None or not step.observed or is_replaying():
            return
        step.clip.after_scaled = unscales_itself(optimizer)
        self._parameters.sample_after(step, parameters)
        if step is self._open:
            self._outlet.check(step)

    def after_foreign(self, optimizer: torch.optim.Optimizer, parameters: set[int]) -> None:
        """It has stepped."""
        self._inside_optimizer = False
        if is_replaying():
            return
        self._optimizer_seen = True
        step = self.latest
        if self._mode != "scope.step()" and _has_no_part(step, optimizer) and self.missed_calls():
            step = self._count_missed()
        if step is not None:
            step.stepped = True
            step.stepped_by.add(id(optimizer))
            if step.observed and step.clip.begun and not step.clip.ended:  # a closure has computed the gradients
                self._parameters.sample_after(step, parameters)
        self._outlet.meet()
        self.after_end()

    def _count_missed(self) -> Step:
        """A step of which no hook has told: while they rested, parts of the model were called, and not the model."""
        self._end(join=True)
        step = self._open = self._new_step()
        step.backward = True
        return step

    # Writing

    def write_closed(self, *, settled: bool = True) -> None:
        """Write the closed steps; where it is not settled that the optimizer has run, the last may have to wait."""
        while self._closed:
            step = self._closed[0]
            waits = not settled and len(self._closed) == 1 and (step.before or step.scale is not None)
            if waits and (self._optimizers > 1 or not self._changed(step)):
                return
            self._closed.pop(0)
            self._number = step.number + 1
            step.due = self.due(step.number)
            self._recorded += step.due
            step.skipped = step.skipped or (step.observed and not step.stepped and self._scale_fell(step))
            self._facts.flush()
            if step.observed:
                self._parameters.read_weights(step, keep=False)  # where no optimizer has come to it
                self._parameters.read_updates(step)
                self._outlet.put(step, meets_later=self._optimizers > 0 or self._optimizer_seen)
            else:
                step.arena.release()
            step.done = True
            if step.before is not None:
                step.before.forget()
                step.before = None
            if not self._closed:
                self.after_last_write()
                self._outlet.set_fact("closed_by", _CLOSED_BY[self._mode])

    def write_what_is_sure(self) -> None:
        """Before somebody reads the recording in the middle of training."""
        if self.in_step and self._mode != "unknown":  # else what is closed may be a part of one step yet
            self.write_closed(settled=False)

    def finish(self) -> None:
        """Write what is complete: closed steps, and the open one if its backward is done, or something bad is in it."""
        step = self._open
        if step is not None and not step.backward and self._outlet.something_new_and_bad(step):
            step.skipped = True
            self.close_step()
        elif step is not None and step.backward:
            if self._mode == "unknown" and self._optimizer_seen:
                self._end(join=True)
            self.close_step()
        self.write_closed()
        self._outlet.flush(wait=True)

    # The gradient scaler

    def _scale(self) -> Tensor | float | None:
        if self._scaler is None or not self._scaler.is_enabled():
            return None
        scale = getattr(self._scaler, "_scale", None)
        if not isinstance(scale, Tensor):
            return float(self._scaler.get_scale())
        if scale.is_cpu:
            return float(scale.numpy())  # no operation of torch
        return scale.clone()  # read at the end of the step, without a synchronization

    def _scale_fell(self, step: Step) -> bool:
        return step.scale is not None and self._scaler.get_scale() < float(step.scale)


def _has_no_part(step: Step | None, optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer has stepped that has nothing to do with the latest step: it has ended that before."""
    return step is None or id(optimizer) in step.stepped_by
