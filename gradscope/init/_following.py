"""Which activation follows each layer: found by definition, by execution, or given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from gradscope import activations
from gradscope.init._definition import Follower, followers_by_definition
from gradscope.init._trace import followers_by_execution


@dataclass(frozen=True)
class Following:
    """What follows the layers of a model.

    Attributes:
        by_layer: name of a layer → what follows it.
        order: names of the layers, as they are called or, without inputs, defined.
        source: where that was found, in words.
    """

    by_layer: dict[str, Follower]
    order: tuple[str, ...]
    source: str

    def before(self) -> dict[str, str | None]:
        """Name of a layer → the activation behind the layer called before it; None for the first."""
        found: dict[str, str | None] = {}
        last: str | None = None
        for layer in self.order:
            found[layer] = last
            last = self.by_layer[layer].activation
        return found


def following(model: nn.Module, activation: str | activations.Activation | None, inputs: Any) -> Following:
    """What follows each layer; with `activation` that one, but for the last layer."""
    defined = followers_by_definition(model)
    if inputs is None:
        by_layer, order = defined, tuple(defined)
        source = "the next activation in the order of definition (functions are not seen; pass inputs=)"
    else:
        called = followers_by_execution(model, inputs)
        order = tuple(called)
        uncalled = {name: Follower(guess.activation, "not called with these inputs") for name, guess in defined.items()}
        by_layer = uncalled | called
        source = "the first activation that the output met, with the inputs given"
    if activation is not None:
        name = activations.get(activation).name
        by_layer = {layer: Follower(name) for layer in by_layer} | dict.fromkeys(order[-1:], Follower(None))
        source = f"{name}, as given, but for the last layer"
    return Following(by_layer, order, source)
