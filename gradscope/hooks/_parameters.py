"""What is read of the parameters: their values, what backward leaves on them, what the optimizer adds.

Those that can be read as they lie are read together, by one call; the others one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from gradscope.hooks._batch import readable
from gradscope.hooks._clipping import sample
from gradscope.hooks._distributed import keeps_gradients_back, parameters_at_rest, why_partial
from gradscope.hooks._moments import Arena
from gradscope.hooks._parameter_list import ParameterList, Watched
from gradscope.hooks._ranks import Ranks
from gradscope.hooks._sites import ROOT, SiteBook
from gradscope.hooks._step import Forward, Step, version
from gradscope.hooks._tensors import is_distributed, why_unreadable
from gradscope.hooks._together import Copies, Gradients, Together
from gradscope.hooks._unobserved import Unobserved
from gradscope.recording import GradScopeWarning, Signal


class Before:
    """The trained parameters as they were before the optimizer's step.

    Args:
        alone: update site, parameter and copy, of those that are read one by one.
        copies: of those that are read together.
    """

    def __init__(self, alone: list[tuple[int, Tensor, Tensor]], copies: Copies | None) -> None:
        self.alone = alone
        self.copies = copies

    def changed(self) -> bool:
        """Whether any parameter is no longer what it was."""
        every = self.alone + (self.copies.one_by_one() if self.copies is not None else [])
        return any(not torch.equal(parameter, before) for _, parameter, before in every)

    def forget(self) -> None:
        """Its memory may be used again."""
        if self.copies is not None:
            self.copies.room.taken = False


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
        self._list = ParameterList(model)
        self._split: tuple[list[Watched], Together, list[Watched]] | None = None
        self._in_parts = any(is_distributed(parameter) for _, _, parameter in parameters_at_rest(model))

    def version(self, step: Step) -> int:
        """Another number whenever modules or parameters have come or gone, or training them began or ended."""
        self._list.at(_time(step))
        return self._list.version

    def pass_ended(self) -> None:
        """Weights that were computed for one pass are gone when it has ended."""
        if self._list.computed:
            self._let_go()

    def _parts(self, step: Step, *, values: bool = False) -> tuple[Together, list[Watched]]:
        """The parameters that are read together, and the others; their `values` are about to be read."""
        every = self._list.at(_time(step))
        if self._split is None or self._split[0] is not every or (values and not self._split[1].ready()):
            chosen = [self._ranks is None and readable(w.parameter) for w in every]
            together = Together([w for w, fits in zip(every, chosen, strict=True) if fits], self._site)
            self._split = every, together, [w for w, fits in zip(every, chosen, strict=True) if not fits]
            together.ready()
        return self._split[1:]

    def versions(self) -> list[tuple[Tensor, int]]:
        """The parameters, and how often each was changed in place."""
        return [(w.parameter, version(w.parameter)) for w in self._list.now() if w.parameter.is_leaf]

    def gradients_gone(self) -> bool:
        """Whether no parameter has a gradient any more: they were thrown away."""
        return all(w.parameter.grad is None for w in self._list.now()) and not keeps_gradients_back(self._model)

    def reads_together(self, step: Step, parameter: Tensor) -> bool:
        """Whether it is one of those that are read by one call."""
        return self._parts(step)[0].holds(parameter)

    def rest(self, *, long: bool) -> None:
        """No step is recorded for a while: where it is long, hold no memory for copies, nor a parameter alive."""
        if long:
            self._let_go()

    def _let_go(self) -> None:
        self._list.forget()
        self._split = None

    # Weights

    def read_weights(self, step: Step, *, keep: bool = True) -> None:
        """The parameters as they are, and, to `keep`, a copy of what an optimizer may change."""
        if step.weights_read:
            return
        step.weights_read = True
        together, others = self._parts(step, values=True)
        keep = keep and step.before is None
        alone: list[tuple[int, Tensor, Tensor]] = []
        found: list[tuple[int, Tensor]] = []
        for watched in others:
            if not self._in_parts and is_distributed(watched.parameter):
                self._note_parts()
            site = self._site(watched, "weight")
            if site is not None:
                found.append((site, watched.parameter))
            if keep:
                alone += self._copied(watched)
        for site, row in self._read(step.arena, found):
            step.weights.add(site, row)
        sites, rows, copies = together.read_weights(step.arena, copied=keep)
        step.weights.extend(sites, rows)
        if keep:
            step.before = Before(alone, copies)

    def keep_before(self, step: Step) -> None:
        """Copy the trainable parameters, so that the update is known when the optimizer has changed them."""
        if step.before is None:
            together, others = self._parts(step, values=True)
            alone = [entry for watched in others for entry in self._copied(watched)]
            step.before = Before(alone, together.copies())

    def _copied(self, watched: Watched) -> list[tuple[int, Tensor, Tensor]]:
        parameter = watched.parameter
        if not (parameter.requires_grad and parameter.is_leaf):
            return []
        site = self._site(watched, "update")
        return [] if site is None else [(site, parameter, parameter.detach().clone())]

    # Gradients

    def read_gradients(
        self,
        step: Step,
        only: Container[int] | None = None,
        forward: Forward | None = None,
        sampled: set[int] | None = None,
    ) -> None:
        """The parameters' gradients as they are now, of all or of those whose id is given.

        Where ids are given that are `sampled`, `sample_after` is made of those on the way.
        """
        if not step.forwards or not self._book.records("weight_grad"):
            return
        forward = forward or step.forwards[-1]
        together, others = self._parts(step)
        gradients = together.gradients(only)
        if sampled is not None and only is None and together.within(sampled):
            self._sample_after(step, sampled, gradients)
        elif sampled is not None:
            self.sample_after(step, sampled)
        self._read_some_gradients(forward, [*_only(others, only), *gradients.others])
        if gradients.places:
            scaled = step.scale is not None and not step.unscaled_weight_grads and forward.arena.histograms
            unit = float(step.scale or 1.0) if scaled else 1.0
            sites, rows = together.read_gradients(forward.arena, gradients, unit)
            forward.weight_grads.update(zip(sites, rows, strict=True))

    def read_gradient(self, forward: Forward, name: str, parameter: Tensor) -> None:
        """One parameter's gradient as it is now; what was read of it before in this forward is replaced."""
        watched = self._list.named(name)
        if watched is None or watched.parameter is not parameter:
            watched = Watched(name, self._model, parameter)
        self._read_some_gradients(forward, [watched])

    def _read_some_gradients(self, forward: Forward, every: Iterable[Watched]) -> None:
        found: list[tuple[int, Tensor]] = []
        for watched in every:
            gradient = watched.parameter.grad
            if gradient is None:
                continue
            if (reason := why_unreadable(gradient) or why_partial(gradient)) is not None:
                self._unobserved.add(watched.name, _ITS_GRADIENT + reason)
            elif (site := self._site(watched, "weight_grad")) is not None:
                found.append((site, gradient))
        unit = None if forward.step.unscaled_weight_grads else forward.step.scale
        forward.weight_grads.update(self._read(forward.arena, found, unit=unit))

    def _read(
        self,
        arena: Arena,
        found: Sequence[tuple[int, Tensor]],
        minus: Sequence[Tensor] | None = None,
        unit: Tensor | float | None = None,
    ) -> Iterator[tuple[int, int]]:
        """Sites and rows of some tensors, of those that have a value on this rank."""
        rows = arena.observe_many([tensor for _, tensor in found], minus, unit)
        for (site, tensor), row in zip(found, rows, strict=True):
            if row is not None:
                self._own(arena.others, row, tensor)
                yield site, row

    # A few entries of each gradient, to know a clipping by

    def sample_before(self, step: Step, name: str, parameter: Tensor) -> None:
        """A few entries of a gradient as the last backward left it."""
        if not self._book.records("weight_grad"):
            return
        if (entries := sample(parameter.grad)) is not None:
            step.clip.before[name] = entries
            step.clip.rounding[name] = torch.finfo(entries.dtype).eps
            step.clip.forget_after()  # of a backward before this one: a closure runs it inside the optimizer's step

    def sample_all_before(self, step: Step, only: Container[int] | None = None) -> None:
        """The same of all, or of those whose id is given."""
        if not self._book.records("weight_grad"):
            return
        together, others = self._parts(step)
        gradients = together.gradients(only)
        for watched in [*_only(others, only), *gradients.others]:
            self.sample_before(step, watched.name, watched.parameter)
        if gradients.places:
            clip = step.clip
            clip.together_before = together.some_gradients(clip.together_before, gradients)
            clip.together_rounding = together.rounding
            clip.forget_after()

    def sample_after(self, step: Step, only: Container[int]) -> None:
        """The same entries as an optimizer finds them."""
        if step.clip.begun:
            self._sample_after(step, only, self._parts(step)[0].gradients(only))

    def _sample_after(self, step: Step, only: Container[int], gradients: Gradients) -> None:
        if not step.clip.begun:
            return
        clip, (together, others) = step.clip, self._parts(step)
        one_by_one = {w.name: w for w in [*_only(others, only), *gradients.others]}
        for name in clip.before:  # it may have been sampled alone before, and could be read with others now
            watched = self._list.named(name)
            if watched is not None and id(watched.parameter) in only:
                one_by_one[name] = watched
        for name, watched in one_by_one.items():
            if (entries := sample(watched.parameter.grad)) is not None:
                clip.after[name] = entries
        sampled = clip.together_before
        if sampled is not None and sampled.of is not together:  # they were put together anew since
            together, gradients = sampled.of, sampled.of.gradients(only)
        if gradients.places:
            clip.together_after = together.some_gradients(clip.together_after, gradients)

    # Updates

    def read_updates(self, step: Step) -> None:
        """What the optimizer has added to each parameter since it was copied."""
        before, step.before = step.before, None
        if before is None:
            return
        one_by_one, copies = before.alone, before.copies
        if copies is not None and not copies.of.ready():
            one_by_one, copies = one_by_one + copies.one_by_one(), None
        fitting = [(site, now, value) for site, now, value in one_by_one if now.shape == value.shape]
        found = [(site, now) for site, now, _ in fitting]
        for site, row in self._read(step.arena, found, [value for _, _, value in fitting]):
            step.updates.add(site, row)
        if copies is not None:
            step.updates.extend(copies.sites, copies.of.read_updates(step.arena, copies))
        before.forget()

    def _own(self, others: set[int], row: int, tensor: Tensor) -> None:
        """Note whether it is this rank that reports a row."""
        if self._ranks is not None and self._ranks.owns(tensor):
            others.discard(row)
        elif self._ranks is not None:
            others.add(row)

    def _site(self, watched: Watched, signal: Signal) -> int | None:
        return watched.site(signal, self._book, self._unobserved)

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


def _only(watched: Iterable[Watched], ids: Container[int] | None) -> list[Watched]:
    return [w for w in watched if ids is None or id(w.parameter) in ids]


def _time(step: Step) -> tuple[int, bool]:
    """The parameters are looked for twice in a step: once a backward has begun, the pass's own are no longer there."""
    return step.serial, step.backward


_ITS_GRADIENT = "its gradient is "
_IN_PARTS = "in parts on several ranks, of which the scope does not know"


def some_gradient_unread(unobserved: Mapping[str, str]) -> bool:
    """Whether the total norm of the gradient is not known, by what could not be observed."""
    return any(reason == _IN_PARTS or reason.startswith(_ITS_GRADIENT) for reason in unobserved.values())
