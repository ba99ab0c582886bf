"""What schemes of recurrent layers have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from gradscope.init._choice import AUTO
from gradscope.init._model_schemes._base import Setting
from gradscope.init._steps import Step

_HIDDEN = re.compile(r"weight_hh(_l\d+(_reverse)?)?$")
_INPUT_BIAS = re.compile(r"bias_ih(_l\d+(_reverse)?)?$")

_KINDS = {"LSTM": (nn.LSTM, nn.LSTMCell), "GRU": (nn.GRU, nn.GRUCell), "RNN": (nn.RNN, nn.RNNCell)}

GATES: dict[str, dict[str, int]] = {
    "LSTM": {"input": 0, "forget": 1},
    "GRU": {"update": 1},
}
"""Place of the gates that decide how long a state is kept, in torch's packed weights."""


def kind(module: nn.Module) -> str:
    """`LSTM`, `GRU` or `RNN` of a recurrent layer or cell, empty for anything else."""
    return next((name for name, kinds in _KINDS.items() if isinstance(module, kinds)), "")


def is_hidden_weight(step: Step) -> bool:
    """Whether the parameter takes the state of the step before."""
    return bool(kind(step.slot.module)) and _HIDDEN.fullmatch(step.slot.name) is not None


def is_input_bias(step: Step) -> bool:
    """Whether the parameter is the bias beside the input; the other one beside the state is redundant."""
    return bool(kind(step.slot.module)) and _INPUT_BIAS.fullmatch(step.slot.name) is not None


def orthogonal_states(setting: Setting) -> Iterator[Step]:
    """The recommended weights, and orthogonal ones, gate by gate, for the state of the step before."""
    hidden = [step.slot.path for step in setting.steps() if is_hidden_weight(step)]
    yield from setting.steps({**dict.fromkeys(hidden, "orthogonal"), "*": AUTO})


def check_gated(setting: Setting, scheme: str) -> None:
    """Raises ValueError where there is no gate to set."""
    gated = [module for module in setting.model.modules() if kind(module) in GATES]
    if not gated:
        raise ValueError(f"model has no LSTM and no GRU; {scheme} sets the biases of their gates")
    if not any(getattr(module, "bias", False) for module in gated):
        raise ValueError(f"model: its LSTM and GRU have bias=False; {scheme} sets the biases of their gates")
