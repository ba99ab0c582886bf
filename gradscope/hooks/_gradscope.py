"""`GradScope`: a transparent proxy around a model that records how its signals flow, step by step."""

from __future__ import annotations

import atexit
import difflib
import os
import platform
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from gradscope._version import __version__
from gradscope.hooks._guard import Hook, Removable, guarded_call
from gradscope.hooks._observer import Observer
from gradscope.hooks._parameters import Parameters
from gradscope.hooks._sites import ROOT, SiteBook, SiteFilter, site_filter
from gradscope.hooks._stepper import Stepper
from gradscope.recording import SIGNALS, GradScopeWarning, Recording, Signal, Site, step_table

_OWN = frozenset({"model", "_recording", "_observer", "_stepper", "_handles", "_open", "__weakref__"})


class GradScope:
    """Watch a model in training: per site and step, how large its signals are in both directions.

    The scope is a transparent proxy: `scope(x)` runs the model, attributes pass through, and the hooks sit on the
    model itself, so a loop that goes on using `model` is observed too. Observing changes nothing: outputs,
    gradients and trained parameters are bit-identical.

    A step is one optimizer update. It is closed by `scope.step()`, called anywhere after its last backward; or by
    the `optimizer` given; or, with neither, by the first forward pass after a backward. A closed step is written
    once it is known what the optimizer changed: at once, or when the next forward pass begins, the recording is
    read, or by `close()`. Forward passes without gradient (`torch.no_grad()`), and those that no backward follows,
    belong to no step.

    Args:
        model: the module to observe.
        optimizer: its `step()` then closes a step, and `weight_grad` is what it finds (after clipping, after
            averaging over ranks); without it `weight_grad` is what the last backward left, before any clipping.
        every: record each `every`-th step; None records each of the first 100 and then each tenth.
        signals: which of `activation`, `activation_grad`, `weight`, `weight_grad`, `update` to record.
        sites: None for all; glob patterns over module names (`"layers.*"`); or a predicate on `Site`.
        histograms: also count the entries by their power of two.
        scaler: a `torch.amp.GradScaler`; its factor is divided out of the recorded gradients.
        log: path of the recording file; without it the recording lives in a temporary database.
        loggers: must be empty in this version.

    Raises:
        TypeError, ValueError: an argument is not as above; the sentence names it.
        RecordingError: the recording file cannot be written.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> with GradScope(net) as scope:
    ...     scope(torch.ones(2, 4)).sum().backward()
    >>> [site.name for site in scope.recording.sites_of("activation_grad")]
    ['0', '1', '2']
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        every: int | None = None,
        signals: Sequence[Signal] = SIGNALS,
        sites: str | Sequence[str] | SiteFilter | None = None,
        histograms: bool = False,
        scaler: Any = None,
        log: str | os.PathLike[str] | None = None,
        loggers: Sequence[Any] = (),
    ) -> None:
        _check(model, optimizer, every, signals, sites, scaler, loggers)
        chosen = frozenset(signals)
        self.model = model
        self._recording = Recording.create(log, facts=_facts(model, optimizer, every, signals))
        book = SiteBook(self._recording, chosen, site_filter(sites))
        at_step = optimizer is not None
        parameters = Parameters(model, book, gradients_at_step=at_step)
        self._stepper = Stepper(
            self._recording, parameters, every=every, histograms=histograms, optimizer=at_step, scaler=scaler
        )
        self._observer = Observer(model, book, self._stepper, parameters, gradients_at_step=at_step)
        self._stepper.after_last_write = self._observer.end_step
        self._handles: list[Removable] = []
        if optimizer is not None:
            before = partial(_before_optimizer, self._observer, self._stepper)
            after = partial(_after_optimizer, self._observer, self._stepper)
            self._handles.append(optimizer.register_step_pre_hook(Hook(before)))
            self._handles.append(optimizer.register_step_post_hook(Hook(after)))
        self._open = True
        _OPEN.add(self)

    # What a user says

    def step(self, loss: Any = None) -> None:
        """Close the step in progress, before or after the optimizer's step; `loss` is noted with it.

        Not needed where an `optimizer` was given, whose step closes it; then only the loss is noted.
        """
        if loss is not None:
            self.note(loss=loss)
        guarded_call(self._observer, self._stepper.close_by_call)

    def note(self, **facts: Any) -> None:
        """Add facts (numbers, strings, one-entry tensors) to the step of the latest forward pass.

        Once that is written (`step()` was called after the optimizer's step), they belong to the next.
        """
        self._stepper.note({k: v.detach().clone() if isinstance(v, torch.Tensor) else v for k, v in facts.items()})

    @property
    def recording(self) -> Recording:
        """What was recorded so far: every step that is complete."""
        if self._open:
            guarded_call(self._observer, self._stepper.write_what_is_sure)
        return self._recording

    def close(self) -> None:
        """Remove every hook and finish the recording; the step in progress is kept if its backward is done."""
        if not self._open:
            return
        self._open = False
        _OPEN.discard(self)
        try:  # also after an error stopped the observing: what was complete before it is kept
            self._stepper.finish()
            self._recording.close()
        except Exception as error:
            warnings.warn(f"GradScope could not finish the recording: {error}", GradScopeWarning, stacklevel=2)
        finally:
            self._observer.detach()
            for handle in self._handles:
                handle.remove()

    def __enter__(self) -> GradScope:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False

    def __str__(self) -> str:
        return step_table(self.recording)

    def __repr__(self) -> str:
        state = "observing" if self._open and not self._observer.detached else "closed"
        return f"<GradScope of {type(self.model).__name__}, {state}, {len(self._recording.steps)} steps recorded>"

    # The proxy

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:  # not yet set: no model to ask
            raise AttributeError(name)
        return getattr(self.model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.model, name, value)

    def __getitem__(self, index: Any) -> Any:
        return self.model[index]  # type: ignore[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.model)  # type: ignore[call-overload, no-any-return]

    def __len__(self) -> int:
        return len(self.model)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True


_OPEN: weakref.WeakSet[GradScope] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A script that ends without `close()` loses nothing."""
    for scope in list(_OPEN):
        scope.close()


def _before_optimizer(observer: Observer, stepper: Stepper, optimizer: torch.optim.Optimizer, *_: Any) -> None:
    guarded_call(observer, partial(stepper.before_optimizer, optimizer))


def _after_optimizer(observer: Observer, stepper: Stepper, *_: Any) -> None:
    guarded_call(observer, stepper.after_optimizer)


def _facts(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, every: int | None, signals: Sequence[Signal]
) -> dict[str, Any]:
    parameters = list(model.parameters())
    return {
        "source": "training",
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in parameters if not isinstance(p, nn.UninitializedParameter)),
        "device": ", ".join(sorted({str(p.device) for p in parameters})),
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "weight_grad": "as the last backward left it, before clipping"
        if optimizer is None
        else "as the optimizer found it, after clipping",
        "every": every,
        "signals": list(signals),
        "seed": torch.initial_seed(),
        "gradscope": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _check(
    model: object,
    optimizer: object,
    every: object,
    signals: Sequence[str],
    sites: str | Sequence[str] | Callable[[Site], bool] | None,
    scaler: object,
    loggers: Sequence[Any],
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {_article(model)}; GradScope observes a torch.nn.Module")
    if optimizer is not None and not hasattr(optimizer, "register_step_pre_hook"):
        raise TypeError(f"optimizer is {_article(optimizer)}; a torch.optim.Optimizer or None is allowed")
    if optimizer is not None and not _shared(model, optimizer):
        raise ValueError(
            "optimizer holds none of the model's parameters; its step() would close steps it is no part of"
        )
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ValueError(f"every is {every!r}; None or a whole number from 1 is allowed")
    if isinstance(signals, str) or not signals:
        raise ValueError(f"signals is {signals!r}; a sequence of some of {', '.join(SIGNALS)} is allowed")
    for signal in signals:
        if signal not in SIGNALS:
            raise ValueError(f"signals has {signal!r}; {', '.join(SIGNALS)} are allowed{_nearest(signal, SIGNALS)}")
    if scaler is not None and not (hasattr(scaler, "get_scale") and hasattr(scaler, "is_enabled")):
        raise TypeError(f"scaler is {_article(scaler)}; a torch.amp.GradScaler or None is allowed")
    if len(loggers):
        raise ValueError(f"loggers is {loggers!r}; this version has none: leave it empty")
    if sites is None or callable(sites):
        return
    names = [name or ROOT for name, _ in model.named_modules()]
    for pattern in (sites,) if isinstance(sites, str) else sites:
        if not isinstance(pattern, str):
            raise TypeError(f"sites has {pattern!r}; None, glob patterns over module names or a predicate are allowed")
        if not any(site_filter(pattern)(Site("activation", n, n, "")) for n in names):  # type: ignore[misc]
            raise ValueError(
                f"sites has {pattern!r}, which matches none of the model's {len(names)} modules"
                f"{_nearest(pattern, names)}"
            )


def _shared(model: nn.Module, optimizer: Any) -> bool:
    own = {id(p) for p in model.parameters()}
    return any(id(p) in own for group in optimizer.param_groups for p in group["params"])


def _article(value: object) -> str:
    return f"of type {type(value).__name__}"


def _nearest(value: object, allowed: Sequence[str]) -> str:
    found = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.4)
    return f"; did you mean {found[0]!r}?" if found else ""
