"""Values by tensor, and the tensors in a tree of tuples, lists and dicts."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class TensorMap(Generic[T]):
    """A map from tensors by identity, through weak references: a freed tensor's id may be another's later."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], T]] = {}

    def get(self, tensor: Tensor, default: Any) -> Any:
        """The tensor's value, `default` where it has none."""
        entry = self._entries.get(id(tensor))
        return default if entry is None or entry[0]() is not tensor else entry[1]

    def set(self, tensor: Tensor, value: T) -> None:
        """Remember a value for as long as the tensor lives."""
        self._entries[id(tensor)] = (weakref.ref(tensor), value)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from tensors_in(value)
