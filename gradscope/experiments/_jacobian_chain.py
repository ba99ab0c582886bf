"""A plain chain within a real model: linear layers one after the other, and what stands between each two.

The model runs once. Each tensor that comes from a layer carries how far it has come (`_jacobian_carried`). What only
moves entries (views, copies) or rescales them (a number, dropout) passes that on and is noted; an activation is noted
too. Anything else (sums, norms, pooling, gates) spoils the tensor: where a spoiled one reaches a further layer, the
model is no plain chain. What reaches none, such as a loss or a side computation, does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradscope import activations
from gradscope.activations import Activation
from gradscope.experiments._jacobian_carried import Carried, carried_on, note_of
from gradscope.init._operations import activation_of_call, activation_of_module, plain_name
from gradscope.init._tensor_map import TensorMap, tensors_in
from gradscope.init._trace import _eager
from gradscope.init._untouched import run

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class NoChainError(ValueError):
    """The model is no plain chain: the message says what is the matter, and where."""


@dataclass(frozen=True)
class Link:
    """One layer of a chain, and what stands between it and the next.

    Attributes:
        name: the module's qualified name, `<root>` for the model itself.
        module: the layer.
        inputs: what it was given; of the first layer a leaf, so that each has a gradient.
        output: what it returned, as it was before anything changed it in place.
        activation: what bends its output, identity where nothing does.
        notes: what rescales its output, in words.
    """

    name: str
    module: nn.Module
    inputs: Tensor
    output: Tensor
    activation: Activation
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Chain:
    """The layers of a model in the order of execution.

    Attributes:
        links: at least one.
        whole: nothing but the last layer's output, bent perhaps by an activation, is the model's.
    """

    links: tuple[Link, ...]
    whole: bool


def chain_of(model: nn.Module, inputs: Any, unknown: Activation | None = None) -> Chain:
    """Run the model once, under the caller's grad mode, and return its chain.

    Args:
        model: any module.
        inputs: a tensor, a tuple (positional) or a mapping (keywords).
        unknown: what an operation that is not known counts as; by default it is where a plain chain ends.

    Raises:
        NoChainError: it is no plain chain.
    """
    with _eager(model), _Watch(model, unknown) as watch:
        out = run(model, inputs)
    return watch.chain(out)


class _Watch(TorchFunctionMode):
    def __init__(self, model: nn.Module, unknown: Activation | None) -> None:
        super().__init__()
        self._model, self._unknown = model, unknown
        self._layers: list[tuple[str, nn.Module, Tensor, Tensor]] = []
        self._passed: list[Carried] = []
        self._carried: TensorMap[Carried] = TensorMap()
        self._stack: list[str] = []
        self._known = 0
        """Layers and activations that are running: what happens within them is theirs."""
        self._handles: list[Any] = []

    def chain(self, out: Any) -> Chain:
        """What was seen, once the model has returned."""
        if not self._layers:
            raise NoChainError("it calls no Linear or convolution")
        end = Carried(len(self._layers) - 1)
        last = next((found for t in tensors_in(out) if (found := self._carried.get(t, None)) is not None), None)
        whole = last is not None and not last.spoiled and last.link == end.link
        passed = [*self._passed, last if whole and last is not None else end]
        links = [
            Link(*layer, carried.activation or activations.get(None), carried.notes)
            for layer, carried in zip(self._layers, passed, strict=True)
        ]
        return Chain(tuple(links), whole)

    def __enter__(self) -> _Watch:
        for name, module in self._model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._entering(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leaving(name), with_kwargs=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _entering(self, name: str) -> Callable[..., Any]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._stack.append(name)
            is_layer = isinstance(module, LAYERS)
            self._known += is_layer or activation_of_module(module) is not None
            if is_layer and not self._layers and self._known == 1 and args:
                return (args[0].detach().requires_grad_(), *args[1:]), kwargs
            return None

        return enter

    def _leaving(self, name: str) -> Callable[..., Any]:
        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            is_layer, activation = isinstance(module, LAYERS), activation_of_module(module)
            self._known -= is_layer or activation is not None
            if self._known == 0 and is_layer:
                output = self._add(name, module, next(tensors_in((args, kwargs))), output)
            elif self._known == 0 and activation is not None:
                given = tuple(tensors_in((args, kwargs)))
                before = [self._carried.get(tensor, None) for tensor in given]
                self._pass_on(before, tensors_in(output), activation.name, activation, None)
            self._stack.pop()
            return output

        return leave

    def _add(self, name: str, module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
        if self._layers:
            self._passed.append(self._checked(module, given))
        before = output if output.requires_grad else output.detach().requires_grad_()
        self._layers.append((name or "<root>", module, given, before))
        passed_on = before.clone()  # what changes it in place leaves `before` and its gradient alone
        self._carried.set(passed_on, Carried(len(self._layers) - 1))
        return passed_on

    def _checked(self, module: nn.Module, given: Tensor) -> Carried:
        """How far what a further layer is given has come: from the last one, straight."""
        carried = self._carried.get(given, None)
        if carried is None:
            raise NoChainError(f"{self._where()} is given a tensor that is not made of what a layer returned")
        found: Carried = carried
        if found.spoiled:
            raise NoChainError(found.spoiled)
        if found.link != len(self._layers) - 1:
            source = self._layers[found.link][0]
            raise NoChainError(
                f"{self._where()} is given what {source!r} returned, which another layer has already taken"
            )
        if any(module is other for _, other, _, _ in self._layers):
            raise NoChainError(f"{self._where()} is called a second time: the same weights again")
        return found

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._known:
            return func(*args, **kwargs)
        given = tuple(tensors_in((args, kwargs)))
        before = [self._carried.get(tensor, None) for tensor in given]  # an in-place call overwrites them
        out = func(*args, **kwargs)
        if not any(carried is not None for carried in before):
            return out
        name = plain_name(func)
        made = given[:1] if name == "setitem" else tensors_in(out)
        activation, note = activation_of_call(name, args, kwargs), note_of(name, given, args, kwargs)
        self._pass_on(before, made, name, activation, note)
        return out

    def _pass_on(
        self, before: Sequence[Carried | None], made: Any, name: str, activation: Activation | None, note: str | None
    ) -> None:
        found = [carried for carried in before if carried is not None]
        if found:
            now = carried_on(found, name, activation, note, self._where(), self._unknown)
            for tensor in made:
                self._carried.set(tensor, now)

    def _where(self) -> str:
        name = self._stack[-1] if self._stack else ""
        kind = type(self._model.get_submodule(name)).__name__
        return f"{kind} {name!r}" if name else f"the model itself ({kind})"
