"""What every conformance test compares: bits of a run, hooks left behind, and an oracle with hooks of its own."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope import GradScope
from gradscope.recording import Recording

REL = 1e-9
"""The recorded mean and std are float64 over fewer than 10^6 entries: 10^6 · 2^-53 = 1.1e-10, and the root of
mean² + std² has no cancellation. The oracle's own sum of squares is pairwise, hence better than that."""


def floats(value: Any) -> Iterator[Tensor]:
    """The floating tensors in a module's arguments or output; complex and integer ones are passed over."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from floats(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from floats(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from floats(getattr(value, field.name))


def replaced(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same structure of plain tuples, lists and dicts with the function applied to each floating tensor."""
    if isinstance(value, Tensor):
        return function(value) if value.is_floating_point() else value
    if type(value) is dict:
        return {key: replaced(item, function) for key, item in value.items()}
    return type(value)(replaced(item, function) for item in value) if type(value) in (tuple, list) else value


def bits(tensor: Tensor | None) -> bytes | None:
    """A tensor as type, shape and bytes, so that NaN equals NaN and 0 is not -0."""
    if tensor is None:
        return None
    plain = tensor.detach()
    plain = plain.to_dense() if plain.layout is not torch.strided else plain.clone()
    return (
        f"{plain.dtype}{tuple(plain.shape)}".encode() + plain.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    )


def hook_tables(model: nn.Module, *tensors: Tensor) -> Counter[str]:
    """How many hooks each module, parameter and given tensor carries, where it carries any."""
    found: Counter[str] = Counter()
    for name, module in model.named_modules():
        for table, hooks in vars(module).items():
            if table.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and hooks:
                found[f"{name}.{table}"] = len(hooks)
    named = [*model.named_parameters(), *((f"<{i}>", t) for i, t in enumerate(tensors))]
    for name, tensor in named:
        for table in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            if getattr(tensor, table):
                found[f"{name}.{table}"] = len(getattr(tensor, table))
    return found


class Oracle:
    """Copies of what each module returned and of the loss's gradient by it, under the names a recording gives them.

    A leaf's outputs are listed, and of other modules those that are no earlier module's output. The gradient is what
    a hook on the returned tensor receives. A later in-place change of a view takes such a hook off the graph: a view
    in `overwritten` is replaced by a copy with the same values, strides and gradients that is no view. A first oracle
    tells which those are.

    What runs after `forward_is_over` is the recomputation of checkpointing. It belongs to the call that returned the
    same values.
    """

    def __init__(self, model: nn.Module, overwritten: Collection[str] = ()) -> None:
        self.activation: dict[str, Tensor] = {}
        self.activation_grad: dict[str, Tensor] = {}
        self.overwritten = set(overwritten)
        self._calls: Counter[str] = Counter()
        self._recomputed: set[str] = set()
        self._returned: list[tuple[str, Tensor, int]] = []
        self._replaying = False
        for name, module in model.named_modules():
            if "parametrizations" not in name.split("."):  # what computes a weight is no layer
                leaf = all(child == "parametrizations" for child, _ in module.named_children())
                module.register_forward_hook(lambda _, __, out, n=name or "<root>", leaf=leaf: self._see(n, leaf, out))

    def forward_is_over(self) -> None:
        self._replaying = True

    def backward_is_over(self) -> None:
        self.overwritten |= {site for site, t, version in self._returned if t._is_view() and t._version != version}

    def next_step(self) -> None:
        self.activation, self.activation_grad, self._replaying = {}, {}, False
        for gathered in (self._calls, self._recomputed, self._returned):
            gathered.clear()

    def _see(self, name: str, leaf: bool, output: Any) -> Any:
        # A loss is no layer's signal.
        own = [(i, t) for i, t in enumerate(floats(output)) if t.dim() > 0 and (leaf or not self._known(t))]
        if not own:
            return None
        site = self._earlier_site(name, *own[0]) if self._replaying else self._new_site(name)
        copies: dict[int, Tensor] = {}
        for i, tensor in own if site is not None else ():
            full = f"{site}[{i}]" if i else site
            if not self._replaying:
                self.activation[full] = tensor.detach().clone()
            if full in self.overwritten and tensor.requires_grad:
                copies[id(tensor)] = tensor = _copy(tensor)
            self._returned.append((full, tensor, tensor._version))
            if tensor.requires_grad:
                tensor.register_hook(lambda g, full=full, into=self.activation_grad: _keep(into, full, g))
        return replaced(output, lambda t: copies.get(id(t), t)) if copies else None

    def _known(self, tensor: Tensor) -> bool:
        return any(t is tensor and version == t._version for _, t, version in self._returned)

    def _new_site(self, name: str) -> str:
        call = self._calls[name]
        self._calls[name] += 1
        return f"{name}#{call}" if call else name

    def _earlier_site(self, name: str, index: int, tensor: Tensor) -> str | None:
        sites = [f"{name}#{call}" if call else name for call in range(self._calls[name])]
        for site in sites:
            returned = self.activation.get(f"{site}[{index}]" if index else site)
            if site not in self._recomputed and bits(returned) == bits(tensor):
                self._recomputed.add(site)
                return site
        return None


def _copy(view: Tensor) -> Tensor:
    """The same values with the same strides, so that the same kernels run, in memory of its own."""
    if 0 in view.stride():  # one entry in many places cannot be written
        return view.clone()
    return torch.empty_strided(view.shape, view.stride(), dtype=view.dtype).copy_(view)


def _keep(into: dict[str, Tensor], name: str, gradient: Tensor | None) -> None:
    if gradient is not None:
        into[name] = gradient.detach().clone()


def rms(tensor: Tensor) -> float:
    """Root mean square of the finite entries, by float64 numpy; NaN where there is none."""
    values = (tensor.to_dense() if tensor.layout is not torch.strided else tensor).double().numpy()
    values = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else float("nan")


@dataclass(frozen=True)
class Seen:
    """What an oracle saw: of each step, signal -> site -> tensor; and which views were changed in place."""

    steps: list[dict[str, dict[str, Tensor]]]
    overwritten: frozenset[str]


def disagreements(scope: GradScope, seen: Seen, hidden: Collection[str] = ()) -> list[str]:
    """Where a closed scope's recording lacks a row that must be there, or a row has another rms or number of entries.

    A gradient that an in-place change hides may be missing where that is said, of the sites that match `hidden`.
    """
    said = {name for name, why in scope.unobserved.items() if "was changed in place" in why}
    wrong = [f"{name} is said to be a view changed in place, and is none" for name in sorted(said - seen.overwritten)]
    excused = {name for name in said if any(fnmatchcase(name, pattern) for pattern in hidden)}
    for step, signals in enumerate(seen.steps):
        for signal, expected in signals.items():
            for name, problem in _disagreements(scope.recording, signal, step, expected):
                if not (signal == "activation_grad" and problem == "is missing" and name in excused):
                    wrong.append(f"{signal} of {name} {problem} at step {step}")
    return wrong


def _disagreements(
    recording: Recording, signal: Any, step: int, expected: Mapping[str, Tensor]
) -> Iterator[tuple[str, str]]:
    wanted = {name: tensor for name, tensor in expected.items() if tensor.numel() > 0}
    if not wanted:
        return
    column = {site.name: i for i, site in enumerate(recording.sites_of(signal))}
    row = list(recording.steps).index(step)
    measured, counts = (recording.values(signal, s)[row] if column else np.empty(0) for s in ("rms", "count"))
    for name, tensor in wanted.items():
        at = column.get(name)
        if at is None or not counts[at] > 0:
            yield name, "is missing"
        elif counts[at] != tensor.numel():
            yield name, f"has {counts[at]:.0f} entries, not {tensor.numel()},"
        elif not np.isclose(measured[at], rms(tensor), rtol=REL, atol=0, equal_nan=True):
            yield name, f"has rms {measured[at]:.9g}, not {rms(tensor):.9g},"
