"""A recurrent cell, step by step: each call is a site of its own, so that time is depth."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope import Recording, probe

Array = NDArray[np.float64]


class Unrolled(nn.Module):
    """A cell over inputs `(steps, batch, features)`; returns the last state, of an LSTM the cell state `c`."""

    def __init__(self, cell: nn.RNNCell | nn.LSTMCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, inputs: Tensor, *state: Tensor) -> Tensor:
        gated = isinstance(self.cell, nn.LSTMCell)
        for x in inputs:
            state = self.cell(x, state) if gated else (self.cell(x, *state),)
        return state[-1]


def at_rest(cell: nn.RNNCell | nn.LSTMCell, steps: int, batch: int = 8) -> tuple[Tensor, ...]:
    """Inputs and states of 0, at which a cell without biases of its inputs stays: the network is linear there."""
    state = torch.zeros(batch, cell.hidden_size)
    inputs = torch.zeros(steps, batch, cell.input_size)
    return (inputs, state, state) if isinstance(cell, nn.LSTMCell) else (inputs, state)


def recorded(cell: nn.RNNCell | nn.LSTMCell, inputs: tuple[Tensor, ...]) -> Recording:
    """One pass forward and backward, N(0, 1) as the gradient of the last state."""
    return probe(Unrolled(cell), inputs)


def gradient_over_time(recording: Recording, output: int = 0) -> Array:
    """Rms of the gradient of a state, `(steps,)`: of h, or with `output=1` of an LSTM's c."""
    profile = recording.profile("activation_grad")
    return profile.values[[site.module == "cell" and site.output == output for site in profile.sites]]
