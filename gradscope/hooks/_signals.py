"""What is read of one tensor that a module returns: its value at once, its gradient when the backward reaches it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradscope.hooks import _guard
from gradscope.hooks._following import Consumers, following_activations
from gradscope.hooks._guard import Hook, Listener, guarded_call, stop
from gradscope.hooks._output import Output
from gradscope.hooks._replay import Call
from gradscope.hooks._sites import SiteBook, call_name
from gradscope.hooks._step import Forward, View
from gradscope.hooks._tensors import floating_tensors, own_base, why_unreadable
from gradscope.hooks._unit_reader import UnitReader
from gradscope.hooks._unobserved import Unobserved
from gradscope.hooks._watch import GradientWatch, put_on
from gradscope.init._operations import LINEAR_LIKE


class Signals:
    """Reads activations and their gradients into the rows of a step.

    Args:
        listener: whose hooks these are.
        book: of the sites.
        unobserved: told of what cannot be read.
        reached: called when a backward pass reaches a forward's tensors.
        averaged_over: how many ranks' losses are averaged to the loss.
    """

    def __init__(
        self,
        listener: Listener,
        book: SiteBook,
        unobserved: Unobserved,
        reached: Callable[[Forward], None],
        averaged_over: float,
    ) -> None:
        self._listener = listener
        self._book = book
        self._unobserved = unobserved
        self._reached = reached
        self._averaged_over = averaged_over
        self._units = UnitReader()
        self._marked: Forward | None = None
        """The pass whose backward was told of last, and in which backward."""
        self._marked_in = -1
        self._taken_off: list[Callable[[], object]] = []
        self._repeated_views: list[tuple[Forward, int]] = []
        self._hidden: set[int] = set()
        """Gradient sites of views whose gradient a change in place hides."""

    def hook(self, tensor: Tensor, function: Callable[..., None], *known: Any) -> Hook:
        """Have the function called with what is known and the tensor's gradient; the hook lives as its graph does."""
        hook = Hook(partial(_guarded, self._listener, function, *known))
        self._taken_off.append(put_on(tensor, hook))
        return hook

    def _watch(self, tensor: Tensor, forward: Forward, site: int) -> None:
        """A hook on an output for its gradient."""
        self._taken_off.append(put_on(tensor, GradientWatch(forward, site, self._gradient_arrived)))

    def take_off_hooks(self) -> None:
        """From the tensors of a step: some outlive it, and would keep alive what the hooks know."""
        for take_off in self._taken_off:
            take_off()
        self._taken_off, self._marked = [], None

    def end_step(self) -> None:
        """No gradient of the step's tensors is waited for any more."""
        self.take_off_hooks()
        for forward, site in self._repeated_views:
            if site not in forward.gradients:
                reason = "a view in a checkpointed segment, unused or changed in place, whose gradient is hidden"
                self._unobserved.add(self._book.sites[site].name, reason)
        self._repeated_views = []

    # Forward

    def read(self, forward: Forward, output: Output) -> None:
        """The activation, and a hook for its gradient."""
        tensor = output.tensor
        if not self.read_value(forward, output, self._book) or not tensor.requires_grad:
            return
        site = self._book.call("activation_grad", *output.where)
        if site is None:
            return
        self.watch_gradient(forward, site, output.inputs, tensor)

    def watch_gradient(self, forward: Forward, site: int, inputs: Any, tensor: Tensor) -> None:
        """A hook for the gradient of a tensor that a module has made of these inputs."""
        self._watch(tensor, forward, site)
        if tensor._is_view() and tensor._base is not None:
            base = own_base(tensor, tuple(floating_tensors(inputs)))
            if base is not None and site not in self._hidden:
                # Changed in place later, a view's own hook never fires; its base's does.
                self.hook(base, self._on_base_gradient, forward, site)
            if self._book.grew:
                forward.views[site] = View(tensor.grad_fn, tensor._base.grad_fn, base is not None)

    def read_value(self, forward: Forward, output: Output, book: SiteBook) -> bool:
        """The activation alone, under the sites of any book; False where it cannot be read."""
        reason = why_unreadable(output.tensor)
        if reason is not None:
            name = call_name(output.name, output.call, output.index)
            self._unobserved.add(name, f"its output is {reason}")
            return False
        site = book.call("activation", *output.where)
        if site is not None and (row := forward.arena.observe(output.tensor)) is not None:
            forward.activations.add(site, row)
            bad = forward.arena.nonfinite_here(row)
            if bad is not False:
                self.look_at_inputs(forward, site, output, certain=bad is True)
        if forward.units is not None:
            self._read_units(forward, site, output)
        return True

    def _read_units(self, forward: Forward, site: int | None, output: Output) -> None:
        """Unit moments need some memory, of which the training may have left none: then it goes on without them."""
        try:
            self._units.read(forward, site, output)
        except torch.OutOfMemoryError:
            name = call_name(output.name, output.call, output.index)
            self._unobserved.add(name, "no memory was left for its unit moments; the others are recorded")

    def look_at_inputs(self, forward: Forward, site: int, output: Output, *, certain: bool) -> None:
        """Of a call whose output is not finite: was what it was given, and what it has?

        On a device it is not certain that the output is not finite. There everything is read only where each step is
        watched, and otherwise only what costs nothing: that an earlier site has the input.
        """
        rows, unknown = list[int](), list[Tensor]()
        if not self._book.has_all("weight"):
            unknown += output.module.parameters(recurse=False)
        for tensor in output.inputs:
            before_it = forward.source(tensor) if tensor is output.tensor else forward.knows(tensor)
            if not before_it or not self._book.has_all("activation"):
                unknown.append(tensor)
        if unknown and not certain and not forward.step.watched:
            return
        for tensor in unknown:
            if why_unreadable(tensor) is None and tensor.is_floating_point():
                row = forward.arena.observe(tensor)
                rows += [] if row is None else [row]
        forward.input_rows.setdefault(site, rows)

    def read_again(self, call: Call, output: Output) -> None:
        """Only a hook for the gradient: a checkpointed segment runs a second time, now with a graph."""
        tensor = output.tensor
        site = self._book.call("activation_grad", *output.where)
        if site is None:
            return
        self._watch(tensor, call.forward, site)
        if tensor._is_view():
            self._repeated_views.append((call.forward, site))
            # Here no graph tells whether the module uses the base itself: of these it is known.
            base = own_base(tensor, output.inputs) if isinstance(output.module, LINEAR_LIKE) else None
            if base is not None:
                self.hook(base, self._on_base_gradient, call.forward, site)

    def read_graph(self, forward: Forward, nodes: list[Any]) -> None:
        """What the graph below the outputs' nodes tells: following activations, and views that were changed."""
        if self._book.grew:
            consumers = Consumers(nodes)
            found = following_activations(consumers, forward.layer_nodes, forward.activation_nodes, forward.fed_nodes)
            self._book.set_following(found | forward.followed)
            self._book.grew = False
            for site, view in forward.views.items():
                if view.node in consumers or not consumers.changed_in_place(view.base):
                    continue  # used as it was, or not at all
                # The base's gradient is the view's where all of it is the view, and nothing else uses it.
                if not view.whole or len(consumers.of(view.base)) > 1:
                    self._hidden.add(site)
                    name = self._book.sites[site].name
                    self._unobserved.add(name, "a view that was changed in place later, which hides its gradient")
        forward.forget_graph()

    # Backward

    def _gradient_arrived(self, forward: Forward, site: int, gradient: Tensor | None) -> None:
        """The short way where nothing is unusual, else the long one."""
        if (
            type(gradient) is not Tensor
            or site in forward.gradients
            or forward.step.done
            or self._listener.detached
            or torch.is_grad_enabled()
            or torch._C._len_torch_dispatch_stack()
            or torch._C._len_torch_function_stack()
            or _guard.only_one_listens()
        ):
            guarded_call(self._listener, partial(self._on_gradient, forward, site, gradient))
            return
        try:
            if forward is not self._marked or self._marked_in != torch._C._current_graph_task_id():
                self._reached(forward)
                self._marked, self._marked_in = forward, torch._C._current_graph_task_id()
            row = forward.arena.observe_as_it_lies(gradient) if self._plain(forward) else None
            if row is None:
                self._on_gradient(forward, site, gradient)
            else:
                forward.gradients[site] = row
        except Exception as error:
            stop(self._listener, error)

    def _plain(self, forward: Forward) -> bool:
        """Whether histograms, if any, are of the entries as they are."""
        return not forward.arena.histograms or self._unit(forward) is None

    def _on_gradient(self, forward: Forward, site: int, gradient: Tensor | None) -> None:
        if forward.step.done or gradient is None:  # None: of a module's outputs this one was not used
            return
        self._reached(forward)
        again = site in forward.gradients
        if again and site not in forward.provisional:
            name = self._book.sites[site].name
            self._unobserved.add(name, "several backward passes reached it: the first is recorded")
            return
        if (again and torch.is_grad_enabled()) or why_unreadable(gradient) is not None:
            return
        row = forward.arena.observe(gradient, unit=self._unit(forward))
        if row is None:
            return
        if again:  # a gradient penalty's pass came first; this is the one that leaves gradients
            del forward.gradients[site]
            forward.provisional.discard(site)
        elif torch.is_grad_enabled():
            forward.provisional.add(site)
        forward.gradients[site] = row

    def _unit(self, forward: Forward) -> Tensor | float | None:
        """What a gradient is to be divided by."""
        scale = forward.step.scale
        if self._averaged_over == 1:
            return scale
        return self._averaged_over if scale is None else scale * self._averaged_over

    def _on_base_gradient(self, forward: Forward, site: int, gradient: Tensor | None) -> None:
        if site not in forward.gradients and site not in self._hidden:
            self._on_gradient(forward, site, gradient)


def _guarded(listener: Listener, function: Callable[..., None], *args: Any) -> None:
    guarded_call(listener, partial(function, *args))
