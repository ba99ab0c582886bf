"""`audit`: what is wrong with a model's initial weights, without data and without a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gradscope.activations import Activation, get
from gradscope.diagnosis import Findings
from gradscope.init import _rules  # noqa: F401  (they register themselves)
from gradscope.init._audit_order import order_by_definition, order_by_execution, stretches
from gradscope.init._audit_signs import signs_of_training
from gradscope.init._audit_weight import Weight
from gradscope.init._audited import OF_SCALE, RULES, Audited
from gradscope.init._definition import Follower, followers_by_definition
from gradscope.init._layer_fans import weight_blocks
from gradscope.init._model_schemes._branches import branches
from gradscope.init._slots import Slot, slots


def audit(model: nn.Module, inputs: Any = None) -> Findings:
    """What is wrong with the initial weights of a model, each with its factor, its reference and what mends it.

    No batch is needed and nothing is run; the model stays as it is. Each remedy is one line of Python for a namespace
    with `model`, `gradscope`, `torch`, `nn` and `copy`, and `inputs` where they were given. Where the model is not at
    its initialization (norms that are no longer constant, batches counted, weights that no initialization draws), they
    are not measured against initial ones, and a finding says so.

    How bad it is follows from the decades of rms that a row of layers loses or gains: one is a warning, two are an
    error. A norm or a residual sum behind a row makes its scale irrelevant; it is a note then, and a warning where two
    decades are lost before the norm, whose epsilon begins to count there.

    Args:
        model: any module; frozen parameters are looked at too.
        inputs: one batch, as `initialize` takes it: with it the model is run once, so that the order of execution,
            activations and norms that are functions, and residual sums are seen.

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
        if is_lazy(parameter) or parameter.device.type == "meta":
            where = "has no shape yet" if is_lazy(parameter) else "is on the meta device"
            raise ValueError(f"{name} {where}: audit measures weights that exist")
    audited = _audited(model, inputs)  # under the caller's grad mode: without gradients some modules take another path
    with torch.no_grad():
        rules = [name for name in RULES if not (audited.signs and name in OF_SCALE)]
        return Findings(finding for rule in rules for finding in audited.findings(rule))


def _audited(model: nn.Module, inputs: Any) -> Audited:
    if inputs is None:
        following, order = followers_by_definition(model), order_by_definition(model)
    else:
        following, order = order_by_execution(model, inputs)
    residual = None if inputs is None else branches(model, inputs)
    every = tuple(slots(model))
    weights = tuple(_weights(every, following))
    signs = signs_of_training(model, weights)
    return Audited(model, every, weights, stretches(weights, order), inputs is not None, residual, signs)


def _weights(every: tuple[Slot, ...], following: Mapping[str, Follower]) -> Iterator[Weight]:
    met: set[int] = set()
    for slot in every:
        blocks = (weight_blocks(slot.module) or {}).get(slot.name, ())
        if not blocks or id(slot.originals[0]) in met:
            continue
        met.add(id(slot.originals[0]))
        value = slot.read()
        if not value.is_floating_point() or not value.numel():
            continue
        follower = following.get(slot.module_name, Follower(None))
        for block in blocks:
            activation = _elementwise(block.activation or follower.activation)
            yield Weight(
                slot.module_name, slot.path, block.name, slot.module, block.of(value), value, block.fans, activation
            )


def _elementwise(name: str | None) -> Activation | None:
    activation = get(name)
    return activation if activation.elementwise and activation.name != "identity" else None
