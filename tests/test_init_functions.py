"""Activations that are functions, or modules that are shared: what is said where they cannot be seen, and the cure."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradscope import GradScopeWarning, diagnose, init, probe

INPUTS = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))


class Deep(nn.Module):
    """Twenty layers of torch's default weights; ReLU as a function, or one module for all."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(20)])
        self.head = nn.Linear(64, 10)
        self.act = nn.ReLU() if shared else F.relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return self.head(x)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Conv2d(16 if i else 3, 16, 3, padding=1) for i in range(16)])
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
CASES = [(lambda: Deep(False), INPUTS), (lambda: Deep(True), INPUTS), (Convolutions, IMAGES)]


@pytest.mark.parametrize(("make", "batch"), CASES, ids=["function", "shared", "convolutions"])
def test_the_remedy_that_a_finding_prints_cures_it(make: type[nn.Module], batch: torch.Tensor) -> None:
    import gradscope

    model = make()
    (first, *_) = diagnose(probe(model, batch))
    assert first.remedy == "gradscope.init.initialize(model, inputs=batch)"
    exec(first.remedy, {"gradscope": gradscope, "model": model, "batch": batch})  # as a user pastes it
    assert [one for one in diagnose(probe(model, batch)) if one.severity != "note"] == []


@pytest.mark.parametrize(("make", "batch"), CASES, ids=["function", "shared", "convolutions"])
def test_without_a_batch_it_is_said_that_functions_are_not_seen(make: type[nn.Module], batch: torch.Tensor) -> None:
    with pytest.warns(GradScopeWarning, match=r"\d+ layers have no activation module behind them .* inputs=batch"):
        init.initialize(make())
    (note,) = (one for one in init.audit(make()) if one.rule == "functions-not-seen")
    assert note.severity == "note"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        init.initialize(make(), inputs=batch)
        init.initialize(make(), activation="relu")
        init.initialize(make(), "he_normal")
    assert "functions-not-seen" not in [one.rule for one in init.audit(make(), inputs=batch)]


def linear() -> nn.Module:
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))


def modules() -> nn.Module:
    return nn.Sequential(*(m for _ in range(5) for m in (nn.Linear(8, 8), nn.Tanh())))


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)


@pytest.mark.parametrize("make", [linear, modules, attention])
def test_nothing_is_said_where_there_is_nothing_that_could_be_a_function(make: type[nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        init.initialize(make())
    assert "functions-not-seen" not in [one.rule for one in init.audit(make())]
