"""How the loss was made of the model's output: the names of the autograd nodes under it, which stay after a backward.

The forward hooks write on the node of each output, in its `metadata`, whose output it is. That keeps nothing alive,
and tells here where the model begins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import Tensor

MOST_NODES, MOST_INSIDE = 24, 8
"""Nodes that are named, and those of them within the model."""

_SITE, _ROOT = "gradscope_site", "gradscope_root"
_LEAF = "torch::autograd::AccumulateGrad"
_WITH_TARGET = ("MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy")
_WEIGHT_AS = ("TBackward", "TransposeBackward", "ToCopyBackward")
_CLASSES = ("NllLoss", "LogSoftmax", "Softmax")
_REDUCTIONS = {0: "none", 2: "sum"}
"""By torch's numbers, of which 1 is the mean."""

Node = Any


class LossGraph:
    """What is under the first loss that was told of.

    Attributes:
        wanted: none has been told of yet.
    """

    def __init__(self) -> None:
        self.wanted = True

    def mark(self, tensor: Tensor, site: str) -> None:
        """A module has returned this tensor; of several that return it the innermost comes first."""
        node: Node = tensor.grad_fn if self.wanted else None
        if node is not None:
            node.metadata.setdefault(_SITE, site)

    def mark_outputs(self, outputs: Iterable[Tensor]) -> None:
        """The model has returned these."""
        nodes: list[Node] = [tensor.grad_fn for tensor in outputs] if self.wanted else []
        for node in nodes:
            if node is not None:
                node.metadata[_ROOT] = True

    def of(self, loss: Tensor) -> list[dict[str, Any]] | None:
        """The nodes under a loss, breadth first; None where it has none, or an earlier one was told of."""
        if not self.wanted or loss.grad_fn is None:
            return None
        self.wanted = False
        return _nodes(loss.grad_fn)


def _nodes(first: Node) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    inside_so_far = 0
    todo: deque[tuple[Node, bool, int | None]] = deque([(first, False, None)])
    seen = {first}
    while todo and len(found) < MOST_NODES:
        node, below, under = todo.popleft()
        site = node.metadata.get(_SITE)
        inside = below or site is not None or _ROOT in node.metadata
        inside_so_far += inside
        if inside and inside_so_far > MOST_INSIDE:
            continue
        row: dict[str, Any] = {"node": node.name()}
        if site is not None:
            row["site"] = site
        if under is not None:
            row["under"] = under  # its place in this list: a loss of several terms has a branch for each
        if inside and not below:
            row["output"] = True  # of the model: the loss takes it
        elif not inside and _spreads(node):
            row["broadcast"] = True
        found.append(row | ({"inside": True} | _axis_of(node) if inside else _told_by(node)))
        for source, _ in node.next_functions:
            if source is not None and source not in seen and not _is_parameter(source):
                seen.add(source)
                todo.append((source, inside, len(found) - 1))
    return found


def _spreads(node: Node) -> bool:
    """Whether a column of N numbers becomes N × N: an output of (N, 1) that meets a target of (N,)."""
    sources = [(source, index) for source, index in node.next_functions if source is not None]
    if len(sources) != 1 or not node.name().startswith(("Sub", "Expand", "BinaryCrossEntropy")):
        return False
    try:
        before, after = (
            tuple(m.shape) for m in (sources[0][0]._input_metadata[sources[0][1]], node._input_metadata[0])
        )
    except (AttributeError, IndexError):
        return False
    return len(after) == 2 and after[0] == after[1] > 1 and before == (after[0], 1)


def _is_parameter(node: Node) -> bool:
    """Whether it is a leaf of the graph, or that leaf transposed or cast for its layer."""
    if node.name() == _LEAF:
        return True
    sources = [source for source, _ in node.next_functions if source is not None]
    return node.name().startswith(_WEIGHT_AS) and bool(sources) and all(s.name() == _LEAF for s in sources)


def _told_by(node: Node) -> dict[str, Any]:
    """What a loss's node tells of its target, of the number of classes, and whether it is a sum and no mean.

    Within the model nothing is asked: to unpack what was saved may run a checkpointed segment again.
    """
    name = node.name()
    reduction = _REDUCTIONS.get(int(getattr(node, "_saved_reduction", 1)))
    summed: dict[str, Any] = {} if reduction is None else {"reduction": reduction}
    try:
        if name.startswith(_WITH_TARGET):
            target = node._saved_target.detach()  # gone once the backward has run
            low, high = target.aminmax()
            size = float(target.double().square().mean().sqrt())
            facts = {"target_min": float(low), "target_max": float(high), "target_rms": size}
            return facts | summed | _target_from_model(node)
        if name.startswith(_CLASSES):
            return {"classes": _classes(node)} | summed
    except (AttributeError, IndexError, RuntimeError, TypeError):
        pass
    return summed


def _target_from_model(node: Node) -> dict[str, Any]:
    """Whether a loss compares two things that are both computed with a gradient, and has no target."""
    return {"both": True} if sum(source is not None for source, _ in node.next_functions) > 1 else {}


def _axis_of(node: Node) -> dict[str, Any]:
    """Over how many a softmax goes: nothing that was saved is unpacked for that."""
    if not node.name().startswith(("Softmax", "LogSoftmax")):
        return {}
    try:
        return {"classes": _classes(node)}
    except (AttributeError, IndexError):
        return {}


def _classes(node: Node) -> int:
    """The size of the axis over which a node compares classes: shapes are known also after the backward."""
    if node.name().startswith("NllLoss"):
        source, index = node.next_functions[0]
        shape = source._input_metadata[index].shape
        return int(shape[0] if len(shape) == 1 else shape[1])
    shape = node._input_metadata[0].shape
    dim = node._saved_dim
    return int(shape[dim if dim < len(shape) else dim - 2**64])
