"""Which of our hooks sit where on a model, and that all of them come off again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradscope.hooks._compiled import Entrance, Exit
from gradscope.hooks._distributed import parameters_at_rest
from gradscope.hooks._fused import ENCODER_LAYER, FUSED
from gradscope.hooks._guard import Hook, ModuleHook, Removable
from gradscope.hooks._sites import ROOT, is_parametrization, unwrapped_name
from gradscope.hooks._unobserved import Unobserved


@dataclass(frozen=True)
class Callbacks:
    """What is called: of the root without a name, of modules and parameters with their name first."""

    before_root: Callable[..., None]
    after_root: Callable[..., None]
    after_module: Callable[..., None]
    before_fused: Callable[..., None]
    after_accumulate: Callable[[str, Tensor], None]
    records: Callable[[], bool | None]
    """Whether the call of a module that begins now is recorded."""
    before_module: Callable[..., None] | None = None


class Attachment:
    """The hooks of one observer on the modules and parameters of one model."""

    def __init__(self, model: nn.Module, unobserved: Unobserved, callbacks: Callbacks) -> None:
        self._model = model
        self._unobserved = unobserved
        self._call = callbacks
        self._modules: weakref.WeakKeyDictionary[nn.Module, list[Removable]] = weakref.WeakKeyDictionary()
        self._names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self._in_attention: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._parameters: dict[int, weakref.ref[Tensor]] = {}
        self._on_parameters: list[Removable] = []
        self.attach_new()

    def attach_new(self) -> None:
        """Hooks for modules that were added since, and for parameters that are trained since."""
        for name, module in self._model.named_modules():
            if module not in self._names and not is_parametrization(name):
                self._names[module] = unwrapped_name(name) or ROOT
                self._attach(module)
            if isinstance(module, nn.MultiheadAttention):
                self._in_attention.update(module.children())
        self.lazy = False
        for name, _, parameter in parameters_at_rest(self._model):
            if isinstance(parameter, nn.UninitializedParameter):  # takes hooks once its first input has come
                self.lazy = True
                continue
            known = self._parameters.get(id(parameter))
            # One that is no leaf stands there for a single call: functional_call with weights that were computed.
            if parameter.requires_grad and parameter.is_leaf and (known is None or known() is not parameter):
                self._parameters[id(parameter)] = weakref.ref(parameter)
                called = unwrapped_name(name)
                hook = Hook(partial(_weakly, weakref.WeakMethod(self._call.after_accumulate), called))
                handle = parameter.register_post_accumulate_grad_hook(hook)
                _put_first(parameter, handle)
                self._on_parameters.append(handle)

    def _attach(self, module: nn.Module) -> None:
        name = self._names[module]
        if isinstance(module, torch.jit.ScriptModule):
            self._unobserved.add(name, "a ScriptModule, which takes no hooks")
        else:
            self._modules[module] = list(self._hooks(name, module))

    def _hooks(self, name: str, module: nn.Module) -> Iterator[Removable]:
        call, root = self._call, module is self._model
        kind = Hook if root else ModuleHook
        if root:
            yield module.register_forward_pre_hook(kind(call.before_root), with_kwargs=True)
        if isinstance(module, FUSED) and (call.before_module is not None or isinstance(module, ENCODER_LAYER)):
            yield module.register_forward_pre_hook(ModuleHook(partial(call.before_fused, name)), with_kwargs=True)
        if call.before_module is not None:
            yield module.register_forward_pre_hook(ModuleHook(partial(call.before_module, name)))
        yield module.register_forward_pre_hook(Entrance(call.records, breaks=root))
        yield module.register_forward_hook(kind(partial(call.after_module, name)), with_kwargs=True)
        if root:
            # After the root's own site was observed, and also when its forward raised.
            yield module.register_forward_hook(kind(call.after_root), always_call=True)
        yield module.register_forward_hook(Exit(breaks=root), always_call=True)

    def detach(self) -> None:
        """Take every hook off."""
        for handles in (*self._modules.values(), self._on_parameters):
            for handle in handles:
                handle.remove()
        self._modules.clear()
        self._names.clear()
        self._on_parameters, self._parameters = [], {}

    def holds(self, parameters: set[int]) -> bool:
        """Whether any of these ids is that of a trained parameter of the model."""
        return not parameters.isdisjoint(self._parameters)

    def put_aside(self, layer: nn.Module) -> list[nn.Module]:
        """Take our hooks off a module and all within it; returns which to `bring_back`."""
        aside = [module for module in layer.modules() if module in self._modules]
        for module in aside:
            for handle in self._modules.pop(module):
                handle.remove()
        return aside

    def bring_back(self, modules: list[nn.Module]) -> None:
        """Put our hooks on again."""
        for module in modules:
            self._attach(module)

    def leaves(self) -> Iterator[tuple[str, bool]]:
        """The hooked modules without children: name, and whether it is a part of a MultiheadAttention."""
        for module in self._modules:
            if next(module.children(), None) is None:
                yield self._names[module], module in self._in_attention


def _weakly(method: weakref.WeakMethod[Callable[..., None]], *args: Any) -> None:
    """A parameter holds its hooks out of the garbage collector's sight: they must not hold the model in turn."""
    call = method()
    if call is not None:
        call(*args)


def _put_first(parameter: Tensor, handle: RemovableHandle) -> None:
    """Have this hook called before those of others: an optimizer that runs inside the backward frees the gradient."""
    hooks: Any = parameter._post_accumulate_grad_hooks
    if len(hooks) > 1:  # torch calls them in the order in which the dict was filled, whatever OrderedDict's own is
        mine, others = hooks.pop(handle.id), dict(hooks)
        hooks.clear()
        hooks[handle.id] = mine
        hooks.update(others)
