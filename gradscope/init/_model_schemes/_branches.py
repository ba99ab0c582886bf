"""The residual branches of a model: x + f(x), found in the program of one forward pass.

A sum is residual where both summands come from one value and one of them has come by a shorter way: without weights, or
with a single one (a projection of the shortcut) where the other has several.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradscope.init._trace import _eager
from gradscope.init._untouched import run, untouched
from gradscope.theory.prediction._capture import Operation, Program, Ref, capture, tensors

_ATTENTION = "scaled_dot_product_attention"
_SOFTMAX = ("aten._softmax", "aten._safe_softmax")
_PRODUCTS = ("aten.bmm", "aten.matmul", "aten.baddbmm", "aten.mul")
_NORMS = (
    *("aten.native_batch_norm", "aten._native_batch_norm_legit", "aten.cudnn_batch_norm", "rms_norm"),
    *("aten._batch_norm_with_update", "aten.native_layer_norm", "aten.native_group_norm", "aten._fused_rms_norm"),
)


@dataclass(frozen=True)
class Branch:
    """f of one residual sum.

    Attributes:
        weights: names of its parameters of two and more dimensions, in the order in which they are used.
        scores: those of them that only decide how much an attention looks at what: queries and keys.
        last: name of the parameter used last: the factors of a norm, a factor, or the last weight.
        skip: number of the value that f is added to.
    """

    weights: tuple[str, ...]
    scores: frozenset[str]
    last: str
    skip: int

    @property
    def layers(self) -> tuple[str, ...]:
        """The weights that the signal itself passes, in order."""
        return tuple(name for name in self.weights if name not in self.scores)


@dataclass(frozen=True, eq=False)
class Branches:
    """What the residual sums of a model add.

    Attributes:
        branches: in the order of execution.
        output: name of the last weight of the model, where no branch has it.
        program: in which they were found.
    """

    branches: tuple[Branch, ...]
    output: str | None
    program: Program


def weight_path(name: str) -> str:
    """The name of the weight that a parametrization computes from this parameter; of any other its own.

    >>> weight_path("layer.parametrizations.weight.original0"), weight_path("layer.bias")
    ('layer.weight', 'layer.bias')
    """
    owner, parametrized, rest = name.partition("parametrizations.")
    return f"{owner}{rest.partition('.')[0]}" if parametrized else name


def branches(model: nn.Module, inputs: Any) -> Branches:
    """The residual branches of a model, which runs once and is as before afterwards."""
    with untouched(model), _eager(model), torch.enable_grad():
        program = capture(model, lambda: run(model, inputs), list(tensors(inputs)))
    ways = _Ways(program)
    found = [branch for operation in program.operations if (branch := ways.branch(operation)) is not None]
    within = {name for branch in found for name in branch.weights}
    last = [name for i in range(len(program.operations)) for name in ways.weights_of(i)][-1:]
    return Branches(tuple(found), last[0] if last and last[0] not in within else None, program)


class _Ways:
    """From each value back: by which operations it has come, as the bits of one number."""

    def __init__(self, program: Program) -> None:
        self._operations = program.operations
        names = {value: weight_path(name) for value, name in program.names.items()}
        self._sizes = {name: tuple(program.tensors[value].shape) for value, name in names.items()}
        self._by: dict[int, int] = {}
        """Value → its operations and inputs; only of values that depend on an input."""
        self._parameters: dict[int, str] = names
        """Value → the parameter that it is, or is a part of."""
        self._used: list[tuple[str, ...]] = []
        """Parameters of each operation."""
        self._scores: int = 0
        """Operations that only lead to the scores of an attention."""
        for i, (value, _) in enumerate(program.inputs):
            self._by[value] = 1 << (len(program.operations) + i)
        for i, operation in enumerate(program.operations):
            self._follow(i, operation)

    def _follow(self, i: int, operation: Operation) -> None:
        given = list(_refs((operation.args, operation.kwargs)))
        names = tuple(self._parameters[value] for value in given if value in self._parameters)
        signals = [value for value in given if value in self._by]
        if signals:
            self._used.append(names)
            ways = 1 << i
            for value in signals:
                ways |= self._by[value]
            self._by.update(dict.fromkeys(operation.outputs, ways))
            self._note_scores(operation, signals)
            return
        self._used.append(names if "embedding" in operation.name else ())
        if names:
            self._parameters.update(dict.fromkeys(operation.outputs, names[0]))

    def _note_scores(self, operation: Operation, signals: list[int]) -> None:
        if operation.name == _ATTENTION and len(signals) >= 3:
            query, key, value = signals[:3]
            self._scores |= (self._by[query] | self._by[key]) & ~self._by[value]
        elif operation.name in _PRODUCTS and len(signals) == 2:
            for one, other in (signals, signals[::-1]):
                if self._has_softmax(self._by[one] & ~self._by[other]):
                    self._scores |= self._by[one] & ~self._by[other]

    def _has_softmax(self, ways: int) -> bool:
        return any(self._operations[i].name in _SOFTMAX for i in _bits(ways) if i < len(self._operations))

    def branch(self, operation: Operation) -> Branch | None:
        """The branch that an operation adds; None where it is no residual sum."""
        summands = [ref.value for ref in operation.args[:2] if isinstance(ref, Ref) and ref.value in self._by]
        if operation.name != "aten.add" or len(summands) < 2:
            return None
        one, other = (self._by[value] for value in summands)
        if not one & other:
            return None
        ours = [self._weights(one & ~other), self._weights(other & ~one)]
        far, near = (0, 1) if len(ours[0]) > len(ours[1]) else (1, 0)
        if not ours[far] or len(ours[near]) > 1 or len(ours[near]) == len(ours[far]):
            return None
        apart = (one & ~other) if far == 0 else (other & ~one)
        scores = frozenset(self._weights(apart & self._scores)) - set(self._weights(apart & ~self._scores))
        return Branch(ours[far], scores, self._last(apart), summands[near])

    def weights_of(self, i: int) -> tuple[str, ...]:
        """Parameters of two and more dimensions that an operation uses."""
        return tuple(name for name in self._used[i] if len(self._sizes[name]) > 1)

    def _weights(self, ways: int) -> tuple[str, ...]:
        here = (i for i in _bits(ways) if i < len(self._operations))
        return tuple(dict.fromkeys(name for i in here for name in self.weights_of(i)))

    def _last(self, ways: int) -> str:
        """A norm's factors, a factor by itself, or a weight, without the biases beside them."""
        for i in sorted((i for i in _bits(ways) if i < len(self._operations)), reverse=True):
            names = self._used[i]
            if not names:
                continue
            if self._operations[i].name in (*_NORMS, "aten.mul"):
                return names[0]
            if weights := self.weights_of(i):
                return weights[-1]
        raise AssertionError("a branch has a weight")


def _bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def _refs(value: Any) -> Iterator[int]:
    if isinstance(value, Ref):
        yield value.value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _refs(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _refs(item)
