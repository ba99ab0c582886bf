"""Rules of what is drawn: dropout, and the new entries that it is made of."""

from __future__ import annotations

from typing import Any

import torch

from gradscope.theory.prediction import _grid
from gradscope.theory.prediction._alike import Alike
from gradscope.theory.prediction._capture import Operation
from gradscope.theory.prediction._flow import Flow
from gradscope.theory.prediction._registry import rule
from gradscope.theory.prediction._value import Root, Value


@rule("aten.native_dropout")
def dropout(flow: Flow, operation: Operation, x: Any, p: float, train: Any = True) -> Any:
    """A share p of the entries is 0, the others are larger."""
    if train is False or p == 0.0:
        return [x, None]
    alike = x.alike.scaled(same=1.0 / (1.0 - p))
    kept = torch.cat([x.values / (1.0 - p), torch.zeros(1, dtype=torch.float64)])
    weights = torch.cat([_grid.WEIGHTS * (1.0 - p), torch.full((1,), p, dtype=torch.float64)])
    root = Root.of(_grid.quantiles(kept, weights), alike)

    flow.later(lambda: flow.give(x, root.gradient.scaled(same=1.0 / (1.0 - p))))
    return [Value(x.dims, root, root.h), None]


@rule("aten.empty_like", "aten.zeros_like", "aten.ones_like", "aten.rand_like")
def like(flow: Flow, operation: Operation, x: Any, *args: Any, **kwargs: Any) -> Any:
    """New entries in the form of others."""
    return Value(x.dims, None, torch.tensor(1.0 if "ones" in operation.name else 0.0, dtype=torch.float64))


@rule("aten.bernoulli")
def chance(flow: Flow, operation: Operation, x: Any, p: float = 0.5, *args: Any, **kwargs: Any) -> Any:
    """1 for a share p of the entries, else 0: each by itself."""
    h = (1.0 - p < _grid.CDF).double()
    root = Root.of(h, Alike(p, p * p, p * p, p * p))
    return Value(x.dims, root, root.h)
