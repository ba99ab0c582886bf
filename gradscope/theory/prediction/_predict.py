"""`predict`: what theory expects of every site of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.theory.prediction._capture import capture, tensors
from gradscope.theory.prediction._flow import Flow, Moments


def flow_of(model: nn.Module, inputs: Any, parameters: Mapping[str, Moments] | None = None) -> Flow:
    """The prediction of one pass."""
    if isinstance(inputs, Tensor):
        args, kwargs = (inputs,), {}
    elif isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    else:
        args, kwargs = tuple(inputs), {}
    program = capture(model, lambda: model(*args, **kwargs), list(tensors((args, kwargs))))
    flow = Flow(program, parameters or {}, program.tensors)
    with torch.enable_grad():
        flow.run()
        flow.back()
    return flow
