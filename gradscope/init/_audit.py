"""`audit`: what is wrong with a model's initial weights, without data and without a forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.activations import Activation, get
from gradscope.diagnosis import Finding, Findings
from gradscope.init._definition import followers_by_definition
from gradscope.init._fans import Fans, tensor_fans
from gradscope.init._layer_fans import weight_blocks
from gradscope.init._slots import Slot, slots
from gradscope.init._trace import followers_by_execution
from gradscope.theory import second_moment

SURE = 5.0
"""Standard errors within which a measured variance counts as one that was asked for."""


@dataclass(frozen=True)
class Weight:
    """A weight, or a block of a packed one, that acts as one matrix.

    Attributes:
        path: its qualified name.
        block: gate or projection, empty where the weight is one matrix.
        module: whose it is.
        value: the entries.
        fans: the true ones.
        whole: fans that torch gives the whole parameter, by its shape.
        activation: that follows; None where none does, or it is not elementwise.
    """

    path: str
    block: str
    module: nn.Module
    value: Tensor
    fans: Fans
    whole: Fans
    activation: Activation | None

    @property
    def name(self) -> str:
        """With the block."""
        return f"{self.path}[{self.block}]" if self.block else self.path

    @property
    def square(self) -> float:
        """Mean square of the entries."""
        return float(self.value.double().square().mean())

    @property
    def error(self) -> float:
        """Relative standard error of `square`, by the entries' own fourth moment."""
        squares = self.value.double().square().ravel()
        mean = float(squares.mean())
        return float(squares.std()) / mean / math.sqrt(squares.numel()) if mean > 0.0 and squares.numel() > 1 else 0.0

    @property
    def forward(self) -> float:
        """fan_in·E[w²]: factor of the mean square from what goes in to what comes out."""
        return self.fans.fan_in * self.square

    @property
    def needed(self) -> float:
        """What `forward` has to be for the activation behind to keep the mean square 1."""
        return 1.0 if self.activation is None else 1.0 / second_moment(self.activation)

    def has(self, variance: float) -> bool:
        """Whether the entries have this variance, as far as so many of them can tell."""
        return abs(self.square / variance - 1.0) <= SURE * self.error + 1e-6 if variance > 0.0 else self.square == 0.0


@dataclass(frozen=True)
class Audited:
    """A model, as the rules see it.

    Attributes:
        model: itself.
        slots: its parameters.
        weights: with known fans, in the order of definition, each once.
        trained: why it is not at its initialization, empty where nothing speaks for that.
    """

    model: nn.Module
    slots: tuple[Slot, ...]
    weights: tuple[Weight, ...]
    trained: str


Rule = Callable[[Audited], Iterator[Finding]]
RULES: dict[str, Rule] = {}
OF_SCALE: set[str] = set()
"""Rules that judge the size of weights: of a trained model that says nothing."""


def audit_rule(name: str, *, of_scale: bool = True) -> Callable[[Rule], Rule]:
    """Register a rule under the name that its findings bear."""

    def register(rule: Rule) -> Rule:
        RULES[name] = rule
        if of_scale:
            OF_SCALE.add(name)
        return rule

    return register


def audit(model: nn.Module, *, inputs: Any = None) -> Findings:
    """What is wrong with the initial weights of a model, each with its factor, its reference and what mends it.

    No batch is needed and nothing is run; the model stays as it is. Where it is not at its initialization (running
    statistics have moved, norms are no longer 1 and 0), its weights are not measured against initial ones, and a
    finding says so.

    Args:
        model: any module; frozen parameters are looked at too.
        inputs: one batch, as `initialize` takes it: activations that are functions are then seen.

    Raises:
        TypeError: model is no module.
        ValueError: it has parameters on the meta device, or without a shape.

    >>> deep = nn.Sequential(*(m for _ in range(30) for m in (nn.Linear(64, 64), nn.ReLU())))
    >>> [(one.severity, one.rule) for one in audit(deep)]
    [('error', 'default-init')]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is of type {type(model).__name__}; audit takes a torch.nn.Module")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter) or parameter.device.type == "meta":
            where = "has no shape yet" if isinstance(parameter, nn.UninitializedParameter) else "is on the meta device"
            raise ValueError(f"{name} {where}: audit measures weights that exist")
    from gradscope.init import _audit_rules  # noqa: F401  (they register themselves)

    found = Audited(model, every := tuple(slots(model)), tuple(_weights(model, every, inputs)), _trained(model))
    rules = {name: rule for name, rule in RULES.items() if not (found.trained and name in OF_SCALE)}
    with torch.no_grad():
        return Findings(finding for rule in rules.values() for finding in rule(found))


def _weights(model: nn.Module, every: tuple[Slot, ...], inputs: Any) -> Iterator[Weight]:
    following = followers_by_definition(model) if inputs is None else followers_by_execution(model, inputs)
    met: set[int] = set()
    for slot in every:
        blocks = (weight_blocks(slot.module) or {}).get(slot.name, ())
        if not blocks or id(slot.originals[0]) in met:
            continue
        met.add(id(slot.originals[0]))
        value = slot.read()
        follower = following.get(slot.module_name)
        for block in blocks:
            name = block.activation or (None if follower is None else follower.activation)
            activation = None if name is None else get(name)
            if activation is not None and (not activation.elementwise or activation.name == "identity"):
                activation = None
            yield Weight(
                slot.path, block.name, slot.module, block.of(value), block.fans, tensor_fans(value), activation
            )


def _trained(model: nn.Module) -> str:
    for name, module in model.named_modules():
        tracked = getattr(module, "num_batches_tracked", None)
        if isinstance(tracked, Tensor) and tracked.device.type != "meta" and int(tracked) > 0:
            return f"{name} has counted {int(tracked)} batches"
        kind = type(module).__name__
        if "Norm" in kind and isinstance(weight := getattr(module, "weight", None), Tensor) and weight.numel() > 1:
            values = weight.detach().double()
            if float(values.std()) > 1e-6 * float(values.abs().max()):
                return f"{name}.weight differs from unit to unit"
    return ""
