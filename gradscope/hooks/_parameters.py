"""What is read of the parameters: their values, what backward leaves on them, what the optimizer adds."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from gradscope.hooks._sites import SiteBook, is_lazy
from gradscope.hooks._step import Forward, Step


class Parameters:
    """Reads the parameters of a model into the rows of a step."""

    def __init__(self, model: nn.Module, book: SiteBook, *, gradients_at_step: bool) -> None:
        self._model = model
        self._book = book
        self._gradients_at_step = gradients_at_step

    def _named_parameters(self) -> Iterator[tuple[str, nn.Module, Tensor]]:
        for name, parameter in self._model.named_parameters():
            if not is_lazy(parameter):
                yield name, self._model.get_submodule(name.rpartition(".")[0]), parameter

    def read_weights(self, step: Step) -> None:
        """The parameters as the forward used them, and a copy of what an optimizer may change."""
        if step.weights_read:
            return
        step.weights_read = True
        for name, module, parameter in self._named_parameters():
            site = self._book.parameter("weight", name, module, parameter)
            if site is not None and (rows := step.arena.observe(parameter)) is not None:
                step.weights.append((site, rows))
        if not self._gradients_at_step:
            self.keep_before(step)

    def keep_before(self, step: Step) -> None:
        """Copy the trainable parameters, so that the update is known when the optimizer has changed them."""
        if step.before:
            return
        for name, module, parameter in self._named_parameters():
            if parameter.requires_grad:
                site = self._book.parameter("update", name, module, parameter)
                if site is not None:
                    step.before.append((site, parameter, parameter.detach().clone()))

    def read_gradients(self, step: Step) -> None:
        """The parameters' gradients as they are now."""
        if step.forwards:
            for name, _, parameter in self._named_parameters():
                self.read_gradient(step.forwards[-1], name, parameter)

    def read_gradient(self, forward: Forward, name: str, parameter: Tensor) -> None:
        """One parameter's gradient as it is now; what was read of it before in this forward is replaced."""
        if parameter.grad is None:
            return
        module = self._model.get_submodule(name.rpartition(".")[0])
        site = self._book.parameter("weight_grad", name, module, parameter)
        if site is not None and (rows := forward.step.arena.observe(parameter.grad)) is not None:
            forward.weight_grads[site] = rows

    def read_updates(self, step: Step) -> None:
        """What the optimizer has added to each parameter since `keep_before`."""
        for site, parameter, before in step.before:
            if parameter.shape == before.shape and (rows := step.arena.observe(parameter, before)) is not None:
                step.updates.append((site, rows))
        step.before = []
