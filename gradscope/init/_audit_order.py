"""In which order the signal meets the layers, and where its scale is set anew on the way.

A norm makes the scale of what comes before it irrelevant, and so does a residual sum: the branch is a share of the
stream. The order is that of definition, or with a batch that of execution; there norms that are functions
(`F.layer_norm`) and sums of two tensors of one shape are seen too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode

from gradscope.init._audit_weight import Weight
from gradscope.init._audited import Stretch
from gradscope.init._definition import Follower
from gradscope.init._layer_fans import is_layer
from gradscope.init._operations import plain_name
from gradscope.init._trace import followers_by_execution

Place = str | None
"""The name of a layer, or None: here the scale is set anew."""

_NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize"})
_SUMS = frozenset({"add", "radd", "iadd"})


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a norm, by the name of its class, and holds no layers (`ConvNormAct` does)."""
    return "norm" in type(module).__name__.lower() and not any(is_layer(part) for part in module.modules())


def order_by_definition(model: nn.Module) -> list[Place]:
    """The layers and norms in the order in which the model defines them."""
    return [None if is_norm(module) else name for name, module in _places(model)]


def order_by_execution(model: nn.Module, inputs: Any) -> tuple[dict[str, Follower], list[Place]]:
    """What follows each layer, and the order, of one run; the model is as before afterwards."""
    operations = _Operations()
    handles = []
    for name, module in _places(model):
        place = None if is_norm(module) else name
        handles.append(module.register_forward_pre_hook(lambda *_, place=place: operations.order.append(place)))
    try:
        with operations:
            return followers_by_execution(model, inputs), operations.order
    finally:
        for handle in handles:
            handle.remove()


def stretches(weights: Sequence[Weight], order: Sequence[Place]) -> tuple[Stretch, ...]:
    """The plain layers of an order, cut at norms, sums, and layers of another kind (recurrent, attention)."""
    plain = {weight.module_name: weight for weight in weights if weight.plain}
    found: list[Stretch] = []
    here: list[Weight] = []
    for place in order:
        weight = None if place is None else plain.get(place)
        if weight is not None and weight.square > 0.0:
            here.append(weight)
        elif here:
            # Weights of zero end a residual branch that is to begin as nothing: else nothing would pass at all.
            found.append(Stretch(tuple(here), closed=place is None or weight is not None))
            here = []
    return (*found, *([Stretch(tuple(here))] if here else []))


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers and norms; not what computes a parameter (`_SpectralNorm` is no norm of the signal)."""
    computing = {id(m) for m in model.modules() if isinstance(m, ParametrizationList) for m in m.modules()}
    for name, module in model.named_modules():
        if id(module) not in computing and (is_layer(module) or is_norm(module)):
            yield name, module


class _Operations(TorchFunctionMode):
    """While entered, notes norms and residual sums among the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[Place] = []

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = plain_name(func)
        if name in _NORMS or (name in _SUMS and _are_two_of_a_shape(args)):
            self.order.append(None)
        return func(*args, **(kwargs or {}))


def _are_two_of_a_shape(args: Sequence[Any]) -> bool:
    first, second = (*args, None, None)[:2]
    tensors = isinstance(first, Tensor) and isinstance(second, Tensor)
    return tensors and bool(first.dim() > 1 and first.shape == second.shape)
