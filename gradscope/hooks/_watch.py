"""The hooks that fire most: on what a module returns, on the gradient that reaches it. Each has a short way.

Where a module returns at a known call one plain tensor, and nothing disturbs, its numbers go from its memory to a row
by our kernel: no operation of torch is made. Everything else takes the long way, through the observer.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from gradscope.hooks import _dynamo, _guard
from gradscope.hooks._accumulation import Accumulation
from gradscope.hooks._compiled import _may_break, _outside
from gradscope.hooks._guard import Hook, Listener, ModuleHook, stop
from gradscope.hooks._nonfinite import NonFiniteError
from gradscope.hooks._sites import SiteBook, call_name
from gradscope.hooks._step import Forward

_UNMET = -1
"""A site that the book does not know."""

_thread = threading.get_ident
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_grad = torch.is_grad_enabled
_backward_task = torch._C._current_graph_task_id
_transform = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._get_tracing_state


class Current:
    """The recorded pass that the training thread is in, where nothing is unusual about it."""

    __slots__ = ("forward", "thread")

    def __init__(self) -> None:
        self.forward: Forward | None = None
        self.thread = 0

    def enter(self, forward: Forward | None) -> None:
        """From here on calls in this thread belong to this pass."""
        self.forward, self.thread = forward, _thread()


class ModuleWatch(ModuleHook):
    """The forward hook of one module within the model.

    Args:
        name: of the module.
        current: the pass.
        book: of the sites.
        listener: whose hook it is.
        long_way: called with name, module, args, kwargs and output.
        gradient: puts a hook on an output, for its gradient.
        not_finite: called of an output with NaN or infinity.
    """

    __slots__ = ("_book", "_current", "_gradient", "_known", "_listener", "_name", "_not_finite")

    def __init__(
        self,
        name: str,
        current: Current,
        book: SiteBook,
        listener: Listener,
        long_way: Callable[..., None],
        gradient: Callable[..., None],
        not_finite: Callable[..., None],
    ) -> None:
        super().__init__(long_way)
        self._name = name
        self._current = current
        self._book = book
        self._listener = listener
        self._gradient = gradient
        self._not_finite = not_finite
        self._known: dict[int, tuple[int | None, int | None]] = {}
        """By number of the call, the sites of its value and of its gradient."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if is_dynamo_compiling():
            if _may_break():
                _outside(self, (module, args, kwargs, output), {})
            return
        forward = self._current.forward
        if (
            forward is None
            or type(output) is not Tensor
            or self._book.grew
            or _thread() != self._current.thread
            or not _grad()
            or _dispatch_modes()
            or _function_modes()
            or _guard.only_one_listens()
            or _backward_task() != -1
            or _transform() is not None
            or _tracing() is not None
            or not self._short_way(forward, module, args, kwargs, output)
        ):
            super().__call__(self._name, module, args, kwargs, output)
            if forward is not None and type(output) is Tensor:
                self._learn(forward)

    def _short_way(self, forward: Forward, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> bool:
        """Read the output; False where it takes the long way."""
        try:
            if output.dim() == 0:
                return False
            forward.fired.add(self._name)
            if module._modules and forward.knows(output) and next(module.children(), None) is not None:
                return True  # a child's output, and that has a site
            name, arena = self._name, forward.arena
            call = forward.calls.get(name, 0)
            known = self._known.get(call)
            if known is None:
                return False
            site, gradient_site = known
            with_gradient = output.requires_grad
            if with_gradient and gradient_site == _UNMET:
                return False
            if site is not None:
                row = arena.observe_as_it_lies(output)
                if row is None:
                    return False
                forward.activations.add(site, row)
            forward.calls[name] = call + 1
            forward.depth += 1
            if site is not None and arena.bad:
                self._not_finite(forward, site, (module, name, call), (args, kwargs), output)
            if gradient_site is not None and with_gradient:
                self._gradient(forward, gradient_site, (args, kwargs), output)
            forward.remember(output, (name, call))
        except NonFiniteError:
            raise
        except Exception as error:
            stop(self._listener, error)
        return True

    def _learn(self, forward: Forward) -> None:
        """The sites of the call that has just taken the long way."""
        call = forward.calls.get(self._name, 0) - 1
        if call >= 0 and self._known.get(call, (0, _UNMET))[1] == _UNMET:
            full = call_name(self._name, call, 0)
            if self._book.knows("activation", full) or not self._book.records("activation"):
                self._known[call] = (
                    self._book.number("activation", full),
                    self._book.number("activation_grad", full)
                    if self._book.knows("activation_grad", full) or not self._book.records("activation_grad")
                    else _UNMET,
                )


class GradientWatch(Hook):
    """The hook on an output, for its gradient.

    Args:
        forward: the pass of the output.
        site: of its gradient.
        arrived: called with forward, site and gradient.
    """

    __slots__ = ("_arrived", "_forward", "_site")

    def __init__(self, forward: Forward, site: int, arrived: Callable[[Forward, int, Tensor | None], None]) -> None:
        self._forward = forward
        self._site = site
        self._arrived = arrived

    def __call__(self, gradient: Tensor | None) -> None:
        if is_dynamo_compiling():
            if _may_break():
                _outside(self, (gradient,), {})
            return
        self._arrived(self._forward, self._site, gradient)


class ParameterWatch(Hook):
    """The hook on a parameter, once a backward has left its gradient.

    A parameter holds its hooks out of the garbage collector's sight: they must not hold the model in turn.

    Args:
        name: of the parameter.
        accumulation: told of it, where it waits for the end of this backward anyway.
        long_way: called with name and parameter everywhere else.
    """

    __slots__ = ("_accumulation", "_long_way", "_name")

    def __init__(
        self, name: str, accumulation: Accumulation, long_way: weakref.WeakMethod[Callable[[str, Tensor], None]]
    ) -> None:
        self._name = name
        self._accumulation = weakref.ref(accumulation)
        self._long_way = long_way

    def __call__(self, parameter: Tensor) -> None:
        if is_dynamo_compiling():
            if _may_break():
                _outside(self, (parameter,), {})
            return
        accumulation = self._accumulation()
        if accumulation is not None and accumulation.awaits(_backward_task(), parameter):
            return
        long_way = self._long_way()
        if long_way is not None:
            long_way(self._name, parameter)


def put_on(tensor: Tensor, watch: Hook) -> Callable[[], object]:
    """Register a hook for a tensor's gradient; returns what takes it off.

    `Tensor.register_hook` makes the same two calls, and a handle that costs more than both.
    """
    if _DIRECTLY and tensor._backward_hooks is None and (node := tensor.grad_fn) is not None:
        hooks: Any = OrderedDict()
        hooks[_KEY] = watch
        tensor._backward_hooks = hooks
        node._register_hook_dict(tensor)
        return _Off(weakref.ref(hooks))
    remove: Callable[[], object] = tensor.register_hook(watch).remove
    return remove


_KEY = "gradscope"
"""Those of torch are numbers."""


class _Off:
    """Takes a hook off, where its tensor still lives; it keeps nothing alive."""

    __slots__ = ("_hooks",)

    def __init__(self, hooks: weakref.ref[Any]) -> None:
        self._hooks = hooks

    def __call__(self) -> None:
        hooks = self._hooks()
        if hooks is not None:
            hooks.pop(_KEY, None)


def _directly() -> bool:
    """Whether this torch registers hooks as we know it; else the public call does."""
    x = torch.zeros((), device="cpu", requires_grad=True)
    with torch.enable_grad():
        y = x * 1
    return hasattr(y, "_backward_hooks") and hasattr(y.grad_fn, "_register_hook_dict")


_DIRECTLY = _directly()

for _function in (ModuleWatch.__call__, GradientWatch.__call__, ParameterWatch.__call__):
    _dynamo.never_compiled(_function, nor_what_it_calls=True)
