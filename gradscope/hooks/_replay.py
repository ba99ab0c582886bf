"""Reentrant activation checkpointing, whose forward runs without gradient first and again inside the backward.

Only the second run has a graph to hook, and its calls come in another order: segment by segment from the last. The
checkpoint's own `ctx`, the same object in both runs, tells which call a repeated one is.
"""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from gradscope.hooks._step import Forward


@dataclass(frozen=True)
class Call:
    """One call of a module in one forward pass."""

    forward: Forward
    name: str
    number: int
    depth: int


class Segments:
    """Which module calls each checkpointed segment made, in order.

    A segment's number is written on its `ctx`: to hold that would keep the segment's inputs alive, and its address may
    be another's tomorrow.
    """

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, list[Call]]] = {}
        self._mark = f"_gradscope_segment_{id(self)}"
        self._numbers = itertools.count()

    def note(self, call: Call) -> None:
        """A module was called without gradient in a training forward: in a checkpointed segment, if in any."""
        contexts = list(_contexts("CheckpointFunction.forward"))
        if contexts:
            self._add(contexts[-1], call)

    def inside(self) -> bool:
        """Whether a checkpointed segment is running."""
        return next(_contexts("CheckpointFunction.forward"), None) is not None

    def repeated(self, name: str, *, with_gradient: bool) -> Call | None:
        """The call that this one, inside a backward pass, repeats; None where no segment knows it."""
        context = next(_contexts("CheckpointFunction.backward"), None)
        calls = self._calls.get(getattr(context, self._mark, -1), {}).get(name)
        if not calls:
            return None
        found = calls.pop(0)
        if not with_gradient:  # in a segment within the segment, which will run a third time
            inner = next(_contexts("CheckpointFunction.forward"), None)
            if inner is not None:
                self._add(inner, found)
        return found

    def forget(self) -> None:
        """The step is over."""
        self._calls = {}

    def _add(self, context: Any, call: Call) -> None:
        number = getattr(context, self._mark, None)
        if number is None:
            number = next(self._numbers)
            setattr(context, self._mark, number)
        self._calls.setdefault(number, defaultdict(list))[call.name].append(call)


def _contexts(method: str) -> Iterator[Any]:
    """The `ctx` of each running call of an autograd function's method, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_qualname == method and "ctx" in frame.f_locals:
            yield frame.f_locals["ctx"]
        frame = frame.f_back
