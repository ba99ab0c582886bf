"""Whether the hooks tell of the whole model: what was never called, what was called around them, what is silent."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from gradscope.hooks._attachment import Attachment
from gradscope.hooks._compiled import left_out, why_silent
from gradscope.hooks._sites import ROOT, SiteBook
from gradscope.hooks._step import Forward
from gradscope.hooks._unobserved import Unobserved
from gradscope.recording import GradScopeWarning
from gradscope.recording._site import NEVER_CALLED

_AROUND = "its parameters are used, but not by calling it, so its hooks never fire"
_IN_ATTENTION = "MultiheadAttention uses its weights without calling it"
_FAST_PATH = "ran in torch's fast path, inside which nothing is observed"

UNCALLED = frozenset({NEVER_CALLED, _AROUND})
"""Reasons that do not hold where another rank has called the module."""


class Coverage:
    """Says what no hook tells of, and takes it back once one does."""

    def __init__(self, model: nn.Module, book: SiteBook, unobserved: Unobserved, attachment: Attachment) -> None:
        self._model = model
        self._book = book
        self._unobserved = unobserved
        self._attachment = attachment
        self._uncalled: set[str] = set()
        self._called: set[str] = set()
        self._fused: set[str] = set()
        """Layers that have computed by their fast path."""
        self._lone_backward: int | None = None
        """The latest backward pass whose forward nothing has told of."""

    def fused(self, name: str) -> None:
        """A layer computes by a path that calls none of its modules."""
        self._fused.add("" if name == ROOT else f"{name}.")

    def after_forward(self, forward: Forward) -> None:
        """The root has returned: which layers have not been called?"""
        if not forward.fired:
            self._say_silent()
        elif self._book.grew:
            self._note_uncalled(forward)

    def after_gradient(self, name: str) -> None:
        """A gradient has reached a parameter of this module: it is used, whether it was called or not."""
        if name in self._uncalled and self._unobserved.reasons.get(name) == NEVER_CALLED:
            self._uncalled.discard(name)
            self._unobserved.drop(name)
            self._unobserved.add(name, _AROUND)

    def backward_alone(self) -> None:
        """A gradient has come though no forward has: of a pass that began before us, but not a second time."""
        task = torch._C._current_graph_task_id()
        if self._lone_backward not in (None, task):
            self._say_silent()
        self._lone_backward = task

    def wrapped(self) -> None:
        """A wrapper that averages over ranks was put around the model after the scope was made."""
        if ROOT not in self._unobserved.reasons:
            self._unobserved.add(ROOT, "trained in a DistributedDataParallel of which the scope does not know")
            _warn(
                "GradScope records this rank alone, and gradients before they are averaged: "
                "give it the DistributedDataParallel, not the model inside"
            )

    def _say_silent(self) -> None:
        """The model has run, and none of its modules has told of it."""
        why = why_silent(self._model)
        if self._unobserved.reasons.get(ROOT) != why and next(self._attachment.parts(), None) is not None:
            self._unobserved.add(ROOT, why)
            _warn(f"GradScope sees nothing inside the model: {why}")

    def _note_uncalled(self, forward: Forward) -> None:
        self._called |= forward.fired
        for name, attention in self._attachment.parts():
            if name in forward.fired:
                if name in self._uncalled:
                    self._uncalled.discard(name)
                    self._unobserved.drop(name)
            elif name not in self._uncalled and not self._ever_called(name):
                self._uncalled.add(name)
                self._unobserved.add(name, self._why(name, attention, forward))

    def _why(self, name: str, attention: str | None, forward: Forward) -> str:
        """What is said of a module that was not called in this pass."""
        if any(name.startswith(layer) for layer in self._fused):
            return _FAST_PATH
        if attention in forward.fired:
            return _IN_ATTENTION
        return left_out(self._model).get(name, NEVER_CALLED)

    def _ever_called(self, name: str) -> bool:
        return name in self._called or self._book.knows("activation", name) or self._book.knows("activation_grad", name)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, GradScopeWarning, stacklevel=2)
