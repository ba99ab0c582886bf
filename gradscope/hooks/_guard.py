"""What stands between our hooks and the training: an error of ours, a copy of the model, a probe of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from gradscope.hooks._compiled import BetweenGraphs
from gradscope.hooks._nonfinite import NonFiniteError
from gradscope.hooks._tensors import unseen_by_modes
from gradscope.recording import GradScopeWarning

P = ParamSpec("P")
R = TypeVar("R")


class Listener(Protocol):
    """What has hooks on a model."""

    detached: bool

    def detach(self) -> None:
        """Remove them."""


L = TypeVar("L", bound=Listener)


class Removable(Protocol):
    """A handle of any of torch's hooks."""

    def remove(self) -> None:
        """Take the hook off."""


_alone: Listener | None = None
"""The one observer that listens, while a probe runs on a model that others observe too."""


@contextmanager
def alone(observer: Listener) -> Iterator[None]:
    """Inside, no other scope takes what the model does for a step of training."""
    global _alone
    before, _alone = _alone, observer
    try:
        yield
    finally:
        _alone = before


def only_one_listens() -> bool:
    """Whether a probe runs, inside which other scopes pass over everything."""
    return _alone is not None


def stop(observer: Listener, error: Exception) -> None:
    """An error inside GradScope never reaches the training: it warns once and observing stops."""
    observer.detach()
    warnings.warn(
        f"GradScope stopped observing, training goes on: {type(error).__name__}: {error}",
        GradScopeWarning,
        stacklevel=4,
    )


def guarded_call(observer: Listener, function: Callable[[], R]) -> R | None:
    """Call the function, where this observer listens; an error in it stops the observing."""
    if observer.detached or (_alone is not None and _alone is not observer):
        return None
    try:
        with unseen_by_modes():
            return function()
    except NonFiniteError:
        raise  # asked for, and no error of ours
    except Exception as error:
        stop(observer, error)
        return None


def guarded(method: Callable[Concatenate[L, P], R]) -> Callable[Concatenate[L, P], R | None]:
    """The same for the observer's own hooks."""

    @wraps(method)
    def run(self: L, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        return guarded_call(self, lambda: method(self, *args, **kwargs))

    return run


class Hook(BetweenGraphs):
    """A callable for torch's hook tables that never returns a value and is left behind by copies and pickles."""

    __slots__ = ()


class ModuleHook(Hook):
    """One on a module within the model: it vanishes from what `torch.compile` makes."""

    __slots__ = ()

    breaks = False
