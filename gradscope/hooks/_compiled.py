"""Our hooks under `torch.compile`: a recorded forward runs as ordinary Python, every other one as it was compiled.

Dynamo reads the code of a module's hooks into the graph that it makes. To break the graph at each hook would be no
good: pieces of a model can fail where the whole does not (a graph that changes its input in place, as
`SiLU(inplace=True)` alone, raises in the backward). So:

- A hook on a module within the model vanishes from every graph. The compiled model stays the one graph that it is.
- At the `Entrance` of the model, where a step is recorded, Dynamo is switched off for this call: all hooks fire, and
  the numbers are those of the uncompiled model, to the bit. `Exit` switches it on again.
- Only a compiled function that calls the model reads the model's own hooks: they break its graph, once. Where breaks
  are forbidden (`fullgraph=True`) they vanish as well, nothing can be observed, and the trace leaves a note.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from torch import nn
from torch.compiler import is_dynamo_compiling, is_exporting

from gradscope.hooks import _dynamo

INSIDE = "called within a compiled function, not as a compiled module: inside it nothing is observed"
LATE = (
    "gradients arrive, but no forward is seen: a function that calls the model was compiled before GradScope was "
    "attached; attach before its first call, or call torch.compiler.reset() once after attaching"
)
PAST = "gradients arrive, but no forward is seen: forward() is called directly, or a CUDA graph is replayed"
LEFT_OUT: Counter[str] = Counter()
"""How often a trace has left out a hook that was to break it, by reason. It grows: remember a total to see news."""


class _Entered(threading.local):
    """By id, the modules whose call is recorded now in this thread, and what was compiling when it began."""

    def __init__(self) -> None:
        self.modules: dict[int, Any] = {}


_entered = _Entered()


class BetweenGraphs:
    """A hook that runs as ordinary Python: a graph that Dynamo makes breaks there, or does without it."""

    __slots__ = ("__weakref__", "_function", "_left_out")

    breaks = True
    """False for a hook on a module within the model: it vanishes from a graph without asking."""

    _function: Callable[..., Any]
    _left_out: str

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if is_dynamo_compiling():  # true for Dynamo that reads this, never when Python runs it
            if _may_break():
                _outside(self, args, kwargs)
        elif not is_exporting():  # an export is a trace with stand-ins for tensors, no step of training
            self._function(*args, **kwargs)

    @property
    def left_out(self) -> str | None:
        """Why a trace left this hook out, which was to fire; None where none did."""
        return getattr(self, "_left_out", None)

    def __deepcopy__(self, memo: Any) -> Callable[..., None]:
        return _nothing()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        return getattr, (nullcontext(), "__exit__")


def _nothing() -> Callable[..., None]:
    """What a hook becomes in a copy of the model: it takes anything, does nothing, and unpickles without us."""
    return nullcontext().__exit__


class Entrance(BetweenGraphs):
    """The last hook before a module's forward, which then runs uncompiled where `recording()` says so.

    Args:
        recording: whether this call is recorded; the same for all calls within one step, a checkpoint's second run too.
        breaks: False on a module within the model, which may be compiled, or called, on its own.
    """

    __slots__ = ("breaks",)

    def __init__(self, recording: Callable[[], Any], *, breaks: bool = True) -> None:
        super().__init__(recording)
        self.breaks = breaks

    def __call__(self, module: nn.Module, *args: Any) -> None:
        if is_dynamo_compiling():
            if _may_break():
                _outside(self, (module, *args), {})
            return
        compiling = _dynamo.switch(None)
        entered = _entered.modules
        if compiling is None and entered and not self.breaks:  # within a call that is recorded, and nothing compiles
            entered.pop(id(module), None)  # left by a call that raised
            return
        recorded = False
        try:
            recorded = not is_exporting() and bool(self._function())
        finally:
            if recorded:
                _entered.modules[id(module)] = compiling
            else:
                _entered.modules.pop(id(module), None)  # left by a call that raised
                if compiling is not None:
                    _dynamo.switch(compiling)


class Exit(BetweenGraphs):
    """The hook after the forward, behind all others: what was compiling before it goes on."""

    __slots__ = ("breaks",)

    def __init__(self, *, breaks: bool = True) -> None:
        self.breaks = breaks

    def __call__(self, module: nn.Module, *args: Any) -> None:
        if is_dynamo_compiling():
            if _may_break():
                _outside(self, (module, *args), {})
            return
        compiling = _entered.modules.pop(id(module), None)
        if compiling is not None:
            _dynamo.count_as_compiled()
            _dynamo.switch(compiling)


def _outside(hook: BetweenGraphs, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """A trace breaks here; between the graphs, Python calls the hook."""
    hook(*args, **kwargs)


def _may_break() -> bool:
    """Whether the hook that asks may break the trace in progress: run by Dynamo, a constant for what it makes.

    Which hook it is, and that it is left out, is noted without a guard: one would compile anew for each hook.
    """
    if is_exporting():
        return False
    reader, hook = _dynamo.reader_and_hook()
    known = isinstance(hook, BetweenGraphs)
    if known and not hook.breaks:
        if _entered.modules and not isinstance(hook, (Entrance, Exit)):
            hook._left_out = INSIDE
        return False
    whole = _dynamo.why_whole(reader)
    if whole is not None:
        LEFT_OUT[whole] += 1
        if known:
            hook._left_out = whole
    return whole is None


_dynamo.runs_in_a_trace(_may_break)
_dynamo.breaks_a_trace(_outside)
_dynamo.never_compiled(BetweenGraphs.__call__, nor_what_it_calls=True)
for _function in (_outside, Entrance.__call__, Exit.__call__):
    _dynamo.never_compiled(_function, nor_what_it_calls=False)


def left_out(model: nn.Module) -> dict[str, str]:
    """Of which modules a trace has left out hooks that were to fire, by name, and why; the root's name is empty."""
    found = {}
    for name, module in model.named_modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if isinstance(hook, BetweenGraphs) and hook.left_out is not None:
                found[name] = hook.left_out
    return found


def why_silent(model: nn.Module) -> str:
    """Why a model's gradients arrive though no hook of ours told of a forward."""
    reason = next(iter(left_out(model).values()), None)  # the root's, if it has one
    return reason if reason is not None else LATE if _dynamo.compiled_anything() else PAST
