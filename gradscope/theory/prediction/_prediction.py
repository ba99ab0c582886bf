"""One pass of a model, captured and predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.theory.prediction import (  # they register their rules
    _attention,
    _chance,
    _forms,
    _norms,
    _pointwise,
    _pooling,
    _recurrent,
    _weighted,
)
from gradscope.theory.prediction._capture import capture
from gradscope.theory.prediction._constant import Moments
from gradscope.theory.prediction._flow import Flow

__all__ = ["REGISTERED", "Flow", "predicted"]

REGISTERED = (_attention, _chance, _forms, _norms, _pointwise, _pooling, _recurrent, _weighted)


def predicted(
    model: nn.Module, run: Callable[[], Any], inputs: Sequence[Tensor], parameters: Mapping[str, Moments] | None = None
) -> Flow:
    """The values and gradients of `run()`, which gives the model these inputs.

    Args:
        model: whose modules are told apart.
        run: one forward pass.
        inputs: tensors that it gives the model, those on the meta device without values.
        parameters: moments of parameters that have no values, by name.
    """
    with torch.enable_grad():
        program = capture(model, run, list(inputs))
        flow = Flow(program, parameters or {}, program.tensors)
        flow.run()
        flow.back()
    return flow
