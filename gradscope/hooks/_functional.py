"""Functional activations as sites of their own: `layers.0:relu` is the first `F.relu` within module `layers.0`.

A function mode sees every torch function that the model calls while its root runs. It costs a Python call for each
of them, so it is off unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from gradscope.hooks._guard import Hook
from gradscope.init._operations import activation_of_call, activation_of_module, plain_name

OTHERS = frozenset({"scaled_dot_product_attention", "glu", "log_softmax", "gumbel_softmax"})
"""Functions that are sites though they are no activation of a layer."""


class FunctionalSites(TorchFunctionMode):
    """While it is entered, tells of each functional activation: `seen(module's name, module, function, output, …)`."""

    def __init__(self, seen: Callable[..., None]) -> None:
        super().__init__()
        self._seen = Hook(seen)
        self._inside: list[tuple[str, nn.Module]] = []
        self._no_activation: set[str] = set()
        self._suspended_by: nn.Module | None = None

    def enter(self) -> None:
        """The root's forward begins."""
        self.leave()
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        """It has ended; also where an interrupt had kept us from being told."""
        self._inside, self._suspended_by = [], None
        self._off()

    def suspend(self, module: nn.Module) -> None:
        """Until this module returns: it may compute by a fused path, which it leaves where a mode could look on."""
        if self._suspended_by is None and self in _get_current_function_mode_stack()[-1:]:
            self._suspended_by = module
            self._off()

    def _off(self) -> None:
        if self in _get_current_function_mode_stack()[-1:]:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def module_begins(self, name: str, module: nn.Module) -> None:
        """A module is called."""
        self._inside.append((name, module))

    def module_ends(self, module: nn.Module) -> None:
        """It has returned; those that it had called and that raised are over too."""
        if module is self._suspended_by:
            self._suspended_by = None
            self.__enter__()  # type: ignore[no-untyped-call]
        while self._inside and self._inside.pop()[1] is not module:
            pass

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_dynamo_compiling():
            return function(*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        if self._inside and isinstance(result, Tensor) and self._is_site(plain_name(function), result, args, kwargs):
            name, module = self._inside[-1]
            if activation_of_module(module) is None:  # else the module itself is that site
                self._seen(name, module, plain_name(function), result, args, kwargs or {})
        return result

    def _is_site(self, name: str, result: Tensor, args: Any, kwargs: Any) -> bool:
        if name in OTHERS:
            return True
        if name in self._no_activation:
            return False
        if activation_of_call(name, args, kwargs or {}) is None:
            if not name.startswith("cl"):  # a clamp may be one, by its arguments
                self._no_activation.add(name)
            return False
        return name != "sin" or result.requires_grad  # else the position code of a rotary embedding
