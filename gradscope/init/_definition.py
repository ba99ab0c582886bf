"""Which activation follows each layer, guessed from the order in which a model defines its modules."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gradscope.init._layer_fans import is_layer
from gradscope.init._operations import activation_of_call, activation_of_module

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SO_MANY = 8

_FEED_FORWARD = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class Follower:
    """The name of the activation that follows a layer, None where nothing does, and a note."""

    activation: str | None
    note: str = ""


def followers_by_definition(model: nn.Module) -> dict[str, Follower]:
    """Layer name -> the activation module defined next, before another layer, in the order of definition.

    What is called as a function cannot be seen here, a module that is used twice is seen once, and nothing
    says that the modules are called in this order: with an example input `trace` knows better. Torch's own
    Transformer layers are known: `linear1` is followed by their `activation`, function or module.
    """
    following: dict[str, str | None] = {}
    within: set[nn.Module] = set()  # activations that belong to a Transformer layer's linear1
    known: dict[str, str | None] = {}
    waiting: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, _FEED_FORWARD):
            known[f"{name}.linear1".lstrip(".")] = _feed_forward_activation(module)
            if isinstance(module.activation, nn.Module):
                within.add(module.activation)
        activation = activation_of_module(module)
        if activation is not None and module not in within:
            following.update(dict.fromkeys(waiting, activation.name))
            waiting = []
        elif is_layer(module):
            # An attention's out_proj is a module of its own but never called: it shares the attention's fate.
            waiting = [*waiting, name] if _is_attention_output(model, name) else [name]
            following[name] = None
    return {name: Follower(activation) for name, activation in (following | known).items()}


def functions_suspected(model: nn.Module) -> int:
    """How many layers have no activation module behind them, in a model that must call its activations as functions.

    0 where these are fewer than eight, which lose no more than a decade and a half by it; where the model has more than
    one layer that an activation module follows; where its layers stand in `Sequential`s, which call nothing else; and
    where it has attention, whose projections nothing follows.
    """
    modules = dict(model.named_modules())
    if any(isinstance(m, nn.MultiheadAttention) or "attention" in type(m).__name__.lower() for m in modules.values()):
        return 0
    found = list(followers_by_definition(model).items())
    if sum(follower.activation is not None for _, follower in found) > 1:
        return 0
    plain = [name for name, follower in found[:-1] if follower.activation is None]
    free = [
        name
        for name in plain
        if isinstance(modules[name], _PLAIN) and not isinstance(modules.get(name.rpartition(".")[0]), nn.Sequential)
    ]
    return len(free) if len(free) >= _SO_MANY else 0


def _feed_forward_activation(module: nn.Module) -> str | None:
    function = module.activation
    if isinstance(function, nn.Module):
        found = activation_of_module(function)
    else:
        found = activation_of_call(getattr(function, "__name__", ""), (), {})
    return None if found is None else found.name


def _is_attention_output(model: nn.Module, name: str) -> bool:
    parent, _, own = name.rpartition(".")
    return own == "out_proj" and isinstance(model.get_submodule(parent), nn.MultiheadAttention)
