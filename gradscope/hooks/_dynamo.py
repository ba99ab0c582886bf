"""All that we ask of Dynamo, which reads the code that `torch.compile` compiles, and tell it; most of it is private.

Nothing here imports it: that takes a second, and who does not compile shall not wait. Where a part is missing from
another version of torch, hooks stay out of the graphs and are known to: nothing raises in the user's call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

_FORBIDDEN = (
    "called within a function compiled with {}: inside it nothing is observed; "
    "compile it without, compile the model instead, or use probe() on the uncompiled model"
)
FULLGRAPH, STRICT = (_FORBIDDEN.format(option) for option in ("fullgraph=True", "error_on_graph_break(True)"))
WHOLE = "called within {}, which torch.compile takes as a whole: inside it nothing is observed"
BACKWARD = "the backward is compiled with fullgraph=True: inside it no gradient of an activation is observed"

_BREAKABLE = frozenset({"tag_activation_checkpoint", "wrap_activation_checkpoint"})
"""Operators whose body runs as ordinary Python where it breaks; others raise."""

_eval_frame: Any = torch._C._dynamo.eval_frame


switch: Callable[[Any], Any] = _eval_frame.set_eval_frame
"""Sets what compiles the code that this thread runs from now on, None for nothing; returns what did before.

It is no function of ours, which Dynamo would compile where it is called while something compiles.
"""


def never_compiled(function: Callable[..., Any], *, nor_what_it_calls: bool) -> None:
    """Let Dynamo run a function as it is, where it meets it as a call of its own.

    `torch.compiler.disable` would do so too, but an enclosing trace would break at it, allowed or not. After a
    function that calls `switch` nothing may be restored: what it calls must be left to Dynamo.
    """
    try:
        action = _eval_frame._FrameAction
        beneath = action.SKIP if nor_what_it_calls else action.DEFAULT
        _eval_frame.set_code_exec_strategy(function.__code__, _eval_frame._FrameExecStrategy(action.SKIP, beneath))
    except (AttributeError, TypeError):  # it would compile hooks, at some cost
        pass


def breaks_a_trace(function: Callable[..., Any]) -> None:
    """A trace that reads a call of it breaks there, as at one that `torch.compiler.disable` has made."""
    setattr(function, "_torchdynamo_disable", True)  # noqa: B010


def runs_in_a_trace(function: Callable[..., Any]) -> None:
    """A trace that reads a call of it runs it and takes what it returns for a constant (`assume_constant_result`)."""
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010


def reader_and_hook(depth: int = 2) -> tuple[Any, Any]:
    """In a function that `runs_in_a_trace`: Dynamo's reader of the method that calls it, and that method's `self`."""
    reader = sys._getframe(depth).f_locals.get("tx")
    return reader, getattr(getattr(reader, "symbolic_locals", {}).get("self"), "value", None)


def why_whole(reader: Any) -> str | None:
    """Why the trace in progress may not break, None where it may."""
    try:
        return _why_whole(reader)
    except Exception:  # another Dynamo than those we know: better no hook than an error in the user's call
        return FULLGRAPH


def _why_whole(reader: Any) -> str | None:
    from torch._dynamo import compiled_autograd
    from torch._dynamo.symbolic_convert import InstructionTranslator

    root = InstructionTranslator.current_tx()
    tracer = root.output.current_tracer
    while tracer.parent is not None:
        name = getattr(tracer.source_target, "__name__", None) or str(tracer.source_target)
        if name not in _BREAKABLE:
            return WHOLE.format(f"torch.{name}" if hasattr(torch, name) else name)
        tracer = tracer.parent
    if root.one_graph:
        return BACKWARD if getattr(compiled_autograd, "in_compiled_autograd_region", False) else FULLGRAPH
    return STRICT if (reader or root).error_on_graph_break else None


def count_as_compiled() -> None:
    """With fullgraph=True, torch 2.13 takes a call that compiled nothing for an error: not the one that runs."""
    count = getattr(_eval_frame, "set_fullgraph_compiled_frame_count", None)
    if count is not None and count(-1) >= 0:  # else no such call is running
        count(1)


def compiled_anything() -> bool:
    """Whether anything was compiled in this process, or since the last `torch.compiler.reset()`."""
    module = sys.modules.get("torch._dynamo.convert_frame")
    return module is not None and bool(module.input_codes.seen)
