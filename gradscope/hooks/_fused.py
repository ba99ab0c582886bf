"""Modules that compute by a fused path where nobody looks on: while we look on they shall take it still.

For the length of an encoder layer's forward our hooks come off; a hook on all modules, which it does not look for,
tells of its end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from gradscope.hooks._guard import Hook, Listener, Removable, guarded_call
from gradscope.hooks._tensors import floating_tensors

ENCODER_LAYER = nn.TransformerEncoderLayer
"""In evaluation it computes by a fused path where no hook is on it or within it, and no function mode is on."""

FUSED = (ENCODER_LAYER, nn.TransformerEncoder, nn.MultiheadAttention)
"""The others only ask for the mode."""


def may_take_fused_path(layer: nn.Module, inputs: Any) -> bool:
    """Whether one of these may compute by its fused path now."""
    if layer.training:
        return False
    return not torch.is_grad_enabled() or not (
        any(p.requires_grad for p in layer.parameters()) or any(t.requires_grad for t in floating_tensors(inputs))
    )


class Hooks(Protocol):
    """Our hooks on modules."""

    def put_aside(self, layer: nn.Module) -> list[nn.Module]:
        """Take them off a module and all within it; returns which to bring back."""

    def bring_back(self, modules: list[nn.Module]) -> None:
        """Put them on again."""


class FusedPaths:
    """Encoder layers whose forward runs now without our hooks.

    Args:
        listener: whose hooks these are.
        hooks: those that come off.
        ended: called with name, layer, inputs and output once a layer has returned and has its hooks again.
    """

    def __init__(self, listener: Listener, hooks: Hooks, ended: Callable[[str, nn.Module, Any, Any], None]) -> None:
        self._listener = listener
        self._hooks = hooks
        self._ended = ended
        self._handles: list[Removable] = []

    def make_way(self, name: str, layer: nn.Module) -> None:
        """An encoder layer's forward begins."""
        aside = self._hooks.put_aside(layer)
        handles: list[Removable] = []
        hook = Hook(partial(self._returned, name, layer, aside, handles))
        handles.append(register_module_forward_hook(hook, always_call=True))
        self._handles += handles

    def forget(self) -> None:
        """No end is waited for any more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _returned(
        self,
        name: str,
        layer: nn.Module,
        aside: list[nn.Module],
        handles: list[Removable],
        module: nn.Module,
        args: Any,
        output: Any,
    ) -> None:
        if module is not layer:
            return
        for handle in handles:
            handle.remove()
            self._handles.remove(handle)
        guarded_call(self._listener, partial(self._hooks.bring_back, aside))
        self._ended(name, layer, args, output)
