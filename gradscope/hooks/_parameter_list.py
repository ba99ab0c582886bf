"""The parameters of a model, each once, with the sites of what is observed of them."""

from __future__ import annotations

from itertools import chain
from operator import is_, methodcaller
from typing import Any

from torch import Tensor, nn

from gradscope.hooks._distributed import parameters_at_rest, shards_parameters
from gradscope.hooks._sites import SiteBook, is_lazy, unwrapped_name
from gradscope.hooks._tensors import why_unreadable
from gradscope.hooks._unobserved import Unobserved
from gradscope.recording import Signal


class Watched:
    """One parameter: its name, the module that owns it, and its sites once they are known."""

    __slots__ = ("_sites", "_trainable", "name", "owner", "parameter")

    def __init__(self, name: str, owner: nn.Module, parameter: Tensor) -> None:
        self.name = name
        self.owner = owner
        self.parameter = parameter
        self._trainable = parameter.requires_grad
        self._sites: dict[Signal, int | None] = {}

    def site(self, signal: Signal, book: SiteBook, unobserved: Unobserved) -> int | None:
        """The site of one signal of it, None where that is not observed, or cannot be."""
        trainable = self.parameter.requires_grad
        if signal in self._sites and trainable == self._trainable:
            return self._sites[signal]
        if trainable != self._trainable:
            self._sites, self._trainable = {}, trainable
        reason = why_unreadable(self.parameter)
        if reason is None and not self.parameter.is_floating_point():
            reason = f"of dtype {str(self.parameter.dtype).removeprefix('torch.')}"
        if reason is not None:
            unobserved.add(self.name, reason)
            return None
        self._sites[signal] = book.parameter(signal, self.name, self.owner, self.parameter)
        return self._sites[signal]


class ParameterList:
    """The parameters as they are now. To walk a model costs as much as to reduce it: it is done when it has changed.

    Attributes:
        version: another number whenever modules or parameters have come or gone, or training them began or ended.
        computed: some are results of operations, which stand there for one call of the model (`functional_call`).
    """

    def __init__(self, model: nn.Module) -> None:
        self.version = 0
        self.computed = False
        self._model = model
        self._watched: list[Watched] = []
        self._by_name: dict[str, Watched] = {}
        self._tables: list[dict[str, Any]] | None = None
        """Each module's children and parameters."""
        self._held = _content([])
        self._trainable: list[bool] = []
        self._time: object = None

    def at(self, time: object) -> list[Watched]:
        """All of them: the same list as long as nothing has changed, which is looked for once at each time."""
        if self._time != time:
            self._time = time
            self._look()
        return self._watched

    def now(self) -> list[Watched]:
        """All of them, looked for now."""
        self._time = None
        self._look()
        return self._watched

    def forget(self) -> None:
        """Keep no parameter alive until the next look."""
        self._time, self._tables, self._watched, self._by_name, self._trainable = None, None, [], {}, []
        self._held = _content([])

    def named(self, name: str) -> Watched | None:
        """That of this name, as of the latest look."""
        return self._by_name.get(name)

    def _look(self) -> None:
        if self._tables is None or not _alike(_content(self._tables), self._held):
            self._walk()
        trainable = [watched.parameter.requires_grad for watched in self._watched]
        if trainable != self._trainable:
            self._trainable = trainable
            self.version += 1

    def _walk(self) -> None:
        known = {(id(watched.parameter), watched.name): watched for watched in self._watched}
        self._watched, lazy = [], False
        for name, owner, parameter in parameters_at_rest(self._model):
            if is_lazy(parameter):
                lazy = True
                continue
            called = unwrapped_name(name)
            found = known.get((id(parameter), called))
            same = found is not None and found.parameter is parameter and found.owner is owner
            self._watched.append(found if same and found is not None else Watched(called, owner, parameter))
        self._by_name = {watched.name: watched for watched in self._watched}
        self.computed = not all(watched.parameter.is_leaf for watched in self._watched)
        self.version += 1
        if lazy or shards_parameters(self._model):  # what is a parameter may change without a trace
            self._tables = None
        else:
            self._tables = [t for m in self._model.modules() for t in (m._modules, m._parameters)]
            self._held = _content(self._tables)


_Content = tuple[list[int], list[str], list[Any]]


def _content(tables: list[dict[str, Any]]) -> _Content:
    """How many entries each table has; the names and the entries of all tables. (A ScriptModule's are no dicts.)"""
    names, entries = map(methodcaller("keys"), tables), map(methodcaller("values"), tables)
    return list(map(len, tables)), list(chain.from_iterable(names)), list(chain.from_iterable(entries))


def _alike(now: _Content, before: _Content) -> bool:
    return now[:2] == before[:2] and all(map(is_, now[2], before[2]))
