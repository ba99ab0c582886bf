"""How far a signal strays over the layers of a model, in decades: what schemes of whole models are compared by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from gradscope.init._model_schemes._branches import Branches
from gradscope.init._operations import is_linear_like
from gradscope.recording._profile import in_flow, representable
from gradscope.theory.prediction._flow import Flow
from gradscope.theory.prediction._value import Value

_NOTHING = 1e-36


def branch_ends(found: Branches) -> frozenset[str]:
    """Names of the layers that a residual branch ends in: they are meant to be smaller than others."""
    ends = (name for branch in found.branches for name in (branch.layers or branch.weights)[-1:])
    return frozenset(name.rpartition(".")[0] for name in ends)


def decades(rms: Sequence[float]) -> float:
    """Between the largest and the smallest, negative where the signal shrinks on its way; of fewer than two 0.

    >>> decades([1.0, 0.1, 10.0]), decades([1.0, 0.0])
    (2.0, -36.0)
    """
    if len(rms) < 2:
        return 0.0
    values = np.array(rms, dtype=np.float64)
    logs = np.log10(np.where(representable(values), values, _NOTHING))
    low, high = int(logs.argmin()), int(logs.argmax())
    return float(logs[high] - logs[low]) * (1.0 if high > low else -1.0)


def inner_layers(layers: Sequence[str], ends: frozenset[str]) -> list[int]:
    """Places of the layers without the last one and those at branches' ends; all where fewer than two would stay."""
    inner = [i for i, name in enumerate(layers[:-1]) if name not in ends]
    return inner if len(inner) > 1 else list(range(len(layers)))


def predicted_decades(flow: Flow, model: nn.Module, found: Branches) -> tuple[float, float]:
    """Decades of pre-activations and of their gradients in a prediction that has gone both ways.

    They are those of `gradscope.predict`'s recording, without making one.
    """
    ends, modules = branch_ends(found), dict(model.named_modules())
    seen = [(one, value) for one in flow.program.returned if isinstance(value := flow.known.get(one.value), Value)]

    def strayed(backward: bool) -> float:
        there = [(one, value) for one, value in seen if not backward or value.root is not None]
        layers = [pair for pair in there if is_linear_like(modules[pair[0].module])]
        if len(layers) < 2:
            layers = [pair for pair in there if pair[0].index == 0]
        squares = [value.gradient if backward else value.alike.same for _, value in layers]
        rms = [max(squares[i], 0.0) ** 0.5 for i in inner_layers([one.module for one, _ in layers], ends)]
        return decades(in_flow(rms, "backward" if backward else "forward").tolist())

    return strayed(backward=False), strayed(backward=True)
