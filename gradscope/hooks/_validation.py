"""Forward passes without gradient between the steps, recorded apart."""

from __future__ import annotations

from gradscope.hooks._record import to_record
from gradscope.hooks._sites import SiteBook
from gradscope.hooks._step import Forward, Step
from gradscope.hooks._stepper import Stepper


class Validation:
    """Merges the passes between two training steps; its line's number is how many training steps had been made."""

    def __init__(self, book: SiteBook, stepper: Stepper, training: SiteBook) -> None:
        self.book = book
        self.book.like = training
        self._stepper = stepper
        self._open: Step | None = None

    def begin(self) -> Forward:
        """A pass begins."""
        number = self._stepper.made
        if self._open is not None and self._open.number != number:
            self.write()
        if self._open is None:
            self._open = Step(number, True, self._stepper.new_arena())
        forward = Forward(self._open, True, self._stepper.new_arena())
        self._open.forwards.append(forward)
        return forward

    def write(self) -> None:
        """Write what the passes so far have left."""
        step, self._open = self._open, None
        if step is not None:
            step.send()
            self.book.recording.append(to_record(step))
            step.arena.release()
