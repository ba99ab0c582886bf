"""Which activation follows each layer, seen while the model runs.

Every tensor that a layer returns carries the layer's call as its origin. Origins pass through norms, dropout,
pooling, reshaping, sums and products; the first activation that meets a tensor is the one that follows all of
the tensor's origins; any other operation ends them. Modules are seen by forward hooks, functions (`F.relu`,
`torch.tanh`, `x.sigmoid()`) by a `TorchFunctionMode`.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from gradscope.init._definition import Follower
from gradscope.init._layer_fans import is_layer
from gradscope.init._operations import (
    activation_of_call,
    activation_of_module,
    is_looked_through,
    plain_name,
)
from gradscope.init._tensor_map import TensorMap, tensors_in
from gradscope.init._untouched import run, untouched

Origins = frozenset[int]
_NONE: Origins = frozenset()


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer, in execution order.

    Attributes:
        module: the layer's qualified name, empty for the model itself.
        call: index among this layer's calls, from 0.
        activation: canonical name of the activation that follows, None where nothing does.
    """

    module: str
    call: int
    activation: str | None = None


def trace(model: nn.Module, inputs: Any) -> tuple[LayerCall, ...]:
    """Run the model once and return the calls of its layers in execution order.

    `inputs` is a tensor, a tuple (positional) or a dict (keywords). The model runs in the mode (training or
    not) and under the grad mode that it is in; buffers, attributes, hooks and the random state are as before
    afterwards. Works on the meta device.
    """
    with untouched(model), _eager(model), Watch(model) as watch:
        run(model, inputs)
    return watch.calls


def followers_by_execution(model: nn.Module, inputs: Any) -> dict[str, Follower]:
    """Layer name -> what follows its first call, in execution order; what is never called is missing."""
    seen: dict[str, list[str | None]] = {}
    for call in trace(model, inputs):
        seen.setdefault(call.module, []).append(call.activation)
    following = {}
    for name, (first, *later) in seen.items():
        others = [other or "nothing" for other in dict.fromkeys(later) if other != first]
        follower = Follower(first, f"in a later call {', '.join(others)} follows" if others else "")
        following[name] = follower
        if isinstance(model.get_submodule(name), nn.MultiheadAttention):
            following[f"{name}.out_proj".lstrip(".")] = follower  # never called as a module: part of the call
    return following


class Watch(TorchFunctionMode):
    """While entered, notes each layer call of `model` and the activation that follows it.

    Nothing is kept alive and nothing is changed: tensors are held by weak references only.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._calls: list[LayerCall] = []
        self._origins: TensorMap[Origins] = TensorMap()
        self._sigmoids: TensorMap[weakref.ref[Tensor]] = TensorMap()  # a logistic output -> its input
        self._handles: list[RemovableHandle] = []

    @property
    def calls(self) -> tuple[LayerCall, ...]:
        """The calls so far, in execution order."""
        return tuple(self._calls)

    def __enter__(self) -> Watch:
        for name, module in self._model.named_modules():
            activation = activation_of_module(module)
            if activation is not None:
                # Before the call: within a self-made Swish the function seen first would be its sigmoid.
                self._handles += [
                    module.register_forward_pre_hook(self._on_activation(activation.name), with_kwargs=True),
                    module.register_forward_hook(self._after_activation),
                ]
            elif is_layer(module):
                self._handles.append(module.register_forward_hook(self._on_layer(name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs)))
        before = [self._origins.get(tensor, _NONE) for tensor in given]  # an in-place call overwrites them
        out = func(*args, **kwargs)
        if any(before):
            name = plain_name(func)
            changed = given[:1] if name == "setitem" else tensors_in(out)  # x[i] = y returns nothing
            self._pass_on(name, args, kwargs, given, before, tuple(changed))
        return out

    def _pass_on(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        given: Sequence[Tensor],
        before: Sequence[Origins],
        outputs: Sequence[Tensor],
    ) -> None:
        origins = _NONE
        activation = activation_of_call(name, args, kwargs)
        if activation is not None:
            self._follow(before[0], activation.name)
            if activation.name == "sigmoid" and outputs[0] is not given[0]:
                self._sigmoids.set(outputs[0], weakref.ref(given[0]))
        elif name == "mul" and (gated := self._self_gated(given)) is not None:
            self._follow(self._origins.get(gated, _NONE), "silu", instead_of="sigmoid")
        elif is_looked_through(name):
            origins = _NONE.union(*before)
        for tensor in outputs:
            self._origins.set(tensor, origins)

    def _self_gated(self, factors: Sequence[Tensor]) -> Tensor | None:
        """x where the factors are x and sigmoid(x): SiLU written by hand."""
        for other in factors:
            source = self._sigmoids.get(other, None)
            if source is not None and any(source() is factor for factor in factors):
                return cast(Tensor, source())
        return None

    def _follow(self, origins: Origins, activation: str, instead_of: str | None = None) -> None:
        for index in origins:
            seen = self._calls[index]
            if seen.activation == instead_of:
                self._calls[index] = LayerCall(seen.module, seen.call, activation)

    def _on_layer(self, name: str) -> Any:
        times = 0

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal times
            origin = frozenset((len(self._calls),))
            self._calls.append(LayerCall(name, times))
            times += 1
            for tensor in tensors_in(output):
                self._origins.set(tensor, origin)

        return hook

    def _on_activation(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            for tensor in tensors_in((args, kwargs)):
                self._follow(self._origins.get(tensor, _NONE), name)

        return hook

    def _after_activation(self, module: nn.Module, args: Any, output: Any) -> None:
        for tensor in tensors_in(output):
            self._origins.set(tensor, _NONE)


def _eager(model: nn.Module) -> AbstractContextManager[Any]:
    """Compiled modules run uncompiled, for inside a compiled graph no function is seen."""
    compiled = any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
