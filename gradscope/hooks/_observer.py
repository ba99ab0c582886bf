"""The hooks on a live model: what fires when, and what it reads.

A forward hook on every module reduces its output at once and puts a tensor hook on it for the gradient (a full
backward hook would forbid in-place changes of the output). Parameters are read after the forward that used them,
their gradients in post-accumulate hooks or, given an optimizer, before its step.
"""

from __future__ import annotations

import threading
import weakref
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradscope.hooks._following import following_activations
from gradscope.hooks._guard import Hook, Removable, guarded
from gradscope.hooks._parameters import Parameters
from gradscope.hooks._sites import INPUT, ROOT, SiteBook, floating_tensors, is_parametrization
from gradscope.hooks._step import Forward, Step
from gradscope.init._operations import activation_of_module


class Clock(Protocol):
    """Who says when a step begins: the scope."""

    def begin_forward(self, root: bool) -> Forward:
        """A forward pass of a training step starts."""

    def open_step(self) -> Step | None:
        """The step in progress, None between two steps."""

    def write_what_is_sure(self) -> None:
        """Nothing is being recorded now: a good moment to write."""


class Observer:
    """All hooks of one scope on one model."""

    def __init__(
        self,
        model: nn.Module,
        book: SiteBook,
        clock: Clock,
        parameters: Parameters,
        *,
        gradients_at_step: bool,
    ) -> None:
        self.detached = False
        self.repeated: set[int] = set()
        """Gradient sites that a second backward of the same forward reached; only the first one counts."""
        self._model = model
        self._book = book
        self._clock = clock
        self._parameters = parameters
        self._gradients_at_step = gradients_at_step
        self._handles: list[Removable] = []
        self._leaf_handles: list[Removable] = []
        self._modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._hooked: dict[int, weakref.ref[Tensor]] = {}
        self._forward: Forward | None = None
        self._last: Forward | None = None
        self._local = threading.local()
        before, after = Hook(self._before_root), Hook(self._after_root)
        self._handles.append(model.register_forward_pre_hook(before, with_kwargs=True))
        self._attach_new()
        # After the root's own site was observed, and also when its forward raised.
        self._handles.append(model.register_forward_hook(after, always_call=True))

    def _attach_new(self) -> None:
        for name, module in self._model.named_modules():
            if module not in self._modules and not is_parametrization(name):
                self._modules.add(module)
                hook = Hook(partial(self._after_module, name or ROOT))
                self._handles.append(module.register_forward_hook(hook))
        if self._gradients_at_step:
            return
        for name, parameter in self._model.named_parameters():
            known = self._hooked.get(id(parameter))
            if parameter.requires_grad and (known is None or known() is not parameter):
                self._hooked[id(parameter)] = weakref.ref(parameter)
                hook = Hook(partial(self._after_accumulate, name))
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    def detach(self) -> None:
        """Remove every hook of ours, those on tensors too."""
        self.detached = True
        for handle in (*self._handles, *self._leaf_handles):
            handle.remove()
        self._handles, self._leaf_handles = [], []
        self._forward = self._last = None

    # Forward

    @property
    def _suppressed(self) -> int:
        """How many root forwards without gradient this thread is inside of."""
        return getattr(self._local, "suppressed", 0)

    @guarded
    def _before_root(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled() or self._suppressed or is_replaying():
            self._local.suppressed = self._suppressed + 1
            if not is_replaying():
                self._clock.write_what_is_sure()  # a validation may be long
            return
        forward = self._forward = self._clock.begin_forward(root=True)
        if not forward.step.due:
            return
        if not forward.step.weights_read:
            self._attach_new()
        for i, tensor in enumerate(floating_tensors((args, kwargs))):
            self._observe(forward, INPUT, module, tensor, 0, i, 0)

    @guarded
    def _after_root(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._suppressed:
            self._local.suppressed = self._suppressed - 1
            return
        forward = self._forward
        if forward is None or not forward.root or forward.thread != threading.get_ident():
            return
        self._last, self._forward = forward, None
        outputs = [t for t in floating_tensors(output) if t.requires_grad]
        for tensor in outputs:
            self._keep_if_leaf(tensor, tensor.register_hook(Hook(partial(self._backward_reached, forward))))
        if forward.step.due:
            self._parameters.read_weights(forward.step)
            self._note_following(forward, [t.grad_fn for t in outputs])

    @guarded
    def _after_module(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if is_replaying():
            self._after_recomputation(name, module, output)
            return
        forward = self._forward
        if forward is None or (not forward.root and forward.step.backward):
            if self._suppressed or not torch.is_grad_enabled():
                return
            forward = self._forward = self._last = self._clock.begin_forward(root=False)
        if not forward.step.due or forward.thread != threading.get_ident() or self._suppressed:
            return
        tensors = [t for t in floating_tensors(output) if t.dim() > 0]  # a loss is no layer's signal
        if any(True for _ in module.children()):
            tensors = [t for t in tensors if not forward.knows(t)]
        if not tensors:
            return
        call = forward.next_call(name)
        forward.depth += 1
        inputs = tuple(floating_tensors(args))
        for i, tensor in enumerate(tensors):
            self._observe(forward, name, module, tensor, call, i, forward.depth, inputs)
        if self._book.grew and tensors[0].grad_fn is not None:
            activation = activation_of_module(module)
            if activation is not None:
                source = forward.source(inputs[0]) if inputs else None
                if source is not None:
                    forward.followed.setdefault(source, activation.name)
                forward.activation_nodes[tensors[0].grad_fn] = activation.name
                if inputs and inputs[0] is not tensors[0]:  # in place the input is the output by now
                    forward.fed_nodes[inputs[0].grad_fn] = activation.name
            forward.layer_nodes[name, call] = tensors[0].grad_fn
        for tensor in tensors:
            forward.remember(tensor, (name, call))

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
    ) -> None:
        where = (name, module, call, output, depth, tensor)
        site = self._book.call("activation", *where)
        if site is not None and (rows := forward.step.arena.observe(tensor)) is not None:
            forward.activations.append((site, rows))
        if not tensor.requires_grad:
            return
        site = self._book.call("activation_grad", *where)
        if site is None:
            return
        forward.hooked.add(name)
        hook = Hook(partial(self._on_gradient, forward, site))
        self._keep_if_leaf(tensor, tensor.register_hook(hook))
        base = own_base(tensor, inputs)
        if base is not None:  # changed in place later, a view's own hook never fires; its base's does
            base.register_hook(Hook(partial(self._on_base_gradient, forward, site)))

    def _after_recomputation(self, name: str, module: nn.Module, output: Any) -> None:
        """Reentrant checkpointing runs a forward without gradient first: only the second run has a graph."""
        forward = self._last
        if forward is None or not forward.step.due or name in forward.hooked or forward.calls.get(name) != 1:
            return
        for i, tensor in enumerate(floating_tensors(output)):
            if tensor.requires_grad:
                site = self._book.call("activation_grad", name, module, 0, i, forward.depth, tensor)
                if site is not None:
                    forward.hooked.add(name)
                    tensor.register_hook(Hook(partial(self._on_gradient, forward, site)))

    def _note_following(self, forward: Forward, outputs: list[Any]) -> None:
        if self._book.grew:
            found = following_activations(outputs, forward.layer_nodes, forward.activation_nodes, forward.fed_nodes)
            self._book.set_following(found | forward.followed)
            self._book.grew = False
        forward.forget_graph()

    # Backward

    @guarded
    def _backward_reached(self, forward: Forward, _: Tensor | None) -> None:
        self._mark(forward)

    def _mark(self, forward: Forward) -> None:
        if not forward.backward:
            forward.backward = True
            if not forward.root and forward.step.due:  # nothing told that this forward had ended
                self._parameters.read_weights(forward.step)
                self._note_following(forward, list(forward.layer_nodes.values()))
        forward.step.backward = True

    @guarded
    def _on_gradient(self, forward: Forward, site: int, gradient: Tensor | None) -> None:
        if forward.step.done or gradient is None:  # None: of a module's outputs this one was not used
            return
        self._mark(forward)
        if site in forward.with_gradient:
            self.repeated.add(site)
            return
        forward.with_gradient.add(site)
        rows = forward.step.arena.observe(gradient)
        if rows is not None:
            forward.activation_grads.append((site, rows))

    @guarded
    def _on_base_gradient(self, forward: Forward, site: int, gradient: Tensor | None) -> None:
        if site not in forward.with_gradient:
            self._on_gradient(forward, site, gradient)

    @guarded
    def _after_accumulate(self, name: str, parameter: Tensor) -> None:
        step = self._clock.open_step()
        if step is None:
            return
        step.backward = True
        if step.due and step.forwards:
            forward = self._last if self._last in step.forwards else step.forwards[-1]
            self._parameters.read_gradient(forward, name, parameter)

    def end_step(self) -> None:
        """Take our hooks off the leaf tensors of the step, which outlive their graph."""
        for handle in self._leaf_handles:
            handle.remove()
        self._leaf_handles = []

    def _keep_if_leaf(self, tensor: Tensor, handle: Removable) -> None:
        if tensor.is_leaf:
            self._leaf_handles.append(handle)


def is_replaying() -> bool:
    """Inside a backward pass: a forward that runs here is activation checkpointing's recomputation."""
    return bool(torch._C._current_graph_task_id() != -1)


def own_base(tensor: Tensor, inputs: tuple[Tensor, ...]) -> Tensor | None:
    """The tensor of which a module's output is a view, where it is the same values and the module's own work."""
    base = tensor._base
    if base is None or base.grad_fn is None or base.numel() != tensor.numel() or base.dtype != tensor.dtype:
        return None
    if any(base is x or base is x._base for x in inputs):
        return None
    return base
