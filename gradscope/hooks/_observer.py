"""The hooks on a live model: what fires when, and to which pass it belongs.

A forward hook on every module reduces its output at once and puts a tensor hook on it for the gradient (a full
backward hook would forbid in-place changes of the output). Parameters are read after the forward that used them,
their gradients in post-accumulate hooks or, given an optimizer, before its step.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.hooks._accumulation import Accumulation
from gradscope.hooks._attachment import Attachment, Callbacks
from gradscope.hooks._clock import Clock
from gradscope.hooks._coverage import Coverage
from gradscope.hooks._distributed import wrapped_by_ddp
from gradscope.hooks._functional import FunctionalSites
from gradscope.hooks._fused import ENCODER_LAYER, FusedPaths, may_take_fused_path
from gradscope.hooks._guard import guarded, guarded_call
from gradscope.hooks._loss_graph import LossGraph
from gradscope.hooks._output import Output
from gradscope.hooks._parameters import Parameters
from gradscope.hooks._replay import Call, Segments
from gradscope.hooks._resting import Resting
from gradscope.hooks._signals import Signals
from gradscope.hooks._sites import INPUT, ROOT, SiteBook, call_name
from gradscope.hooks._step import Forward
from gradscope.hooks._tensors import floating_tensors, in_transform, is_capturing, is_replaying, tensors, why_unreadable
from gradscope.hooks._unobserved import Unobserved
from gradscope.hooks._validation import Validation
from gradscope.hooks._watch import Current, ModuleWatch, ParameterWatch
from gradscope.init._operations import activation_of_module


class Observer:
    """All hooks of one scope on one model.

    Args:
        model: the root.
        book: of the sites.
        clock: says when a step begins.
        parameters: reads them.
        unobserved: told of all that cannot be read.
        keep_batch: makes the copy of a batch that a dump may need, None where none will be asked for.
        functional: make functional activations sites.
        validation: takes the passes without gradient, None where they are not recorded.
        gradients_settle: parameters' gradients are final only after the backward (ranks average them then).
        averaged_over: how many ranks' losses are averaged to the loss.

    Attributes:
        detached: no hook is on any more.
        resting: told where steps end, when hooks may be off.
        loss_graph: knows of which nodes the model's outputs are.
    """

    def __init__(
        self,
        model: nn.Module,
        book: SiteBook,
        clock: Clock,
        parameters: Parameters,
        unobserved: Unobserved,
        *,
        keep_batch: Callable[[Any], Any] | None = None,
        functional: bool = False,
        validation: Validation | None = None,
        gradients_settle: bool = False,
        averaged_over: float = 1.0,
    ) -> None:
        self.detached = False
        self.loss_graph = LossGraph()
        self._model = model
        self._book = book
        self._clock = clock
        self._parameters = parameters
        self._unobserved = unobserved
        self._keep_batch = keep_batch
        self._validation = validation
        self._signals = Signals(self, book, unobserved, self._mark, averaged_over)
        self._accumulation = Accumulation(self, parameters, clock.open_step, settles=gradients_settle)
        self._segments = Segments()
        self._local = threading.local()
        self._trainer: int | None = None
        self._functional = FunctionalSites(self._after_function) if functional else None
        self._now = Current()
        self._attached = -1
        """The version of the model whose every module and parameter has its hooks."""
        callbacks = Callbacks(
            before_root=self._before_root,
            after_root=self._after_root,
            after_module=self._after_module,
            watch=self._module_watch,
            before_fused=self._before_fused,
            on_parameter=self._parameter_watch,
            records=self._records,
            before_module=self._before_module if functional else None,
        )
        self._attachment = Attachment(model, unobserved, callbacks)
        self.resting = Resting(self._attachment, clock, parameters, allowed=validation is None)
        self._fused = FusedPaths(self, self._attachment, self._fused_ended)
        self._coverage = Coverage(model, book, unobserved, self._attachment)

    def _module_watch(self, name: str) -> ModuleWatch:
        """The forward hook for a module within the model."""
        return ModuleWatch(
            name, self._now, self._book, self, self._after_module, self._watch_gradient, self._not_finite
        )

    def observes(self, parameters: set[int]) -> bool:
        """Whether any parameter of these ids is one that we watch."""
        return not self.detached and self._attachment.holds(parameters)

    def detach(self) -> None:
        """Remove every hook of ours, those on tensors too."""
        self.detached = True
        self._attachment.detach()
        self._signals.take_off_hooks()
        self._fused.forget()
        if self._functional is not None:
            self._functional.leave()
        self._local = threading.local()
        self._now.forward = None
        self._accumulation.forget()
        self._segments.forget()

    def end_step(self) -> None:
        """The step in progress is over, written or left out."""
        self._signals.end_step()
        self._accumulation.forget()
        self._segments.forget()

    # The root

    def _is_trainer(self) -> bool:
        """Whether this thread is the one that trains: the first that did, or, when that has ended, another."""
        here = threading.get_ident()
        if self._trainer != here and all(t.ident != self._trainer for t in threading.enumerate()):
            self._trainer = here
        if self._trainer != here:
            self._unobserved.add(ROOT, "called with gradient in several threads: those of the first are recorded")
        return self._trainer == here

    @property
    def _forward(self) -> Forward | None:
        """The pass that this thread is in."""
        return getattr(self._local, "forward", None)

    @property
    def _suppressed(self) -> int:
        """How many root forwards without gradient this thread is inside of."""
        return getattr(self._local, "suppressed", 0)

    @guarded
    def _before_root(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._suppressed:  # an interrupt may have kept us from seeing the end of one
            self._local.suppressed = min(self._suppressed, calls_running(module) - 1)
        replaying, capturing = is_replaying(), is_capturing()
        if capturing:
            self._unobserved.add(ROOT, "captured in a CUDA graph, which is replayed without hooks")
        if not torch.is_grad_enabled() or self._suppressed or replaying or capturing or in_transform():
            self._local.suppressed = self._suppressed + 1
            self._now.forward = None
            if not replaying and not capturing and not in_transform():
                self._clock.write_what_is_sure()  # a validation may be long
                if self._validation is not None and self._suppressed == 1:
                    self._local.validating = self._validation.begin()
                    self._observe_inputs(self._local.validating, module, args, kwargs)
            return
        if self._forward is not None:  # an interrupt has ended it
            self._forward.failed = True
            self._forward.forget_graph()
        if not self._is_trainer():
            self._local.suppressed = self._suppressed + 1
            return
        forward = self._local.forward = self._clock.begin_forward(root=True)
        if not self._accumulation.settles and wrapped_by_ddp(module):
            self._coverage.wrapped()
        self._now.forward = None
        self.resting.pass_began(observed=forward.step.observed)
        if not forward.step.observed:
            return
        if self._functional is not None:
            self._functional.enter()
        else:
            self._enter(forward)
        self._attach_new(forward)
        if self._keep_batch is not None:
            forward.batch = self._keep_batch((args, kwargs))
        self._observe_inputs(forward, module, args, kwargs)

    def _enter(self, forward: Forward) -> None:
        """Calls take the short way, unless more than moments is taken in this pass."""
        self._now.enter(forward if forward.units is None else None)

    def _attach_new(self, forward: Forward) -> None:
        """Hooks for what has come, or is trained, since they were put on."""
        version = self._parameters.version(forward.step)
        if version != self._attached or not self._attachment.complete:
            self._attached = version
            self._attachment.attach_new()

    def _observe_inputs(self, forward: Forward, module: nn.Module, args: Any, kwargs: Any) -> None:
        for i, tensor in enumerate(floating_tensors((args, kwargs))):
            self._read(forward, Output(tensor, module, INPUT, index=i))

    def _read(self, forward: Forward, output: Output) -> None:
        if self._suppressed and self._validation is not None:
            self._signals.read_value(forward, output, self._validation.book)
        else:
            self._signals.read(forward, output)

    @guarded
    def _after_root(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._suppressed:
            self._local.suppressed = self._suppressed - 1
            if not self._suppressed:
                self._local.validating = None
                if self._forward is not None and self._forward.step.observed and self._functional is None:
                    self._enter(self._forward)  # the pass inside of which it was made goes on
            return
        forward = self._forward
        if forward is None or not forward.root:
            return
        if self._functional is not None:
            self._functional.leave()
        self._local.forward = self._now.forward = None
        if output is None and sys.exception() is not None:  # the forward raised
            forward.failed = True
            forward.forget_graph()
            return
        outputs = [t for t in floating_tensors(output) if t.requires_grad]
        if not outputs and not self._suppressed:  # only the parameters' hooks will tell of a backward
            self.resting.forbid()
        if forward.step.due:
            self.loss_graph.mark_outputs(outputs)
        forward.graph = [weakref.ref(self._signals.hook(t, self._backward_reached, forward)) for t in outputs]
        if forward.step.observed:
            if self._attachment.lazy:
                self._attachment.attach_new()
            self._read_weights(forward)
            self._coverage.after_forward(forward)
            self._signals.read_graph(forward, [t.grad_fn for t in outputs])
            self._parameters.pass_ended()

    def _read_weights(self, forward: Forward) -> None:
        """After the pass that has used them, unless the optimizer's hook will do it with less work."""
        if not self._parameters.at_step or self._clock.inside_optimizer:
            self._parameters.read_weights(forward.step)

    # Modules

    @guarded
    def _records(self) -> bool:
        """Whether a module's call that begins now is recorded; the same for all calls of a step."""
        if is_replaying():
            step = self._clock.open_step()
            return step is not None and step.observed
        if self._suppressed:
            return getattr(self._local, "validating", None) is not None
        forward = self._forward
        if forward is None:
            return torch.is_grad_enabled() and self._clock.observes_next()
        return forward.step.observed

    @guarded
    def _before_module(self, name: str, module: nn.Module, args: Any) -> None:
        if self._functional is not None and self._forward is not None and not self._suppressed:
            self._functional.module_begins(name, module)

    @guarded
    def _before_fused(self, name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        """What takes a fused path where nobody looks on shall take it still."""
        if not may_take_fused_path(layer, (args, kwargs)):
            return
        if self._functional is not None:
            self._functional.suspend(layer)
        if isinstance(layer, ENCODER_LAYER):
            if self._current() is not None:
                reason = "evaluated without gradient by its fused path, inside which nothing is observed"
                self._unobserved.add(name, reason)
                self._coverage.fused(name)
            self._fused.make_way(name, layer)

    @guarded
    def _fused_ended(self, name: str, layer: nn.Module, args: Any, output: Any) -> None:
        self._module_returned(name, layer, args, {}, output)
        if layer is self._model:
            self._after_root(layer, args, output)

    @guarded
    def _after_module(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._module_returned(name, module, args, kwargs, output)

    def _module_returned(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._functional is not None and self._forward is not None and not self._suppressed:
            self._functional.module_ends(module)
        if is_replaying():
            self._after_recomputation(name, module, tuple(floating_tensors((args, kwargs))), output)
            return
        forward = self._current()
        if forward is None or not forward.step.observed:
            return
        forward.fired.add(name)
        # A single number is a loss, and no layer's signal.
        own = [(i, t) for i, t in enumerate(floating_tensors(output)) if t.dim() > 0]
        if self._book.grew or not own:
            self._note_unreadable(name, output)
        if next(module.children(), None) is not None:
            own = [(i, t) for i, t in own if not forward.knows(t)]
        if not own:
            return
        call = forward.next_call(name)
        forward.depth += 1
        inputs = tuple(floating_tensors((args, kwargs)))
        for i, tensor in own:
            self._read(forward, Output(tensor, module, name, call, i, forward.depth, inputs))
        if not torch.is_grad_enabled() and not self._suppressed:
            self._segments.note(Call(forward, name, call, forward.depth))
        first = own[0][1]
        if self._book.grew and first.grad_fn is not None:
            self._note_nodes(forward, (name, call), module, inputs, first)
        for i, tensor in own:
            forward.remember(tensor, (name, call))
            self.loss_graph.mark(tensor, call_name(name, call, i))

    @guarded
    def _after_function(
        self, name: str, module: nn.Module, function: str, output: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        forward = self._forward
        if forward is None or self._suppressed or not forward.step.observed or is_replaying():
            return
        site = f"{name}:{function}"
        call = forward.next_call(site)
        forward.depth += 1
        made = Output(output, module, site, call, depth=forward.depth, function=function, args=args, kwargs=kwargs)
        self._read(forward, made)
        if not torch.is_grad_enabled() and self._segments.inside():
            self._unobserved.add(site, "a function in a reentrant checkpointed segment: its gradient is not recorded")
        forward.remember(output, (site, call))
        self.loss_graph.mark(output, call_name(site, call, 0))

    def _current(self) -> Forward | None:
        """The pass that a module's call in this thread belongs to."""
        if self._suppressed:
            return getattr(self._local, "validating", None)
        forward = self._forward
        if forward is None or (not forward.root and forward.step.backward):
            if not torch.is_grad_enabled() or in_transform() or is_capturing() or not self._is_trainer():
                return None
            forward = self._local.forward = self._clock.begin_forward(root=False)
            if forward.step.observed:
                self._attach_new(forward)
        return None if in_transform() else forward

    def _note_unreadable(self, name: str, output: Any) -> None:
        for tensor in tensors(output):
            if tensor.is_complex() or tensor.is_quantized:
                self._unobserved.add(name, f"its output is {why_unreadable(tensor)}")

    def _note_nodes(
        self, forward: Forward, call: tuple[str, int], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        activation = activation_of_module(module)
        if activation is not None:
            source = forward.source(inputs[0]) if inputs else None
            if source is not None:
                forward.followed.setdefault(source, activation.name)
            forward.activation_nodes[output.grad_fn] = activation.name
            if inputs and inputs[0] is not output:  # in place the input is the output by now
                forward.fed_nodes[inputs[0].grad_fn] = activation.name
        forward.layer_nodes[call] = output.grad_fn

    def _watch_gradient(self, forward: Forward, site: int, inputs: Any, output: Tensor) -> None:
        self._signals.watch_gradient(forward, site, inputs, output)

    def _not_finite(
        self, forward: Forward, site: int, called: tuple[nn.Module, str, int], inputs: Any, output: Tensor
    ) -> None:
        module, name, call = called
        made = Output(output, module, name, call, 0, forward.depth, tuple(floating_tensors(inputs)))
        self._signals.look_at_inputs(forward, site, made, certain=True)

    def _after_recomputation(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        """Reentrant checkpointing runs a forward without gradient first: only the second run has a graph."""
        own = [(i, t) for i, t in enumerate(floating_tensors(output)) if t.dim() > 0]
        call = self._segments.repeated(name, with_gradient=any(t.requires_grad for _, t in own))
        if call is None:
            return
        for i, tensor in own:
            if tensor.requires_grad:
                again = Output(tensor, module, name, call.number, i, call.depth, inputs)
                self._signals.read_again(call, again)

    # Backward

    def _backward_reached(self, forward: Forward, _: Tensor | None) -> None:
        self._mark(forward)

    def _mark(self, forward: Forward) -> None:
        if not forward.backward:
            forward.backward = True
            if not forward.root and not any(other.root for other in forward.step.forwards):
                self.resting.forbid()
            if not forward.root and forward.step.observed:  # nothing told that this forward had ended
                self._read_weights(forward)
                self._signals.read_graph(forward, list(forward.layer_nodes.values()))
        forward.step.backward = True
        self._accumulation.backward_reached(forward)

    def _parameter_watch(self, name: str) -> ParameterWatch:
        return ParameterWatch(name, self._accumulation, weakref.WeakMethod(self._after_accumulate))

    def _after_accumulate(self, name: str, parameter: Tensor) -> None:
        guarded_call(self, partial(self._accumulated, name, parameter))

    def _accumulated(self, name: str, parameter: Tensor) -> None:
        step = self._clock.open_step()
        if parameter.device.type == "cpu" and self._trainer not in (None, threading.get_ident()):
            return
        if step is None:
            if not self._clock.began:
                self._coverage.backward_alone()
            return
        step.backward = step.new_gradients = True
        self._coverage.after_gradient(name.rpartition(".")[0])
        if step.observed and step.forwards:
            self._accumulation.arrived(step, name, parameter)


def calls_running(module: nn.Module) -> int:
    """How many calls of a module this thread is inside of."""
    found, frame = 0, sys._getframe(1).f_back
    while frame is not None:
        if frame.f_code is _CALL and frame.f_locals.get("self") is module:
            found += 1
        frame = frame.f_back
    return found


_CALL = nn.Module._call_impl.__code__
