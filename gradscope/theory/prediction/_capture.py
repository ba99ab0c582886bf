"""A model's tensor program: every operation of one forward pass, and what each module returned.

ATen operations are seen by a dispatch mode. Some composites say more than what they are made of (attention, recurrent
layers): a function mode stops at them. Nothing is traced: the model runs as it is, on whatever device it is, also meta.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

COMPOSITES: dict[Callable[..., Any], str] = {
    torch.nn.functional.scaled_dot_product_attention: "scaled_dot_product_attention",
    torch._VF.lstm: "lstm",
    torch._VF.gru: "gru",
    torch._VF.rnn_tanh: "rnn_tanh",
    torch._VF.rnn_relu: "rnn_relu",
    torch.nn.functional.rms_norm: "rms_norm",
}
"""What is one operation here, though torch makes it of several."""


@dataclass(frozen=True)
class Operation:
    """One operation: its name, its arguments, and the numbers of the values it makes.

    Attributes:
        name: `aten.relu`, without an overload, or that of a composite; in place as its other form.
        args, kwargs: as they were given, each tensor as a `Ref`.
        outputs: numbers of the values.
        shapes: of them.
        module: qualified name of the innermost module that was running.
        call: how often that had been called before.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    module: str


@dataclass(frozen=True)
class Ref:
    """A tensor within the arguments of an operation: the number of its value."""

    value: int


@dataclass(frozen=True)
class Returned:
    """What a call of a module returned: one floating tensor of it.

    Attributes:
        module: qualified name, empty for the root.
        type: of its class.
        call: how often it had been called before.
        index: among the floating tensors of its output.
        value: its number.
        leaf: the module has no children.
    """

    module: str
    type: str
    call: int
    index: int
    value: int
    leaf: bool
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class Program:
    """What a forward pass does.

    Attributes:
        operations: in order.
        returned: what the modules returned, in the order in which they returned it.
        inputs: values of the model's floating and integer inputs, in order.
        constants: tensors that the pass found ready: parameters, buffers, what it made of nothing; by value.
        names: of those that are parameters.
        outputs: values of the model's floating outputs.
        tensors: all values.
    """

    operations: list[Operation] = field(default_factory=list)
    returned: list[Returned] = field(default_factory=list)
    inputs: list[tuple[int, Tensor]] = field(default_factory=list)
    constants: dict[int, Tensor] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    outputs: list[int] = field(default_factory=list)
    tensors: dict[int, Tensor] = field(default_factory=dict)


def capture(model: nn.Module, run: Callable[[], Any], inputs: list[Tensor]) -> Program:
    """The program of `run()`, which calls the model.

    Args:
        model: whose modules are told apart.
        run: one forward pass.
        inputs: the tensors that it gives the model.
    """
    recorder = _Recorder(model)
    for tensor in inputs:
        recorder.program.inputs.append((recorder.number(tensor), tensor))
    with recorder.hooks(model), _Functions(recorder), _Operations(recorder):
        out = run()
    recorder.program.outputs = [recorder.number(t) for t in tensors(out) if t.is_floating_point()]
    return recorder.program


class _Recorder:
    def __init__(self, model: nn.Module) -> None:
        self.program = Program()
        self.paused = 0
        self._numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []
        """So that no id is given twice."""
        self._next = 0
        self._parameters = {id(p): name for name, p in model.named_parameters(remove_duplicate=True)}
        self._by_storage: dict[int, list[Tensor]] = {}
        self._stack: list[str] = []
        self._calls: dict[str, int] = {}
        self._known_outputs: set[int] = set()

    def number(self, tensor: Tensor) -> int:
        """Of its value as it is now; a tensor that no operation has made is a constant."""
        found = self._numbers.get(id(tensor))
        if found is None:
            found = self._give(tensor)
            self.program.constants[found] = tensor
            if id(tensor) in self._parameters:
                self.program.names[found] = self._parameters[id(tensor)]
        return found

    def _give(self, tensor: Tensor) -> int:
        if id(tensor) not in self._numbers:
            self._kept.append(tensor)
            self._by_storage.setdefault(_storage(tensor), []).append(tensor)
        self._numbers[id(tensor)] = self._next
        self.program.tensors[self._next] = tensor
        self._next += 1
        return self._next - 1

    def record(self, name: str, args: Any, kwargs: Any, out: Any, changed: Tensor | None) -> None:
        """One operation; `changed` is the argument that it has changed in place."""
        given = self._refs(args), self._refs(kwargs)
        made = list(tensors(out))
        outputs = tuple(self._give(t) for t in made)
        shapes = tuple(tuple(t.shape) for t in made)
        module = self._stack[-1] if self._stack else ""
        self.program.operations.append(Operation(name, given[0], given[1], outputs, shapes, module))
        if changed is not None:
            self._change_others(changed, module)

    def _change_others(self, changed: Tensor, module: str) -> None:
        """Views of what was changed in place have changed too."""
        source = Ref(self._numbers[id(changed)])
        for other in self._by_storage.get(_storage(changed), []):
            if other is not changed and other.numel() == changed.numel():
                given = self._give(other)
                shape = tuple(other.shape)
                self.program.operations.append(
                    Operation("aten.view", (source, list(shape)), {}, (given,), (shape,), module)
                )

    def _refs(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return Ref(self.number(value))
        if isinstance(value, Mapping):
            return {key: self._refs(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._refs(item) for item in value)
        return value

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(name)))
            handles.append(module.register_forward_hook(self._leaving(name), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append(name)

        return enter

    def _leaving(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, out: Any) -> None:
            if self._stack and self._stack[-1] == name:
                self._stack.pop()
            found = [t for t in tensors(out) if t.is_floating_point() and t.dim() > 0]
            leaf = next(module.children(), None) is None
            own = [(i, t) for i, t in enumerate(found) if leaf or self.number(t) not in self._known_outputs]
            if not own:
                return
            call = self._calls.get(name, 0)
            self._calls[name] = call + 1
            for i, t in own:
                value = self.number(t)
                self._known_outputs.add(value)
                self.program.returned.append(
                    Returned(name, type(module).__name__, call, i, value, leaf, tuple(t.shape), t.dtype)
                )

        return leave


class _Functions(TorchFunctionMode):
    """Stops at composites."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = COMPOSITES.get(func) if _hashable(func) else None
        if name is None or self._recorder.paused:
            return func(*args, **kwargs)
        self._recorder.paused += 1
        try:
            out = func(*args, **kwargs)
        finally:
            self._recorder.paused -= 1
        self._recorder.record(name, args, kwargs, out, None)
        return out


class _Operations(TorchDispatchMode):
    """Sees every ATen operation."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self._recorder.paused:
            name = func.overloadpacket._qualified_op_name.replace("::", ".")
            mutated = _mutated(func, args, kwargs)
            if mutated is not None:
                name = name.rstrip("_") if name.endswith("_") and not name.endswith("__") else name
            self._recorder.record(name, args, kwargs, out, mutated)
        return out


def _mutated(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first argument that the operation changes."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name) if argument.kwarg_only or i >= len(args) else args[i]
            if isinstance(value, Tensor):
                return value
    return None


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else id(tensor)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors within a value, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "to_tuple"):
        yield from tensors(value.to_tuple())
