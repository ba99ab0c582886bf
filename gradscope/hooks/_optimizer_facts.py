"""What the recording says of the optimizers: which were seen to step, with what settings, on which parameters."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradscope.hooks._tensors import is_capturing

SETTINGS = ("lr", "weight_decay", "momentum", "betas", "eps")

_SCHEDULED = ("lr", "momentum", "betas")
"""What a schedule changes each step: of these the fact has the first value, and a step's note its learning rate."""


@dataclass
class _Seen:
    """An optimizer that has stepped: a weak reference to it, its fact, and what makes that another."""

    optimizer: weakref.ref[torch.optim.Optimizer]
    key: object
    fact: dict[str, Any]
    within_backward: bool


class OptimizerFacts:
    """Keeps the fact `optimizers`.

    Args:
        names: gives the model's parameters by name, as they are now.
        tell: takes the fact.
    """

    def __init__(self, names: Callable[[], Iterable[tuple[str, Tensor]]], tell: Callable[[str, object], None]) -> None:
        self._names = names
        self._tell = tell
        self._seen: dict[int, _Seen] = {}
        self._changed = False

    def stepping(self, optimizer: torch.optim.Optimizer, *, recorded: bool, within_backward: bool) -> None:
        """It is about to step; in a step that is recorded it is looked at whether it still holds the same."""
        known = self._seen.get(id(optimizer))
        if known is not None and known.optimizer() is not optimizer:  # another, where one was
            self._seen[-len(self._seen) - 1] = self._seen.pop(id(optimizer))
            known = None
        if known is not None and not (recorded and known.key != _key(optimizer)):
            return
        names = {id(parameter): name for name, parameter in self._names()}
        fact = {"class": type(optimizer).__name__, "groups": [_group(g, names) for g in optimizer.param_groups]}
        self._seen[id(optimizer)] = _Seen(weakref.ref(optimizer), _key(optimizer), fact, within_backward)
        self._changed = True

    def flush(self) -> None:
        """Tell of what has changed."""
        if self._changed:
            self._changed = False
            self._tell("optimizers", self._facts())

    def _facts(self) -> list[dict[str, Any]]:
        """One for each; those that each hold a parameter and run within the backward are one where they are alike."""
        facts: list[dict[str, Any]] = []
        alike: dict[str, dict[str, Any]] = {}
        for seen in self._seen.values():
            if not seen.within_backward or len(seen.fact["groups"]) != 1:
                facts.append(seen.fact)
                continue
            (group,) = seen.fact["groups"]
            settings = json.dumps([seen.fact["class"], {k: v for k, v in group.items() if k != "parameters"}])
            if settings not in alike:
                alike[settings] = {"class": seen.fact["class"], "groups": [group | {"parameters": []}]}
                facts.append(alike[settings])
            alike[settings]["groups"][0]["parameters"] += group["parameters"]
        return facts


def learning_rate(optimizer: torch.optim.Optimizer) -> tuple[int, Any] | None:
    """How many entries its largest group has, and that group's learning rate: a number, or a tensor's copy."""
    groups = [(sum(p.numel() for p in group["params"]), group) for group in optimizer.param_groups if "lr" in group]
    if not groups:
        return None
    entries, group = max(groups, key=lambda each: each[0])
    lr = group["lr"]
    return entries, lr.detach().clone() if isinstance(lr, Tensor) else lr


def _key(optimizer: torch.optim.Optimizer) -> object:
    """What makes its fact another: parameters, and settings that no schedule changes."""
    return [
        (tuple(map(id, group["params"])), *(_plain(group[s]) for s in SETTINGS if s in group and s not in _SCHEDULED))
        for group in optimizer.param_groups
    ]


def _group(group: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    settings = {name: _plain(group[name]) for name in SETTINGS if name in group}
    return settings | {"parameters": [names[id(p)] for p in group["params"] if id(p) in names]}


def _plain(value: Any) -> Any:
    """A setting as the file keeps it; a tensor is read where that may be."""
    if isinstance(value, Tensor):
        return None if is_capturing() else float(value)
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value
