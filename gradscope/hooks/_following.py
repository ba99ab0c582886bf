"""Which activation follows each layer, read from the autograd graph of one forward pass.

The graph knows functional activations (`F.relu`, `torch.tanh`) as well as modules, and which tensor feeds which,
so nothing has to be traced a second time. From a layer's node the consumers are followed through what keeps the
values (reshapes), rescales them (norms, pooling) or adds a shortcut, until an activation's node is met.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

K = TypeVar("K")
Node = Any  # torch.autograd.graph.Node; its saved attributes differ by operation

_RESHAPES = "View UnsafeView Alias ReshapeAlias Transpose T Permute Squeeze Unsqueeze Clone ToCopy Expand"
_NORMS = "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm NativeLayerNorm NativeGroupNorm FusedRmsNorm NativeDropout"
_POOLS = "AvgPool1D AvgPool2D AvgPool3D MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveAvgPool2D Mean"
_PASSED_THROUGH = frozenset(f"{_RESHAPES} {_NORMS} {_POOLS} Add".split())
_SCALINGS = frozenset({"Mul", "Div"})
_LEAF = "torch::autograd::AccumulateGrad"


def _keeps_shape_of_signal(node: Node) -> bool:
    name = _operation(node)
    if name in _SCALINGS:  # by a constant, a dropout mask or a parameter; two signals make a gate, which is none
        signals = [source for source, _ in node.next_functions if source is not None and source.name() != _LEAF]
        return len(signals) == 1
    return name in _PASSED_THROUGH


def _elu(node: Node) -> str:
    if abs(float(node._saved_scale) - 1.0507009873554805) < 1e-6:
        return "selu"
    return "elu"


def _hardtanh(node: Node) -> str:
    return "relu6" if float(node._saved_min_val) == 0.0 and float(node._saved_max_val) == 6.0 else "hardtanh"


def _leaky_relu(node: Node) -> str:
    slope = float(node._saved_negative_slope)
    return "leaky_relu" if slope == 0.01 else f"leaky_relu({slope:g})"


def _clamp(node: Node) -> str | None:
    low = node._saved_min  # a tensor, where each entry has its own
    return "relu" if isinstance(low, (int, float)) and low == 0 and getattr(node, "_saved_max", None) is None else None


def _gelu(node: Node) -> str:
    return "gelu_tanh" if node._saved_approximate == "tanh" else "gelu"


_ACTIVATIONS: dict[str, str | Callable[[Node], str | None]] = {
    "Relu": "relu",
    "LeakyRelu": _leaky_relu,
    "Clamp": _clamp,
    "ClampMin": _clamp,
    "PreluKernel": "prelu",
    "Hardtanh": _hardtanh,
    "Elu": _elu,
    "Celu": "celu",
    "Gelu": _gelu,
    "Silu": "silu",
    "Mish": "mish",
    "Softplus": "softplus",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "Hardsigmoid": "hardsigmoid",
    "Hardswish": "hardswish",
    "Sin": "sin",
}
_NAME = re.compile(r"^(\w+?)Backward\d*$")


def _operation(node: Node) -> str:
    match = _NAME.match(node.name())
    return match[1] if match else ""


def activation_of(node: Node) -> str | None:
    """The name of the activation whose backward this node is, None when it is none."""
    found = _ACTIVATIONS.get(_operation(node))
    return found(node) if callable(found) else found


class Consumers:
    """Who takes what each node of the graph below some outputs gives."""

    def __init__(self, outputs: Iterable[Node]) -> None:
        self._consumers: dict[Node, list[Node]] = {}
        self._nodes: set[Node] = set()
        todo = [node for node in outputs if node is not None]
        while todo:
            node = todo.pop()
            if node in self._nodes:
                continue
            self._nodes.add(node)
            for source, _ in node.next_functions:
                if source is not None:
                    self._consumers.setdefault(source, []).append(node)
                    todo.append(source)

    def __contains__(self, node: Node) -> bool:
        return node in self._nodes

    def changed_in_place(self, node: Node) -> bool:
        """Whether a view of what this node made was changed in place."""
        return any(consumer.name().endswith("CopySlices") for consumer in self.of(node))

    def of(self, node: Node) -> list[Node]:
        """The nodes that use this one's output."""
        return self._consumers.get(node, [])


def following_activations(
    consumers: Consumers, layers: Mapping[K, Node], modules: Mapping[Node, str], fed: Mapping[Node, str]
) -> dict[K, str]:
    """For each layer, the activation that follows its output.

    Args:
        consumers: of the graph below the model's outputs.
        layers: key -> `grad_fn` of that layer's output when it was returned.
        modules: `grad_fn` of the output of each activation module -> the activation's name.
        fed: `grad_fn` of its input -> the same: a module may compute its activation from other functions.
    """
    found = {key: _first_activation(node, consumers, modules, fed) for key, node in layers.items()}
    return {key: name for key, name in found.items() if name is not None}


def _first_activation(
    node: Node,
    consumers: Consumers,
    modules: Mapping[Node, str],
    fed: Mapping[Node, str],
    limit: int = 12,
) -> str | None:
    front, visited = [node], {node}
    for _ in range(limit):
        for reached in front:
            if (found := fed.get(reached)) is not None:
                return found
        following = [c for n in front for c in consumers.of(n) if c not in visited]
        visited.update(following)
        for consumer in following:
            if (found := modules.get(consumer) or activation_of(consumer)) is not None:
                return "silu" if found == "sigmoid" and _gates_its_input(consumer, consumers) else found
        front = [c for c in following if _keeps_shape_of_signal(c)]
    return None


def _gates_its_input(sigmoid: Node, consumers: Consumers) -> bool:
    """x·sigmoid(x), written out."""
    (source, _) = sigmoid.next_functions[0]
    products = (c for c in consumers.of(sigmoid) if _operation(c) == "Mul")
    return any(source is other for product in products for other, _ in product.next_functions)
