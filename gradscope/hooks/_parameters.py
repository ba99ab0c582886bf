"""What is read of the parameters: their values, what backward leaves on them, what the optimizer adds."""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterator, Mapping

import torch
from torch import Tensor, nn

from gradscope.hooks._clipping import sample
from gradscope.hooks._distributed import keeps_gradients_back, parameters_at_rest, why_partial
from gradscope.hooks._ranks import Ranks
from gradscope.hooks._sites import ROOT, SiteBook, is_lazy, unwrapped_name
from gradscope.hooks._step import Forward, Step, version
from gradscope.hooks._tensors import is_distributed, why_unreadable
from gradscope.hooks._unobserved import Unobserved
from gradscope.recording import GradScopeWarning


class Parameters:
    """Reads the parameters of a model into the rows of a step.

    Args:
        model: whose parameters.
        book: has their sites.
        unobserved: told which cannot be read.
        at_step: an optimizer was given: gradients are read as it finds them, updates as it leaves them.
        ranks: where several hold the same parameter, one of them reports it.
    """

    def __init__(
        self, model: nn.Module, book: SiteBook, unobserved: Unobserved, *, at_step: bool, ranks: Ranks | None = None
    ) -> None:
        self.at_step = at_step
        self._model = model
        self._book = book
        self._unobserved = unobserved
        self._ranks = ranks
        self._in_parts = any(is_distributed(parameter) for _, _, parameter in parameters_at_rest(model))

    def named(self) -> Iterator[tuple[str, nn.Module, Tensor]]:
        """Name, owner and parameter, each parameter once."""
        for name, owner, parameter in parameters_at_rest(self._model):
            if not is_lazy(parameter):
                yield unwrapped_name(name), owner, parameter

    def versions(self) -> list[tuple[Tensor, int]]:
        """The parameters, and how often each was changed in place."""
        return [(parameter, version(parameter)) for _, _, parameter in self.named()]

    def gradients_gone(self) -> bool:
        """Whether no parameter has a gradient any more: they were thrown away."""
        return all(parameter.grad is None for _, _, parameter in self.named()) and not keeps_gradients_back(self._model)

    def read_weights(self, step: Step) -> None:
        """The parameters as the forward used them, and a copy of what an optimizer may change."""
        if step.weights_read:
            return
        step.weights_read = True
        for name, module, parameter in self.named():
            if not self._in_parts and is_distributed(parameter):
                self._note_parts()
            site = self._site("weight", name, module, parameter)
            if site is not None and (rows := step.arena.observe(parameter)) is not None:
                rows.own = self._owns(parameter)
                step.weights.append((site, rows))
        if not self.at_step:
            self.keep_before(step)

    def _note_parts(self) -> None:
        """The parameters were spread over ranks after the scope was made."""
        self._in_parts = True
        self._unobserved.add(ROOT, _IN_PARTS)
        warnings.warn(
            "GradScope records this rank alone, and its parts of the parameters: "
            "give it the model after fully_shard or parallelize_module",
            GradScopeWarning,
            stacklevel=2,
        )

    def keep_before(self, step: Step) -> None:
        """Copy the trainable parameters, so that the update is known when the optimizer has changed them."""
        if step.before:
            return
        for name, module, parameter in self.named():
            if parameter.requires_grad and parameter.is_leaf:
                site = self._site("update", name, module, parameter)
                if site is not None:
                    step.before.append((site, parameter, parameter.detach().clone()))

    def read_gradients(self, step: Step, only: Container[int] | None = None) -> None:
        """The parameters' gradients as they are now, of all or of those whose id is given."""
        if step.forwards:
            for name, module, parameter in self.named():
                if only is None or id(parameter) in only:
                    self.read_gradient(step.forwards[-1], name, parameter, module)

    def read_gradient(self, forward: Forward, name: str, parameter: Tensor, module: nn.Module | None = None) -> None:
        """One parameter's gradient as it is now; what was read of it before in this forward is replaced."""
        gradient = parameter.grad
        if gradient is None:
            return
        if (reason := why_unreadable(gradient) or why_partial(gradient)) is not None:
            self._unobserved.add(name, _ITS_GRADIENT + reason)
            return
        if not self._book.knows("weight_grad", name) and module is None:
            module = next(owner for known, owner, _ in self.named() if known == name)
        site = self._site("weight_grad", name, module or self._model, parameter)
        step = forward.step
        unit = None if step.unscaled_weight_grads else step.scale
        if site is not None and (rows := forward.arena.observe(gradient, unit=unit)) is not None:
            rows.own = self._owns(gradient)
            forward.weight_grads[site] = rows

    def sample_before(self, step: Step, name: str, parameter: Tensor) -> None:
        """A few entries of a gradient as the last backward left it, to know a clipping by."""
        if not self._book.records("weight_grad"):
            return
        if (entries := sample(parameter.grad)) is not None:
            step.clip.before[name] = entries
            step.clip.rounding[name] = torch.finfo(entries.dtype).eps
            step.clip.after = {}  # of a backward before this one: a closure runs it inside the optimizer's step

    def sample_after(self, step: Step, only: Container[int]) -> None:
        """The same entries as an optimizer finds them."""
        if not step.clip.before:
            return
        for name, _, parameter in self.named():
            if id(parameter) in only and (entries := sample(parameter.grad)) is not None:
                step.clip.after[name] = entries

    def read_updates(self, step: Step) -> None:
        """What the optimizer has added to each parameter since `keep_before`."""
        for site, parameter, before in step.before:
            if parameter.shape == before.shape and (rows := step.arena.observe(parameter, before)) is not None:
                rows.own = self._owns(parameter)
                step.updates.append((site, rows))
        step.before = []

    def _owns(self, tensor: Tensor) -> bool:
        return self._ranks is None or self._ranks.owns(tensor)

    def _site(self, signal: str, name: str, module: nn.Module, parameter: Tensor) -> int | None:
        reason = why_unreadable(parameter)
        if reason is None and not parameter.is_floating_point():
            reason = f"of dtype {str(parameter.dtype).removeprefix('torch.')}"
        if reason is not None:
            self._unobserved.add(name, reason)
            return None
        return self._book.parameter(signal, name, module, parameter)  # type: ignore[arg-type]


_ITS_GRADIENT = "its gradient is "
_IN_PARTS = "in parts on several ranks, of which the scope does not know"


def some_gradient_unread(unobserved: Mapping[str, str]) -> bool:
    """Whether the total norm of the gradient is not known, by what could not be observed."""
    return any(reason == _IN_PARTS or reason.startswith(_ITS_GRADIENT) for reason in unobserved.values())
