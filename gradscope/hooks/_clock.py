"""What the hooks ask of the one who says when a step begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gradscope.hooks._step import Forward, Step


class Clock(Protocol):
    """Who says when a step begins: the scope."""

    def begin_forward(self, root: bool) -> Forward:
        """A forward pass of a training step starts."""

    def open_step(self) -> Step | None:
        """The step in progress, None between two steps."""

    @property
    def began(self) -> bool:
        """Whether any forward has begun since the scope was made."""

    @property
    def inside_optimizer(self) -> bool:
        """A forward now belongs to a closure, which an optimizer calls."""

    def observes_next(self) -> bool:
        """Whether a forward that began now would be observed."""

    def observes_soon(self, within: int = 1) -> bool:
        """Whether the step in progress is observed, or one of those after it, so many."""

    def aside(self, work: Callable[[], None]) -> None:
        """Do what is a part of recording, and lies within a step that is not recorded."""

    @property
    def tells_when_steps_end(self) -> bool:
        """An optimizer's hook, or the user, says so, and not only the next forward."""

    def write_what_is_sure(self) -> None:
        """Nothing is being recorded now: a good moment to write."""
