"""Depth that no site shows: what a recurrent layer forgets, by theory, and models of plain functions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.diagnosing import faults, found, trained, two_blobs

LENGTH, WIDTH = 30, 48


class Last(nn.Module):
    def __init__(self, orthogonal: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.RNN(6, WIDTH, batch_first=True), nn.Linear(WIDTH, 4)
        if orthogonal:
            nn.init.orthogonal_(self.rnn.weight_hh_l0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def first_of_many(step: int) -> tuple[Tensor, Tensor]:
    """The class is that of the first element; the others are noise."""
    generator = torch.Generator().manual_seed(step)
    target = torch.randint(4, (64,), generator=generator)
    x = 0.5 * torch.randn(64, LENGTH, 6, generator=generator)
    x[:, 0, :4] = 3.0 * F.one_hot(target, 4)
    return x, target


def test_a_recurrent_layer_of_torchs_default_forgets_by_what_its_weights_say() -> None:
    model = Last(orthogonal=False)
    kept = math.sqrt(WIDTH) * float(model.rnn.weight_hh_l0.detach().double().square().mean().sqrt())
    recording = trained(model, first_of_many, F.cross_entropy, steps=60, lr=3e-3, optimizer=torch.optim.Adam)
    (one,) = (f for f in faults(recording) if f.rule == "vanishing-gradient")
    assert one.frontier is not None
    assert one.frontier.name == "rnn"
    assert one.value == pytest.approx(LENGTH * math.log10(kept), rel=1e-4)


def test_a_recurrent_layer_whose_weights_keep_the_gradient_does_not() -> None:
    recording = trained(
        Last(orthogonal=True), first_of_many, F.cross_entropy, steps=60, lr=3e-3, optimizer=torch.optim.Adam
    )
    assert not found(recording, "vanishing-gradient")


class ByHand(nn.Module):
    """Weights of its own, and functions; no module inside."""

    def __init__(self, std: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.ParameterList([nn.Parameter(std * torch.randn(*s)) for s in ((16, 64), (64, 64), (64, 4))])

    def forward(self, x: Tensor) -> Tensor:
        for weight in list(self.weights)[:-1]:
            x = F.relu(x @ weight)
        return x @ self.weights[-1]


@pytest.mark.parametrize(("std", "said"), [(1.0, ["exploding-activation"]), ((2 / 64) ** 0.5, [])])
def test_a_model_of_functions_whose_output_is_decades_above_its_input_is_told(std: float, said: list[str]) -> None:
    recording = trained(ByHand(std), two_blobs(), F.cross_entropy, steps=30, lr=1e-3)
    assert [one.rule for one in faults(recording)] == said
    if said:  # by He: each ReLU layer multiplies the mean square by fan_in/2 · std², the last by fan_in
        expected = math.log10(math.sqrt(16 * 32 * 32 * 1.0))
        assert faults(recording)[0].value == pytest.approx(expected, abs=0.3)
