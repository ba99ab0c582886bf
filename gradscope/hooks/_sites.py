"""Which sites a model has: what each module's output is, its fans, and the book of those already seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.init import fans
from gradscope.init._operations import activation_of_call, activation_of_module, is_linear_like
from gradscope.recording import Recording, Role, Signal, Site

ROOT = "<root>"
INPUT = "<input>"

SiteFilter = Callable[[Site], bool]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)


def role_of(module: nn.Module, output: Tensor | None = None) -> Role:
    """What a module's output is; a module with children whose output is a sum is a block of a residual stream."""
    if is_linear_like(module):
        return "pre-activation"
    if activation_of_module(module) is not None:
        return "activation"
    if isinstance(module, _NORMS) or type(module).__name__.endswith(("LayerNorm", "RMSNorm", "BatchNorm")):
        return "norm"
    summed = output is not None and output.grad_fn is not None and _is_sum(output.grad_fn)
    return "block" if summed and any(True for _ in module.children()) else "other"


def _is_sum(node: Any) -> bool:
    """Whether the node adds two tensors; below a view that was changed in place, whether it took two."""
    if node.name().startswith("AddBackward"):
        return True
    changed = node.next_functions[0][0] if node.next_functions else None
    return changed is not None and changed.name().endswith("CopySlices") and len(changed.next_functions) == 2


def class_name(module: nn.Module) -> str:
    """Name of a module's class, and not of the one that `fully_shard` puts in its place."""
    own = [c for c in type(module).__mro__ if not any(base.__name__ == "FSDPModule" for base in c.__mro__)]
    return own[0].__name__


def fans_of(module: nn.Module, param: str | None = None) -> tuple[float | None, float | None]:
    """True fan_in and fan_out of a module's weight (of one parameter of a packed module), None where it has none."""
    try:
        found = fans(module)
    except (ValueError, TypeError, AttributeError):
        return None, None
    if isinstance(found, Mapping):
        blocks = set(found.get(param, {}).values()) if param is not None else set()
        if len(blocks) != 1:
            return None, None
        (found,) = blocks
    elif param not in (None, "weight"):
        return None, None
    return float(found.fan_in), float(found.fan_out)


_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})
"""What torch.compile and checkpoint_wrapper call the module that they wrap."""


def unwrapped_name(name: str) -> str:
    """A module's or parameter's qualified name as it is without wrappers on the way."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def call_name(name: str, call: int, output: int) -> str:
    """Name of the site of one output of one call."""
    full = f"{name}#{call}" if call else name
    return f"{full}[{output}]" if output else full


def site_filter(sites: str | Sequence[str] | SiteFilter | None) -> SiteFilter | None:
    """The `sites` argument as one predicate: None takes all, glob patterns look at the module's name."""
    if sites is None or callable(sites):
        return sites
    patterns = (sites,) if isinstance(sites, str) else tuple(sites)
    return lambda site: any(fnmatchcase(site.module, pattern) for pattern in patterns)


class SiteBook:
    """The sites seen so far: key -> id in the recording, None where the filter leaves a site out."""

    def __init__(self, recording: Recording, signals: frozenset[Signal], chosen: SiteFilter | None) -> None:
        self.recording = recording
        self.like: SiteBook | None = None
        """A book whose sites of the same names are known better: with their graph."""
        self._signals = signals
        self._chosen = chosen
        self._ids: dict[tuple[Signal, str], int | None] = {}
        self._sites: dict[int, Site] = {}
        self._depth: dict[str, int] = {}
        self._following: dict[tuple[str, int], str] = {}
        self.grew = False

    def call(
        self,
        signal: Signal,
        name: str,
        module: nn.Module,
        call: int,
        output: int,
        depth: int,
        tensor: Tensor,
        function: str | None = None,
    ) -> int | None:
        """Id of the site of one output tensor of one call of a module, or of a function called in it."""
        self._depth.setdefault(name, depth)
        if signal not in self._signals:
            return None
        full = call_name(name, call, output)
        key = (signal, full)
        if key in self._ids:
            return self._ids[key]
        better = None if self.like is None else self.like.find(signal, full)
        if better is not None:
            return self._enter(better)
        kind, role = function or class_name(module), role_of(module, tensor)
        fan_in, fan_out = (None, None) if name == INPUT or function else fans_of(module)
        if name == INPUT:
            kind, role = "input", "input"
        elif function:
            role = "activation" if activation_of_call(function, (), {}) or function.startswith("cl") else "other"
        return self._enter(
            Site(
                signal=signal,
                name=full,
                module=name.rpartition(":")[0] if function else name,
                module_type=kind,
                call=call,
                output=output,
                role=role,
                depth=depth,
                fan_in=fan_in,
                fan_out=fan_out,
                trainable=tensor.requires_grad,
                **_seen(tensor),
            )
        )

    def parameter(self, signal: Signal, name: str, module: nn.Module, parameter: Tensor) -> int | None:
        """Id of the site of one parameter, which lies at the depth of its module's first call."""
        if signal not in self._signals:
            return None
        key = (signal, name)
        if key in self._ids:
            return self._unfrozen(self._ids[key], parameter)
        owner, _, param = name.rpartition(".")
        fan_in, fan_out = fans_of(module, param)
        return self._enter(
            Site(
                signal=signal,
                name=name,
                module=owner or ROOT,
                module_type=class_name(module),
                param=param,
                role=role_of(module),
                depth=self._depth_of(owner),
                fan_in=fan_in,
                fan_out=fan_out,
                trainable=parameter.requires_grad,
                **_seen(parameter),
            )
        )

    def set_following(self, found: Mapping[tuple[str, int], str]) -> None:
        """Write the activation that follows each call of a module on its sites; a parameter has its first call's."""
        self._following |= found
        for i, site in self._sites.items():
            known = self._with_following(site)
            if known is not site:
                self._sites[i] = known
                self.recording.replace_site(i, known)

    def _with_following(self, site: Site) -> Site:
        name = self._following.get((site.module, site.call))
        of_function = ":" in site.name.removeprefix(site.module)
        if name is None or site.activation_after is not None or site.role == "activation" or of_function:
            return site
        return dataclasses.replace(site, activation_after=name)

    def go_on_in(self, recording: Recording) -> None:
        """From here on the sites are those of another recording, with the same ids."""
        for number in sorted(self._sites):
            if recording.add_site(self._sites[number]) != number:
                raise RuntimeError("a site has another id in the new recording")
        self.recording.close()
        self.recording = recording

    def enter(self, site: Site) -> int:
        """Id of a site that was met on another rank."""
        key = (site.signal, site.name)
        if self._ids.get(key) is None:
            self._ids[key] = self.recording.add_site(site)
            self._sites[self._ids[key] or 0] = site
        return self._ids[key] or 0

    @property
    def sites(self) -> Mapping[int, Site]:
        """By id."""
        return self._sites

    def find(self, signal: Signal, name: str) -> Site | None:
        """The site of a name, if it is taken."""
        number = self._ids.get((signal, name))
        return None if number is None else self._sites[number]

    def number(self, signal: Signal, name: str) -> int | None:
        """Id of the site of a name, None where it is left out, or was never met."""
        return self._ids.get((signal, name))

    def has_all(self, signal: Signal) -> bool:
        """Whether every site of a signal is taken."""
        return self._chosen is None and signal in self._signals

    def records(self, signal: Signal) -> bool:
        """Whether any site of a signal may be taken."""
        return signal in self._signals

    def knows(self, signal: Signal, name: str) -> bool:
        """Whether the site was met before, taken or left out."""
        return (signal, name) in self._ids

    def _unfrozen(self, number: int | None, parameter: Tensor) -> int | None:
        """The same id; a parameter that is trained from now on, or no longer, is said to be so."""
        if number is not None and self._sites[number].trainable != parameter.requires_grad:
            self._sites[number] = dataclasses.replace(self._sites[number], trainable=parameter.requires_grad)
            self.recording.replace_site(number, self._sites[number])
        return number

    def _enter(self, site: Site) -> int | None:
        site = self._with_following(site)
        taken = self._chosen is None or self._chosen(site)
        number = self.recording.add_site(site) if taken else None
        self._ids[site.signal, site.name] = number
        if number is not None:
            self._sites[number] = site
            self.grew = True
        return number

    def _depth_of(self, owner: str) -> int:
        while owner and owner not in self._depth:
            owner = owner.rpartition(".")[0]
        return self._depth.get(owner or ROOT, max(self._depth.values(), default=0))


def _seen(tensor: Tensor) -> dict[str, Any]:
    return {"shape": tuple(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def is_parametrization(name: str) -> bool:
    """Modules that compute a weight (`torch.nn.utils.parametrize`) are no layers."""
    return "parametrizations" in name.split(".")


def is_lazy(parameter: Tensor) -> bool:
    """The parameter has no shape yet."""
    return isinstance(parameter, (nn.UninitializedParameter, nn.parameter.UninitializedBuffer)) or (
        parameter.device == torch.device("meta")
    )
