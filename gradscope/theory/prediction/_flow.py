"""A program's values, one after another forward, and the gradients of its roots backward."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradscope.theory.prediction._alike import Alike
from gradscope.theory.prediction._capture import Operation, Program, Ref
from gradscope.theory.prediction._constant import Constant, Indices, Known, Moments
from gradscope.theory.prediction._grid import mean, quantiles
from gradscope.theory.prediction._registry import RULES, NoRule
from gradscope.theory.prediction._slopes import between_places, slopes_of
from gradscope.theory.prediction._value import Atom, Dims, Label, Root, Value, regroup

_LARGEST = 1 << 24
"""Entries of a constant that is worked out."""

_PART_NAMES = """t view _unsafe_view reshape transpose permute slice select unbind split split_with_sizes chunk
unsqueeze squeeze expand detach alias clone _to_copy narrow"""
_PARTS = frozenset("aten." + name for name in _PART_NAMES.split())
"""What makes of a parameter a part of it, or itself in another form."""


@dataclass(eq=False)
class Flow:
    """The state of one prediction.

    Attributes:
        program: what is predicted.
        known: the values, by number.
        assumed: operations that were passed over, each with what was assumed, and how often.
        covered: how many operations had a rule.
        weight_grads: mean squares of the gradients of parameters, by name.
    """

    program: Program
    parameters: Mapping[str, Moments]
    tensors: Mapping[int, Tensor]
    known: dict[int, Known] = field(default_factory=dict)
    assumed: Counter[str] = field(default_factory=Counter)
    covered: int = 0
    weight_grads: dict[str, float] = field(default_factory=dict)
    _later: list[Callable[[], None]] = field(default_factory=list)
    _watched: dict[int, list[Value]] = field(default_factory=dict)

    # Forward

    def run(self) -> None:
        """All values, in the order of the program."""
        watched = {one.value for one in self.program.returned}
        for value, tensor in self.program.inputs:
            self.known[value] = self._input(tensor)
        for value, tensor in self.program.constants.items():
            if value not in self.known:
                self.known[value] = self._constant(value, tensor)
        for value in list(self.known):
            self._watch(value, watched)
        for operation in self.program.operations:
            made = self._made(operation)
            for value, one in zip(operation.outputs, made, strict=False):
                if one is not None:
                    self.known[value] = one
                    self._watch(value, watched)

    def _watch(self, value: int, watched: set[int]) -> None:
        one = self.known[value]
        if value in watched and isinstance(one, Value) and one.root is not None:
            self._watched.setdefault(id(one.root), []).append(one)

    def _input(self, tensor: Tensor) -> Known:
        dims = input_dims(tuple(tensor.shape), floating=tensor.is_floating_point())
        real = tensor.detach() if tensor.device.type != "meta" else None
        if not tensor.is_floating_point():
            same = Alike.alone(1.0) if real is None else _products((real.unsqueeze(-1) == real.unique()).double(), dims)
            return Indices(dims, same, real)
        if real is None:
            return Value(dims, root := Root.gaussian(Alike.alone(1.0)), root.h)
        entries = real.double().cpu().ravel()
        if entries.numel() > 1 << 18:
            entries = entries[:: entries.numel() // (1 << 18)]
        alike = _products(_units_last(real.double().cpu(), dims), dims)
        root = Root.of(quantiles(entries, torch.ones_like(entries)), alike)
        return Value(dims, root, root.h)

    def _constant(self, value: int, tensor: Tensor) -> Constant:
        name = self.program.names.get(value)
        if name is not None and name in self.parameters:
            return Constant(tuple(tensor.shape), self.parameters[name], None, name)
        if tensor.device.type == "meta":
            return Constant(tuple(tensor.shape), Moments(math.nan, math.nan), None, name)
        return Constant.of(tensor, name)

    def _made(self, operation: Operation) -> Sequence[Known | None]:
        args, kwargs = self._resolve(operation.args), self._resolve(operation.kwargs)
        inputs = [one for one in _all(args, kwargs) if isinstance(one, (Value, Indices))]
        if not inputs and operation.name == "aten.embedding":
            return [self._table(operation, *args[:2])]
        if not inputs:
            return [self._constant_result(operation, i, args, kwargs) for i in range(len(operation.outputs))]
        found = RULES.get(operation.name)
        try:
            if found is None:
                raise NoRule("no rule")
            made = found(self, operation, *args, **kwargs)
            self.covered += 1
        except NoRule as reason:
            self.assumed[f"{operation.name}: {reason}; taken to pass its first argument on as it is"] += 1
            made = self._passed_on(operation, inputs)
        return made if isinstance(made, (list, tuple)) else [made]

    def _passed_on(self, operation: Operation, inputs: Sequence[Known]) -> list[Known | None]:
        first = next((one for one in inputs if isinstance(one, Value)), None)
        if first is None:
            return [None] * len(operation.outputs)
        return [first.with_dims(regroup_or_guess(first.dims, shape)) for shape in operation.shapes]

    def _constant_result(self, operation: Operation, i: int, args: Any, kwargs: Any) -> Constant | None:
        shape = operation.shapes[i]
        first = next((one for one in _all(args, kwargs) if isinstance(one, Constant)), None)
        part = operation.name in _PARTS and first is not None
        name = first.name if first is not None and part else None
        share = min(math.prod(shape) / max(math.prod(first.shape), 1), 1.0) * first.share if first is not None else 1.0
        if first is not None and part and first.tensor is None:  # moments were given, whatever its values are
            return Constant(shape, first.moments, None, name, share)
        if first is not None and first.tensor is None and (times := _factor(operation, args)) is not None:
            return Constant(shape, Moments(first.moments.square * times**2, first.moments.mean * times))
        tensor = self.tensors.get(operation.outputs[i])
        if tensor is not None and tensor.device.type == "meta":
            tensor = self._elsewhere(operation, i, args, kwargs)
        if tensor is not None:
            return Constant.of(tensor, name, share)
        if operation.name in ("aten.cos", "aten.sin"):  # of angles that are not known
            return Constant(shape, Moments(0.5))
        return Constant(shape, Moments(math.nan, math.nan))

    def _elsewhere(self, operation: Operation, i: int, args: Any, kwargs: Any) -> Tensor | None:
        """What an operation on the meta device would have given, where all that it takes is known."""
        if math.prod(operation.shapes[i]) > _LARGEST:
            return None
        function = getattr(torch.ops.aten, operation.name.removeprefix("aten."), None)
        try:
            given = {**_values(kwargs), "device": "cpu"} if "device" in kwargs else _values(kwargs)
            made = None if function is None else function(*_values(args), **given)
        except (RuntimeError, TypeError, KeyError):
            return None
        found = made[i] if isinstance(made, (list, tuple)) else made
        return found if isinstance(found, Tensor) and found.device.type == "cpu" else None

    def _table(self, operation: Operation, table: Constant, indices: Constant) -> Value:
        """Rows of a table that are the same for all inputs, as those for positions are."""
        moments, apart = table.moments, table.moments.mean**2
        if indices.tensor is not None:
            rows = _same_share(indices.tensor)
        else:  # not known: all different where there are enough rows for it, else all the same
            rows = 0.0 if table.shape[0] >= operation.shapes[0][-2] else 1.0
        position = apart + rows * (moments.square - apart)
        root = Root.gaussian(Alike(moments.square, position, moments.square, position), moments.mean)
        used = Alike(1.0, rows, 1.0, rows)
        shape = operation.shapes[0]
        outer: Label = "input"
        labels: list[Label] = [*[outer] * (len(shape) - 2), "position", "unit"]
        dims = tuple(((Atom(label, n),) if n > 1 else ()) for label, n in zip(labels, shape, strict=True))
        made = Value(dims, root, root.h)
        self.later(lambda: self.note(table, made, root.gradient, used, 1.0 / table.shape[0]))
        return made

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.known.get(value.value)
        if isinstance(value, dict):
            return {key: self._resolve(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._resolve(item) for item in value)
        return value

    # Backward

    def later(self, step: Callable[[], None]) -> None:
        """To be done on the way back, after what was made of it."""
        self._later.append(step)

    def back(self) -> None:
        """From the outputs, into which a gradient of independent N(0, 1) entries is put."""
        for value in self.program.outputs:
            one = self.known.get(value)
            if isinstance(one, Value):
                self.give(one, Alike.alone(1.0))
        for step in reversed(self._later):
            step()

    def note(self, weight: Any, value: Value, gradient: Alike, of: Alike | None = None, often: float = 1.0) -> None:
        """The gradient of a parameter: a sum, over inputs and positions, of this gradient times what it was given.

        Args:
            weight: the parameter, or a part of one.
            value: which has the gradient.
            gradient: its mean products.
            of: those of what the parameter was multiplied with; ones by default.
            often: which part of the products there is, where some lie outside of a picture.
        """
        if not isinstance(weight, Constant) or weight.name is None:
            return
        both = gradient if of is None else gradient.times(of)
        b, p = value.count("input"), value.count("position")
        every = both.same + (p - 1) * both.position + (b - 1) * both.input + (b - 1) * (p - 1) * both.both
        self.add_weight_grad(weight, b * p * often * max(every, 0.0))

    def add_weight_grad(self, weight: Any, square: float) -> None:
        """A part of the mean square of a parameter's gradient; of a part of it by its share."""
        if isinstance(weight, Constant) and weight.name is not None:
            self.weight_grads[weight.name] = self.weight_grads.get(weight.name, 0.0) + square * weight.share

    def give(self, value: Value, gradient: Alike, profile: Tensor | None = None) -> None:
        """A gradient of the entries of a value: on to its root, and to what a site looks at on the way.

        Args:
            value: which gets it.
            gradient: its mean products.
            profile: its mean square as a function of the root's z, on the grid; by default the same everywhere.
        """
        root = value.root
        if root is None or gradient.same == 0.0:
            return
        seen = self._watched.get(id(root), [])
        towards = [root.h, *(one.f for one in seen)]
        if not value.f.requires_grad:
            return
        gradient = gradient.within(value.count("position"))
        profile = torch.full_like(root.profile, gradient.same) if profile is None else profile
        slopes: Sequence[Tensor | None] = torch.autograd.grad(
            value.f.sum(), towards, retain_graph=True, allow_unused=True
        )
        for one, slope in zip(seen, slopes[1:], strict=True):
            if slope is not None:
                one.gradient += mean(profile * slope * slope) * between_places(gradient, value, one)
        if slopes[0] is None:
            return
        here = profile * slopes[0].square()
        passed = gradient.times(slopes_of(value, slopes[0], mean(here) / gradient.same))
        root.profile = root.profile + here * (passed.same / max(mean(here), 1e-300))
        root.gradient = root.gradient + passed


def _factor(operation: Operation, args: Any) -> float | None:
    """The number that an operation multiplies its first argument by."""
    if operation.name not in ("aten.mul", "aten.div") or not isinstance(args[1], (int, float)):
        return None
    return float(args[1]) if operation.name == "aten.mul" else 1.0 / args[1]


def _values(value: Any) -> Any:
    """Constants as tensors; KeyError where one is not known."""
    if isinstance(value, Constant):
        if value.tensor is None or value.tensor.device.type == "meta":
            raise KeyError("no values")
        return value.tensor
    if isinstance(value, dict):
        return {key: _values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_values(item) for item in value)
    return value


def _same_share(numbers: Tensor) -> float:
    """How often two numbers of a row are the same."""
    row = numbers.reshape(-1, numbers.shape[-1])[0]
    if row.numel() < 2:
        return 0.0
    counts = torch.unique(row, return_counts=True)[1].double()
    return float((counts * (counts - 1)).sum() / (row.numel() * (row.numel() - 1)))


def input_dims(shape: tuple[int, ...], floating: bool) -> Dims:
    """What the dimensions of an input are taken for: (inputs, units), (inputs, positions, units), pictures."""
    place: Label = "position"
    labels: list[Label]
    if not floating:
        labels = ["input", *[place] * (len(shape) - 1)]
    elif len(shape) <= 1:
        labels = ["unit" for _ in shape]
    elif len(shape) <= 3:
        labels = ["input", *[place] * (len(shape) - 2), "unit"]
    else:
        labels = ["input", "unit", *[place] * (len(shape) - 2)]
    return tuple((Atom(label, size),) for label, size in zip(labels, shape, strict=True))


def _units_last(x: Tensor, dims: Dims) -> Tensor:
    units = [i for i, dim in enumerate(dims) if dim and dim[0].label == "unit"]
    return x.movedim(units, list(range(-len(units), 0))) if units else x.unsqueeze(-1)


def _products(x: Tensor, dims: Dims) -> Alike:
    """Mean products of entries `(inputs, positions…, units)` of one unit; of one-hot tokens how often two are alike."""
    labels = [dim[0].label for dim in dims if dim]
    batch = x.shape[0] if labels and labels[0] == "input" else 1
    places = math.prod(atom.size for dim in dims for atom in dim if atom.label == "position")
    x = x.reshape(batch, places, -1)
    one_hot = not any(label == "unit" for label in labels)
    size = batch * places if one_hot else x.numel()
    same = float(x.square().sum()) / size
    position = float(x.sum(1).square().sum()) / size
    inputs = float(x.sum(0).square().sum()) / size
    both = float(x.sum((0, 1)).square().sum()) / size
    p, b = places, batch
    at_positions = (position - same) / (p - 1) if p > 1 else same
    at_inputs = (inputs - same) / (b - 1) if b > 1 else same
    rest = p * b - p - b + 1
    at_both = (
        (both - same - (p - 1) * at_positions - (b - 1) * at_inputs) / rest if rest else min(at_positions, at_inputs)
    )
    return Alike(same, at_positions, at_inputs, at_both)


def regroup_or_guess(dims: Dims, shape: tuple[int, ...]) -> Dims:
    """The dimensions of a reshaped tensor, by position in the shape where they cannot be followed."""
    return regroup(dims, shape) or input_dims(shape, floating=True)


def _all(args: Any, kwargs: Any) -> list[Any]:
    found: list[Any] = []

    def look(value: Any) -> None:
        if isinstance(value, (Value, Constant, Indices)):
            found.append(value)
        elif isinstance(value, dict):
            for item in value.values():
                look(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                look(item)

    look(args)
    look(kwargs)
    return found
