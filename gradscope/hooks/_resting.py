"""When the hooks within a model are off: between recorded steps, where it is sure that the next one is noticed."""

from __future__ import annotations

from gradscope.hooks import _dynamo
from gradscope.hooks._attachment import Attachment
from gradscope.hooks._clock import Clock
from gradscope.hooks._parameters import Parameters

_SOON = 20
"""Steps for which it pays to remember the list of parameters, and for which the hooks stay on where they are missed."""


class Resting:
    """Takes the hooks within a model off and puts them on again.

    Only the hook on the model itself tells of a pass while they are off, and only a hook on what it returns of its
    backward. Where either has been seen to say too little they stay on.

    Args:
        attachment: the hooks.
        clock: says when a step begins.
        parameters: hold memory for steps that are recorded.
        allowed: False where steps that are not recorded need the hooks too.
    """

    def __init__(self, attachment: Attachment, clock: Clock, parameters: Parameters, *, allowed: bool) -> None:
        self._attachment = attachment
        self._clock = clock
        self._parameters = parameters
        self._allowed = allowed
        self._steps_without_a_pass = False
        """Optimizers step now and then though nothing was called since they last did."""
        self._wary = 0
        """So many passes the hooks stay on, to see whether parts of the model are called."""

    def forbid(self) -> None:
        """Steps call parts of the model and not the model, or it returns nothing to hook: they stay on from now on."""
        self._allowed = False
        self._attachment.wake()

    def pass_began(self, *, observed: bool) -> None:
        """A pass through the model has begun: the hooks are on in it where it is observed, else off if they may be.

        What is compiled reads the hooks when it is compiled; there they cost nothing afterwards.
        """
        self._wary = max(0, self._wary - 1)
        if observed:
            self._attachment.wake()
        elif (
            not self._attachment.resting
            and self._allowed
            and not self._wary
            and self._clock.tells_when_steps_end
            and not _dynamo.compiled_anything()
        ):
            self._clock.aside(self._attachment.rest)
            self._parameters.rest(long=not self._clock.observes_soon(_SOON))

    def step_ended(self) -> None:
        """Where the next step is recorded, have the hooks on before it begins."""
        if self._attachment.resting and self._clock.observes_soon():
            self._clock.aside(self._attachment.wake)

    def missed_calls(self) -> bool:
        """A step has ended of which no hook has told: whether parts of the model may have been called for it.

        Not while the hooks are on: then the optimizer has stepped twice on the same gradients, and may do so again.
        Once they may have been called, the hooks are on for some steps, to see whether it is so.
        """
        if not self._attachment.resting:
            self._steps_without_a_pass |= self._clock.began
            return False
        if self._steps_without_a_pass:
            return False
        self._wary = _SOON
        self._attachment.wake()
        return True
