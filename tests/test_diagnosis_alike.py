"""Parameters whose rows begin equal: those that stay so are told, those that part are not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.diagnosing import faults, trained, two_blobs


class Latents(nn.Module):
    """Rows that look at the input by attention, their mean then told apart."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.latents = nn.Parameter(latents.clone())
        self.key, self.head = nn.Linear(16, 8), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[:, None] * torch.linspace(0.5, 1.5, 6)[:, None]
        weights = (self.latents @ self.key(tokens).mT).softmax(-1)
        return self.head((weights @ tokens).mean(1))


def kinds(model: nn.Module, steps: int = 25) -> list[str]:
    return [one.rule for one in faults(trained(model, two_blobs(), F.cross_entropy, steps=steps, lr=0.1))]


def test_latents_that_begin_equal_stay_equal_and_are_told() -> None:
    recording = trained(Latents(torch.full((5, 8), 0.1)), two_blobs(), F.cross_entropy, steps=25, lr=0.1)
    (one,) = faults(recording)
    assert (one.rule, one.sites) == ("symmetric-units", ("latents",))
    assert recording.facts["alike_rows"] == {"parameters": ["latents"], "step": 20, "looks": 3}


def test_one_look_says_nothing_yet() -> None:
    assert kinds(Latents(torch.full((5, 8), 0.1)), steps=9) == []


def test_latents_that_differ_are_not_told() -> None:
    recording = trained(Latents(torch.randn(5, 8)), two_blobs(), F.cross_entropy, steps=25, lr=0.1)
    assert faults(recording) == []
    assert "alike_rows" not in recording.facts


class Adapter(nn.Module):
    """LoRA: a factor of zeros, whose rows part with the first step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(16, 16)
        self.down, self.up = nn.Parameter(torch.randn(4, 16) / 4), nn.Parameter(torch.zeros(16, 4))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.base(x) + x @ self.down.T @ self.up.T))


def test_rows_of_zeros_that_part_are_not_told() -> None:
    recording = trained(Adapter(), two_blobs(), F.cross_entropy, steps=25, lr=0.1)
    assert "symmetric-units" not in [one.rule for one in faults(recording)]
    assert recording.facts["alike_rows"]["parameters"] == []


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_not_trained_or_one_row_is_not_looked_at(frozen: bool) -> None:
    model = Latents(torch.full((5 if frozen else 1, 8), 0.1))
    model.latents.requires_grad_(not frozen)
    recording = trained(model, two_blobs(), F.cross_entropy, steps=25, lr=0.1)
    assert "alike_rows" not in recording.facts
