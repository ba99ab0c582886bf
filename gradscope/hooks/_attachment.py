"""Which of our hooks sit where on a model, and that all of them come off again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradscope.hooks._compiled import BetweenGraphs, Entrance, Exit
from gradscope.hooks._distributed import parameters_at_rest
from gradscope.hooks._fused import ENCODER_LAYER, FUSED
from gradscope.hooks._guard import Hook, ModuleHook
from gradscope.hooks._sites import ROOT, is_parametrization, unwrapped_name
from gradscope.hooks._unobserved import Unobserved

_HOLDERS = (nn.ParameterList, nn.ParameterDict, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Callbacks:
    """What is called: of the root without a name, of modules and parameters with their name first."""

    before_root: Callable[..., None]
    after_root: Callable[..., None]
    after_module: Callable[..., None]
    before_fused: Callable[..., None]
    watch: Callable[[str], Hook]
    """The forward hook for a module of this name within the model."""
    on_parameter: Callable[[str], Hook]
    """The hook for a parameter of this name, once it has its gradient."""
    records: Callable[[], bool | None]
    """Whether the call of a module that begins now is recorded."""
    before_module: Callable[..., None] | None = None


@dataclass(frozen=True)
class _Spec:
    """A hook, and how it is put on a module."""

    hook: BetweenGraphs
    before: bool
    options: dict[str, bool]

    def put_on(self, module: nn.Module) -> RemovableHandle:
        if self.before:
            return module.register_forward_pre_hook(self.hook, **self.options)
        return module.register_forward_hook(self.hook, **self.options)


class Attachment:
    """The hooks of one observer on the modules and parameters of one model.

    Those within the model come off between the steps that are recorded: one that returns at once still costs Python
    two calls a module. They know what they have learned when they are put on again.

    Attributes:
        resting: only the hooks on the model itself are on.
        lazy: some parameters take hooks only once their first input has come.
        complete: every parameter that was trained when it was looked at has its hook.
    """

    def __init__(self, model: nn.Module, unobserved: Unobserved, callbacks: Callbacks) -> None:
        self.resting = False
        self.lazy = False
        self.complete = True
        self._model = model
        self._unobserved = unobserved
        self._call = callbacks
        self._modules: weakref.WeakKeyDictionary[nn.Module, list[RemovableHandle]] = weakref.WeakKeyDictionary()
        self._specs: weakref.WeakKeyDictionary[nn.Module, list[_Spec]] = weakref.WeakKeyDictionary()
        self._names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self._in_attention: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        """Parts of a MultiheadAttention, each with its name."""
        self._lifted: weakref.WeakKeyDictionary[nn.Module, list[RemovableHandle]] = weakref.WeakKeyDictionary()
        """Of modules whose hooks are off for now, what they are put on again by: that is far cheaper than anew."""
        self._earlier: weakref.WeakKeyDictionary[nn.Module, set[int]] = weakref.WeakKeyDictionary()
        """Of modules without our hooks, the hooks of others that are called before ours."""
        self._parameters: dict[int, tuple[weakref.ref[Tensor], Hook]] = {}
        self._on_parameters: dict[int, RemovableHandle] = {}
        self._off_parameters: dict[int, RemovableHandle] = {}
        self._others: set[int] = set()
        """Ids of parameters that an optimizer holds, and the model does not."""
        self.attach_new()

    def attach_new(self) -> None:
        """Hooks for modules that were added or renamed since, and for parameters that are trained since."""
        for name, module in self._model.named_modules():
            called = unwrapped_name(name) or ROOT
            if self._names.get(module) != called and not is_parametrization(name):
                self._forget(module)  # it may have had another name
                self._names[module] = called
                self._specify(module)
                self._attach(module)
            if isinstance(module, nn.MultiheadAttention):
                self._in_attention.update(dict.fromkeys(module.children(), called))
        self.lazy, self.complete = False, True
        self._others = set()
        for name, _, parameter in parameters_at_rest(self._model):
            if isinstance(parameter, nn.UninitializedParameter):  # takes hooks once its first input has come
                self.lazy = True
                continue
            known = self._parameters.get(id(parameter))
            # One that is no leaf stands there for a single call: functional_call with weights that were computed.
            if not (parameter.requires_grad and parameter.is_leaf):
                continue
            if known is None or known[0]() is not parameter:
                hook = self._call.on_parameter(unwrapped_name(name))
                self._parameters[id(parameter)] = weakref.ref(parameter), hook
                self._attach_parameter(parameter, hook)
            elif id(parameter) not in self._on_parameters:  # it was frozen when the hooks were put on again
                self._attach_parameter(parameter, known[1])

    def _forget(self, module: nn.Module) -> None:
        for handle in (*self._modules.pop(module, ()), *self._lifted.pop(module, ())):
            handle.remove()
        self._specs.pop(module, None)
        self._earlier.pop(module, None)

    def _specify(self, module: nn.Module) -> None:
        name = self._names[module]
        if isinstance(module, torch.jit.ScriptModule):
            self._unobserved.add(name, "a ScriptModule, which takes no hooks")
        else:
            self._specs[module] = list(self._hooks(name, module))

    def _attach(self, module: nn.Module) -> None:
        if module not in self._specs:
            return
        handles = self._lifted.pop(module, None)
        if handles is None:
            handles = [spec.put_on(module) for spec in self._specs[module]]
        else:
            for spec, handle in zip(self._specs[module], handles, strict=True):
                _table(module, spec)[handle.id] = spec.hook
            if _others_have_hooks(module, handles):
                _put_after(module, self._earlier.pop(module, set()), {handle.id for handle in handles})
        self._modules[module] = handles

    def _attach_parameter(self, parameter: Tensor, hook: Hook) -> None:
        handle = self._off_parameters.pop(id(parameter), None)
        hooks: Any = None if handle is None else handle.hooks_dict_ref()
        if handle is not None and hooks is not None and hooks is parameter._post_accumulate_grad_hooks:
            hooks[handle.id] = hook
        else:
            handle = parameter.register_post_accumulate_grad_hook(hook)
        _put_first(parameter, handle)
        self._on_parameters[id(parameter)] = handle

    def _hooks(self, name: str, module: nn.Module) -> Iterator[_Spec]:
        call, root = self._call, module is self._model
        kind = Hook if root else ModuleHook
        if root:
            yield _Spec(kind(call.before_root), True, {"with_kwargs": True})
        if isinstance(module, FUSED) and (call.before_module is not None or isinstance(module, ENCODER_LAYER)):
            yield _Spec(ModuleHook(partial(call.before_fused, name)), True, {"with_kwargs": True})
        if call.before_module is not None:
            yield _Spec(ModuleHook(partial(call.before_module, name)), True, {})
        yield _Spec(Entrance(call.records, breaks=root), True, {})
        after = Hook(partial(call.after_module, name)) if root else call.watch(name)
        yield _Spec(after, False, {"with_kwargs": True})
        if root:
            # After the root's own site was observed, and also when its forward raised.
            yield _Spec(kind(call.after_root), False, {"always_call": True})
        yield _Spec(Exit(breaks=root), False, {"always_call": True})

    def rest(self) -> None:
        """Take the hooks within the model off, until `wake`."""
        if not self.resting:
            self.resting = True
            self._take_off([module for module in self._modules if module is not self._model])
            self._take_off_parameters()

    def wake(self) -> None:
        """Put them on again."""
        if self.resting:
            self.resting = False
            for module in list(self._specs):
                if module not in self._modules:
                    self._attach(module)
            for known, hook in self._parameters.values():
                parameter = known()
                if parameter is None:
                    continue
                if parameter.requires_grad and parameter.is_leaf:
                    self._attach_parameter(parameter, hook)
                else:
                    self.complete = False

    def detach(self) -> None:
        """Take every hook off."""
        for handles in [*self._modules.values(), *self._lifted.values()]:
            for handle in handles:
                handle.remove()
        for handle in [*self._on_parameters.values(), *self._off_parameters.values()]:
            handle.remove()
        self._modules.clear()
        self._lifted.clear()
        self._on_parameters, self._off_parameters = {}, {}
        self._specs.clear()
        self._names.clear()
        self._earlier.clear()
        self._parameters = {}

    def _take_off(self, modules: list[nn.Module]) -> None:
        for module in modules:
            handles = self._modules.pop(module)
            if not _BY_ENTRY:
                for handle in handles:
                    handle.remove()
                continue
            self._lifted[module] = handles
            if _others_have_hooks(module, handles):
                self._earlier[module] = _before(module, {handle.id for handle in handles})
            for spec, handle in zip(self._specs[module], handles, strict=True):
                _table(module, spec).pop(handle.id, None)

    def _take_off_parameters(self) -> None:
        for handle in self._on_parameters.values():
            hooks = handle.hooks_dict_ref()  # None: the parameter is gone
            if hooks is not None:
                hooks.pop(handle.id, None)
        self._off_parameters |= self._on_parameters
        self._on_parameters = {}

    def holds(self, parameters: set[int]) -> bool:
        """Whether any of these ids is that of a trained parameter of the model."""
        if not parameters.isdisjoint(self._parameters):
            return True
        if parameters <= self._others:
            return False
        if not parameters.isdisjoint({id(parameter) for parameter in self._model.parameters()}):
            return True  # of a module that has come since the hooks were put on
        self._others |= parameters
        return False

    def put_aside(self, layer: nn.Module) -> list[nn.Module]:
        """Take our hooks off a module and all within it; returns which to `bring_back`."""
        aside = [module for module in layer.modules() if module in self._modules]
        self._take_off(aside)
        return aside

    def bring_back(self, modules: list[nn.Module]) -> None:
        """Put our hooks on again."""
        for module in modules:
            self._attach(module)

    def parts(self) -> Iterator[tuple[str, str | None]]:
        """The hooked modules within the model that compute: those without children or with parameters of their own.

        Gives their names, and of a part of a MultiheadAttention that of the attention. A list of parameters is none:
        it is no module to be called.
        """
        for module in self._modules:
            alone = next(module.children(), None) is None
            own = module is not self._model and any(p is not None for p in module._parameters.values())
            if (alone or own) and not isinstance(module, _HOLDERS):
                yield self._names[module], self._in_attention.get(module)


def _tables(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    return module._forward_pre_hooks, module._forward_hooks


def _table(module: nn.Module, spec: _Spec) -> dict[int, Any]:
    return module._forward_pre_hooks if spec.before else module._forward_hooks


def _by_entry() -> bool:
    """Whether this torch keeps hooks as we know it: an entry by the handle's number. Else they are registered anew."""
    module = nn.Identity()
    before = module.register_forward_pre_hook(_no_hook, with_kwargs=True)
    after = module.register_forward_hook(_no_hook, with_kwargs=True, always_call=True)
    return [table.get(handle.id) for table, handle in zip(_tables(module), (before, after), strict=True)] == [
        _no_hook,
        _no_hook,
    ]


def _no_hook(*_: Any) -> None:
    pass


def _others_have_hooks(module: nn.Module, ours: list[RemovableHandle]) -> bool:
    return sum(map(len, _tables(module))) > len(ours)


def _before(module: nn.Module, ours: set[int]) -> set[int]:
    """The hooks of others that are called before ours."""
    return {key for table in _tables(module) for key in takewhile(lambda key: key not in ours, table)}


def _put_after(module: nn.Module, earlier: set[int], ours: set[int]) -> None:
    """Have our hooks, which were put on last, called right after these, as they once were."""
    for table in _tables(module):
        for key in [key for key in table if key not in earlier and key not in ours]:
            table[key] = table.pop(key)


def _put_first(parameter: Tensor, handle: RemovableHandle) -> None:
    """Have this hook called before those of others: an optimizer that runs inside the backward frees the gradient."""
    hooks: Any = parameter._post_accumulate_grad_hooks
    if len(hooks) > 1:  # torch calls them in the order in which the dict was filled, whatever OrderedDict's own is
        mine, others = hooks.pop(handle.id), dict(hooks)
        hooks.clear()
        hooks[handle.id] = mine
        hooks.update(others)


_BY_ENTRY = _by_entry()
