"""The hooks on a live model: what fires when, and what it reads.

A forward hook on every module reduces its output at once and puts a tensor hook on it for the gradient (a full
backward hook would forbid in-place changes of the output). Parameters are read after the forward that used them,
their gradients in post-accumulate hooks or, given an optimizer, before its step.
"""

from __future__ import annotations

import sys
import threading
import warnings
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from gradscope.hooks._attachment import ENCODER_LAYER, Attachment, Callbacks, may_take_fused_path
from gradscope.hooks._compiled import left_out, why_silent
from gradscope.hooks._distributed import wrapped_by_ddp
from gradscope.hooks._following import Consumers, following_activations
from gradscope.hooks._functional import FunctionalSites
from gradscope.hooks._guard import Hook, Removable, guarded
from gradscope.hooks._moments import Rows
from gradscope.hooks._parameters import Parameters
from gradscope.hooks._replay import Call, Segments
from gradscope.hooks._sites import INPUT, ROOT, SiteBook, call_name
from gradscope.hooks._step import Forward, Step
from gradscope.hooks._tensors import (
    floating_tensors,
    in_transform,
    is_capturing,
    is_replaying,
    own_base,
    tensors,
    why_unreadable,
)
from gradscope.hooks._unobserved import Unobserved
from gradscope.hooks._validation import Validation
from gradscope.init._operations import activation_of_module
from gradscope.recording import GradScopeWarning


class Clock(Protocol):
    """Who says when a step begins: the scope."""

    def begin_forward(self, root: bool) -> Forward:
        """A forward pass of a training step starts."""

    def open_step(self) -> Step | None:
        """The step in progress, None between two steps."""

    def observes_next(self) -> bool:
        """Whether a forward that began now would be observed."""

    def write_what_is_sure(self) -> None:
        """Nothing is being recorded now: a good moment to write."""


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
    """

    def __init__(
        self,
        model: nn.Module,
        book: SiteBook,
        clock: Clock,
        parameters: Parameters,
        unobserved: Unobserved,
        *,
        keep_batch: Any = None,
        functional: bool = False,
        validation: Validation | None = None,
        gradients_settle: bool = False,
        averaged_over: float = 1.0,
    ) -> None:
        self.detached = False
        self._model = model
        self._book = book
        self._clock = clock
        self._parameters = parameters
        self._unobserved = unobserved
        self._keep_batch = keep_batch
        self._validation = validation
        self._gradients_settle = gradients_settle
        self._averaged_over = averaged_over
        self._segments = Segments()
        self._tensor_handles: list[Removable] = []
        self._global_handles: list[Removable] = []
        self._forward: Forward | None = None
        self._last: Forward | None = None
        self._awaited: int | None = None
        self._lone_backward: int | None = None
        """The latest backward pass whose forward nothing has told of."""
        self._hidden: set[int] = set()
        """Gradient sites of views whose gradient a change in place hides."""
        self._uncalled: dict[str, nn.Module] = {}
        self._local = threading.local()
        self._functional = FunctionalSites(self._after_function) if functional else None
        self._attachment = Attachment(
            model,
            unobserved,
            Callbacks(
                before_root=self._before_root,
                after_root=self._after_root,
                after_module=self._after_module,
                before_fused=self._before_fused,
                after_accumulate=self._after_accumulate,
                records=self._records,
                before_module=self._before_module if functional else None,
            ),
        )

    def observes(self, parameters: set[int]) -> bool:
        """Whether any parameter of these ids is one that we watch."""
        return not self.detached and self._attachment.holds(parameters)

    def detach(self) -> None:
        """Remove every hook of ours, those on tensors too."""
        self.detached = True
        self._attachment.detach()
        for handle in (*self._tensor_handles, *self._global_handles):
            handle.remove()
        if self._functional is not None:
            self._functional.leave()
        self._tensor_handles, self._global_handles = [], []
        self._forward = self._last = None
        self._segments.forget()

    # The root

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
            if not replaying and not capturing and not in_transform():
                self._clock.write_what_is_sure()  # a validation may be long
                if self._validation is not None and self._suppressed == 1:
                    self._local.validating = self._validation.begin()
                    self._observe_inputs(self._local.validating, module, args, kwargs)
            return
        forward = self._forward = self._clock.begin_forward(root=True)
        if not self._gradients_settle and wrapped_by_ddp(module):
            self._note_wrapper()
        if not forward.step.observed:
            return
        if self._functional is not None:
            self._functional.enter()
        if not forward.step.weights_read:
            self._attachment.attach_new()
        if self._keep_batch is not None:
            forward.batch = self._keep_batch((args, kwargs))
        self._observe_inputs(forward, module, args, kwargs)

    def _note_wrapper(self) -> None:
        """A wrapper that averages over ranks was put around the model after the scope was made."""
        if ROOT not in self._unobserved.reasons:
            self._unobserved.add(ROOT, "trained in a DistributedDataParallel of which the scope does not know")
            warnings.warn(
                "GradScope records this rank alone, and gradients before they are averaged: "
                "give it the DistributedDataParallel, not the model inside",
                GradScopeWarning,
                stacklevel=2,
            )

    def _observe_inputs(self, forward: Forward, module: nn.Module, args: Any, kwargs: Any) -> None:
        for i, tensor in enumerate(floating_tensors((args, kwargs))):
            self._observe(forward, INPUT, module, tensor, 0, i, 0)

    @guarded
    def _after_root(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._suppressed:
            self._local.suppressed = self._suppressed - 1
            if not self._suppressed:
                self._local.validating = None
            return
        forward = self._forward
        if forward is None or not forward.root or forward.thread != threading.get_ident():
            return
        if self._functional is not None:
            self._functional.leave()
        self._last, self._forward = forward, None
        if output is None and sys.exception() is not None:  # the forward raised
            return
        outputs = [t for t in floating_tensors(output) if t.requires_grad]
        for tensor in outputs:
            self._hook(tensor, partial(self._backward_reached, forward))
        if forward.step.observed:
            if self._attachment.lazy:
                self._attachment.attach_new()
            self._parameters.read_weights(forward.step)
            if not forward.calls:
                self._note_silence()
            elif self._book.grew:
                self._note_uncalled(forward)
            self._note_following(forward, [t.grad_fn for t in outputs])

    def _note_silence(self) -> None:
        """The model has run, and none of its modules has told of it."""
        why = why_silent(self._model)
        if self._unobserved.reasons.get(ROOT) != why and next(self._attachment.leaves(), None) is not None:
            self._unobserved.add(ROOT, why)
            warnings.warn(f"GradScope sees nothing inside the model: {why}", GradScopeWarning, stacklevel=2)

    def _note_backward_alone(self) -> None:
        """A gradient has come though no forward has: of a pass that began before us, but not a second time."""
        task = torch._C._current_graph_task_id()
        if self._last is None and self._lone_backward not in (None, task):
            self._note_silence()
        self._lone_backward = task

    def _note_uncalled(self, forward: Forward) -> None:
        """Which layers no hook has told of: never called, or by a way around their hooks."""
        for name, module, in_attention in self._attachment.leaves():
            if name in forward.calls:
                self._unobserved.drop(name)
                self._uncalled.pop(name, None)
            elif name not in self._uncalled and not self._ever_called(name):
                self._uncalled[name] = module
                why = _IN_ATTENTION if in_attention else left_out(self._model).get(name, _NEVER)
                self._unobserved.add(name, why)

    def _note_used(self, name: str) -> None:
        """A gradient has reached the parameters of a module that was not called."""
        if self._uncalled.pop(name, None) is not None and self._unobserved.reasons.get(name) == _NEVER:
            self._unobserved.drop(name)
            self._unobserved.add(name, "its parameters are used, but not by calling it, so its hooks never fire")

    def _ever_called(self, name: str) -> bool:
        return self._book.knows("activation", name) or self._book.knows("activation_grad", name)

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
        return forward.step.observed and forward.thread == threading.get_ident()

    @guarded
    def _before_module(self, name: str, module: nn.Module, args: Any) -> None:
        if self._functional is not None and self._mine(self._forward):
            self._functional.module_begins(name, module)

    @guarded
    def _before_fused(self, name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        """What takes a fused path where nobody looks on shall take it still.

        For the length of an encoder layer's forward our hooks come off; a hook on all modules, which it does not
        look for, tells of its end.
        """
        if not may_take_fused_path(layer, (args, kwargs)):
            return
        if self._functional is not None:
            self._functional.suspend(layer)
        if not isinstance(layer, ENCODER_LAYER):
            return
        if self._current() is not None:
            self._unobserved.add(name, "evaluated without gradient by its fused path, inside which nothing is observed")
        aside = self._attachment.put_aside(layer)
        handles: list[Removable] = []
        ended = Hook(partial(self._encoder_layer_ended, name, layer, aside, handles))
        handles.append(register_module_forward_hook(ended, always_call=True))
        self._global_handles += handles

    @guarded
    def _encoder_layer_ended(
        self,
        name: str,
        layer: nn.Module,
        aside: list[nn.Module],
        handles: list[Removable],
        module: nn.Module,
        args: Any,
        output: Any,
    ) -> None:
        if module is not layer:
            return
        for handle in handles:
            handle.remove()
            self._global_handles.remove(handle)
        self._attachment.bring_back(aside)
        self._module_returned(name, module, args, {}, output)
        if layer is self._model:
            self._after_root(layer, args, output)

    @guarded
    def _after_module(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._module_returned(name, module, args, kwargs, output)

    def _module_returned(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._functional is not None:
            self._functional.module_ends(module)
        if is_replaying():
            self._after_recomputation(name, module, output)
            return
        forward = self._current()
        if forward is None or not forward.step.observed:
            return
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
            self._observe(forward, name, module, tensor, call, i, forward.depth, inputs)
        if not torch.is_grad_enabled():
            self._segments.note(Call(forward, name, call, forward.depth))
        first = own[0][1]
        if self._book.grew and first.grad_fn is not None:
            self._note_nodes(forward, (name, call), module, inputs, first)
        for _, tensor in own:
            forward.remember(tensor, (name, call))

    @guarded
    def _after_function(self, name: str, module: nn.Module, function: str, output: Tensor) -> None:
        forward = self._forward
        if not self._mine(forward) or forward is None or not forward.step.observed or is_replaying():
            return
        site = f"{name}:{function}"
        call = forward.next_call(site)
        forward.depth += 1
        self._observe(forward, site, module, output, call, 0, forward.depth, function=function)
        forward.remember(output, (site, call))

    def _current(self) -> Forward | None:
        """The pass that a module's call in this thread belongs to."""
        if self._suppressed:
            return getattr(self._local, "validating", None)
        forward = self._forward
        if forward is None or (not forward.root and forward.step.backward):
            if not torch.is_grad_enabled() or in_transform() or is_capturing():
                return None
            forward = self._forward = self._last = self._clock.begin_forward(root=False)
        return forward if self._mine(forward) and not in_transform() else None

    def _mine(self, forward: Forward | None) -> bool:
        return forward is not None and forward.thread == threading.get_ident() and not self._suppressed

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

    def _observe(
        self,
        forward: Forward,
        name: str,
        module: nn.Module,
        tensor: Tensor,
        call: int,
        output: int,
        depth: int,
        inputs: tuple[Tensor, ...] = (),
        function: str | None = None,
    ) -> None:
        reason = why_unreadable(tensor)
        if reason is not None:
            self._unobserved.add(call_name(name, call, output), f"its output is {reason}")
            return
        book = self._book if self._validation is None or not self._suppressed else self._validation.book
        where = (name, module, call, output, depth, tensor, function)
        site = book.call("activation", *where)
        if site is not None and (rows := forward.step.arena.observe(tensor)) is not None:
            forward.activations.append((site, rows))
            if rows.some_not_finite():
                self._look_at_inputs(forward, site, inputs, tensor)
        if not tensor.requires_grad or self._suppressed:
            return
        site = book.call("activation_grad", *where)
        if site is None:
            return
        self._hook(tensor, partial(self._on_gradient, forward, site))
        if tensor._is_view() and tensor._base is not None:
            base = own_base(tensor, inputs)
            if base is not None and site not in self._hidden:
                # Changed in place later, a view's own hook never fires; its base's does.
                self._hook(base, partial(self._on_base_gradient, forward, site))
            if self._book.grew:
                forward.views[site] = (tensor.grad_fn, tensor._base.grad_fn, base is not None)

    def _look_at_inputs(self, forward: Forward, site: int, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Of a call whose output is not finite: was what it was given?"""
        rows = Rows()
        for tensor in inputs:
            before_it = forward.source(tensor) if tensor is output else forward.knows(tensor)
            if not before_it and why_unreadable(tensor) is None:
                rows += forward.step.arena.observe(tensor) or Rows()
        forward.input_rows.setdefault(site, rows)

    def _after_recomputation(self, name: str, module: nn.Module, output: Any) -> None:
        """Reentrant checkpointing runs a forward without gradient first: only the second run has a graph."""
        own = [(i, t) for i, t in enumerate(floating_tensors(output)) if t.dim() > 0]
        found = self._segments.repeated(name, with_gradient=any(t.requires_grad for _, t in own))
        if found is None:
            return
        for i, tensor in own:
            if tensor.requires_grad:
                site = self._book.call("activation_grad", name, module, found.number, i, found.depth, tensor)
                if site is not None:
                    self._hook(tensor, partial(self._on_gradient, found.forward, site))

    def _note_following(self, forward: Forward, outputs: list[Any]) -> None:
        if self._book.grew:
            consumers = Consumers(outputs)
            found = following_activations(consumers, forward.layer_nodes, forward.activation_nodes, forward.fed_nodes)
            self._book.set_following(found | forward.followed)
            self._book.grew = False
            for site, (node, base, whole) in forward.views.items():
                # The base's gradient is the view's where all of it is the view, and nothing else uses it.
                if node not in consumers and base in consumers and not (whole and len(consumers.of(base)) == 1):
                    self._hidden.add(site)
                    name = self._book.sites[site].name
                    self._unobserved.add(name, "a view that was changed in place later, which hides its gradient")
        forward.forget_graph()

    # Backward

    @guarded
    def _backward_reached(self, forward: Forward, _: Tensor | None) -> None:
        self._mark(forward)

    def _mark(self, forward: Forward) -> None:
        if not forward.backward:
            forward.backward = True
            if not forward.root and forward.step.observed:  # nothing told that this forward had ended
                self._parameters.read_weights(forward.step)
                self._note_following(forward, list(forward.layer_nodes.values()))
        forward.step.backward = True
        if self._gradients_settle and is_replaying():
            self._await_the_end()

    @guarded
    def _on_gradient(self, forward: Forward, site: int, gradient: Tensor | None) -> None:
        if forward.step.done or gradient is None:  # None: of a module's outputs this one was not used
            return
        self._mark(forward)
        again = site in forward.gradients
        if again and site not in forward.provisional:
            name = self._book.sites[site].name
            self._unobserved.add(name, "several backward passes reached it: the first is recorded")
            return
        if again and torch.is_grad_enabled():
            return
        if why_unreadable(gradient) is not None:
            return
        step = forward.step
        unit = (
            step.scale
            if self._averaged_over == 1
            else (1.0 if step.scale is None else step.scale) * self._averaged_over
        )
        rows = step.arena.observe(gradient, unit=unit)
        if rows is None:
            return
        if again:  # a gradient penalty's pass came first; this is the one that leaves gradients
            del forward.gradients[site]
            forward.provisional.discard(site)
        elif torch.is_grad_enabled():
            forward.provisional.add(site)
        forward.gradients[site] = rows

    @guarded
    def _on_base_gradient(self, forward: Forward, site: int, gradient: Tensor | None) -> None:
        if site not in forward.gradients and site not in self._hidden:
            self._on_gradient(forward, site, gradient)

    @guarded
    def _after_accumulate(self, name: str, parameter: Tensor) -> None:
        step = self._clock.open_step()
        if step is None:
            self._note_backward_alone()
            return
        step.backward = True
        if self._uncalled:
            self._note_used(name.rpartition(".")[0])
        if not step.observed or not step.forwards:
            return
        if self._gradients_settle:
            if is_replaying():
                self._await_the_end()
        else:
            self._read_gradient(step, name, parameter)

    def _read_gradient(self, step: Step, name: str, parameter: Tensor) -> None:
        self._parameters.sample_before(step, name, parameter)
        if not self._parameters.at_step:
            forward = self._last if self._last in step.forwards else step.forwards[-1]
            self._parameters.read_gradient(forward, name, parameter)

    def _await_the_end(self) -> None:
        """Read the parameters' gradients once this backward has ended and the ranks have averaged them."""
        task = torch._C._current_graph_task_id()
        if task != self._awaited:
            self._awaited = task
            queue = torch.autograd.Variable._execution_engine.queue_callback
            queue(lambda: queue(Hook(self._gradients_settled)))  # the averaging itself is such a callback

    @guarded
    def _gradients_settled(self) -> None:
        step = self._clock.open_step()
        if step is not None and step.observed and step.forwards:
            for name, _, parameter in self._parameters.named():
                self._read_gradient(step, name, parameter)

    def end_step(self) -> None:
        """Take our hooks off the tensors of the step: some outlive it, and would keep alive what the hooks know."""
        for handle in self._tensor_handles:
            handle.remove()
        self._tensor_handles = []
        self._segments.forget()

    def _hook(self, tensor: Tensor, function: Any) -> None:
        self._tensor_handles.append(tensor.register_hook(Hook(function)))


def calls_running(module: nn.Module) -> int:
    """How many calls of a module this thread is inside of."""
    found, frame = 0, sys._getframe(1).f_back
    while frame is not None:
        if frame.f_code is _CALL and frame.f_locals.get("self") is module:
            found += 1
        frame = frame.f_back
    return found


_CALL = nn.Module._call_impl.__code__


_NEVER = "never called in a forward pass"
_IN_ATTENTION = "MultiheadAttention uses its weights without calling it"
