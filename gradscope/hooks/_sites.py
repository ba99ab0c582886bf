"""Which sites a model has: what each module's output is, its fans, and the book of those already seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.init import fans
from gradscope.init._operations import activation_of_module
from gradscope.recording import Recording, Role, Signal, Site

ROOT = "<root>"
INPUT = "<input>"

SiteFilter = Callable[[Site], bool]

_LINEAR_LIKE = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
_LINEAR_NAMES = frozenset({"Conv1D"})  # transformers' transposed Linear
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)


def role_of(module: nn.Module, output: Tensor | None = None) -> Role:
    """What a module's output is; a module with children whose output is a sum is a block of a residual stream."""
    if isinstance(module, _LINEAR_LIKE) or type(module).__name__ in _LINEAR_NAMES:
        return "pre-activation"
    if activation_of_module(module) is not None:
        return "activation"
    if isinstance(module, _NORMS) or type(module).__name__.endswith(("LayerNorm", "RMSNorm", "BatchNorm")):
        return "norm"
    summed = output is not None and output.grad_fn is not None and output.grad_fn.name().startswith("AddBackward")
    return "block" if summed and any(True for _ in module.children()) else "other"


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


def floating_tensors(value: Any) -> Iterator[Tensor]:
    """The floating tensors of a module's output, in order: in tuples, lists, mappings and dataclasses, nested."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from floating_tensors(item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from floating_tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            yield from floating_tensors(getattr(value, item.name))


def site_filter(sites: str | Sequence[str] | SiteFilter | None) -> SiteFilter | None:
    """The `sites` argument as one predicate: None takes all, glob patterns look at the module's name."""
    if sites is None or callable(sites):
        return sites
    patterns = (sites,) if isinstance(sites, str) else tuple(sites)
    return lambda site: any(fnmatchcase(site.module, pattern) for pattern in patterns)


class SiteBook:
    """The sites seen so far: key -> id in the recording, None where the filter leaves a site out."""

    def __init__(self, recording: Recording, signals: frozenset[Signal], chosen: SiteFilter | None) -> None:
        self._recording = recording
        self._signals = signals
        self._chosen = chosen
        self._ids: dict[tuple[Signal, str], int | None] = {}
        self._sites: dict[int, Site] = {}
        self._depth: dict[str, int] = {}
        self.grew = False

    def call(
        self, signal: Signal, name: str, module: nn.Module, call: int, output: int, depth: int, tensor: Tensor
    ) -> int | None:
        """Id of the site of one output tensor of one call of a module."""
        if signal not in self._signals:
            return None
        full = f"{name}#{call}" if call else name
        full = f"{full}[{output}]" if output else full
        key = (signal, full)
        if key in self._ids:
            return self._ids[key]
        self._depth.setdefault(name, depth)
        fan_in, fan_out = (None, None) if name == INPUT else fans_of(module)
        return self._enter(
            Site(
                signal=signal,
                name=full,
                module=name,
                module_type="input" if name == INPUT else type(module).__name__,
                call=call,
                output=output,
                role="input" if name == INPUT else role_of(module, tensor),
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
            return self._ids[key]
        owner, _, param = name.rpartition(".")
        fan_in, fan_out = fans_of(module, param)
        return self._enter(
            Site(
                signal=signal,
                name=name,
                module=owner or ROOT,
                module_type=type(module).__name__,
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
        for i, site in self._sites.items():
            name = found.get((site.module, site.call))
            if name is not None and site.activation_after is None and site.role != "activation":
                self._sites[i] = dataclasses.replace(site, activation_after=name)
                self._recording.replace_site(i, self._sites[i])

    def _enter(self, site: Site) -> int | None:
        taken = self._chosen is None or self._chosen(site)
        number = self._recording.add_site(site) if taken else None
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
