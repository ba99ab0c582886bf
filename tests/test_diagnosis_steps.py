"""What the steps promise to first order, beside what the loss does; and steps that something takes back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradscope import GradScope
from gradscope.diagnosis import Limits
from gradscope.diagnosis._evidence import Evidence
from gradscope.diagnosis._learning import coherence, promised
from gradscope.recording import Recording
from tests.diagnosing import faults, trained, two_blobs

Optimizer = Callable[..., torch.optim.Optimizer]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))


def run(optimizer: Optimizer, lr: float, steps: int = 100) -> Recording:
    return trained(network(), two_blobs(), F.cross_entropy, steps=steps, lr=lr, optimizer=optimizer)


def kinds(recording: Recording) -> list[str]:
    return [one.rule for one in faults(recording)]


def test_plain_descent_promises_the_rate_times_the_square_of_the_gradient() -> None:
    model, batch = network(), two_blobs()
    inputs, target = batch(0)
    F.cross_entropy(model(inputs), target).backward()
    square = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    evidence = Evidence(run(torch.optim.SGD, 0.1, steps=1), Limits())
    assert promised(evidence)[0] == pytest.approx(0.1 * square, rel=1e-5)


def test_on_a_line_the_loss_falls_by_what_small_steps_promise() -> None:
    # A loss that is linear in the weights has no curvature: first order is all there is.
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    model = Line().double()
    inputs = torch.randn(32, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    with GradScope(model, optimizer, every=1) as scope:
        for _ in range(20):
            optimizer.zero_grad()
            loss = 10 + model(inputs).mean()
            scope.note(loss=loss)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    could = promised(Evidence(scope.recording, Limits()))
    assert losses[0] - losses[-1] == pytest.approx(could[:-1].sum(), rel=1e-5)


@pytest.mark.parametrize(("optimizer", "lr"), [(torch.optim.SGD, 1e-4), (torch.optim.Adam, 1e-6)])
def test_steps_that_cannot_lower_the_loss_are_too_small(optimizer: Optimizer, lr: float) -> None:
    (one,) = faults(run(optimizer, lr))
    assert (one.rule, one.direction) == ("update-too-small", "both")


@pytest.mark.parametrize(
    ("optimizer", "lr"), [(torch.optim.SGD, 0.03), (torch.optim.SGD, 0.3), (torch.optim.Adam, 1e-3)]
)
def test_rates_that_lower_the_loss_are_neither_too_small_nor_too_large(optimizer: Optimizer, lr: float) -> None:
    assert kinds(run(optimizer, lr)) == []


def test_a_warm_up_may_begin_with_steps_that_promise_nothing() -> None:
    made: list[torch.optim.Optimizer] = []

    def warmed(parameters: object, lr: float) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=lr))  # type: ignore[arg-type]
        return made[0]

    def warm(step: int) -> None:
        made[0].param_groups[0]["lr"] = 6e-4 * (step + 1) / 60

    recording = trained(network(), two_blobs(), F.cross_entropy, 60, optimizer=warmed, before=warm)
    evidence = Evidence(recording, Limits())
    assert promised(evidence).sum() / np.median(evidence.loss) < 0.03
    assert kinds(recording) == []


def test_a_loss_at_its_floor_is_not_one_that_steps_are_too_small_for() -> None:
    # Targets that are noise about what the model says: there is nothing to learn, and steps go to and fro.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 1))
    truth = copy.deepcopy(model)

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(64, 16, generator=generator)
        with torch.no_grad():
            return x, truth(x) + torch.randn(64, 1, generator=generator)

    recording = trained(model, batch, F.mse_loss, steps=100, lr=2e-4)
    evidence = Evidence(recording, Limits())
    assert promised(evidence).sum() / np.median(evidence.loss) < 0.03
    assert coherence(evidence) < 3 / math.sqrt(100)
    assert kinds(recording) == []


def rectified() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.mark.parametrize(("lr", "said"), [(1.0, []), (2.0, ["update-too-large"])])
def test_steps_that_leap_over_what_they_go_for_are_too_large(lr: float, said: list[str]) -> None:
    # At 1 the loss ends at 4e-4; at 2 it goes up and down, and ends at ln 4, what guessing costs.
    recording = trained(rectified(), two_blobs(), F.cross_entropy, steps=100, lr=lr)
    assert kinds(recording) == said
    assert (recording.notes("loss")[-1] > 1.0) == bool(said)


@pytest.mark.parametrize(("kept", "said"), [(0.01, ["update-too-small"]), (1.0, [])])
def test_weights_that_are_written_back_do_not_move_as_the_updates_say(kept: float, said: list[str]) -> None:
    model, batch = network(), two_blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mean = copy.deepcopy(model)
    with GradScope(model, optimizer, every=1) as scope:
        for step in range(60):
            inputs, target = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), target)
            scope.note(loss=loss)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for average, weight in zip(mean.parameters(), model.parameters(), strict=True):
                    average.lerp_(weight, kept)
                    weight.copy_(average)
    found = faults(scope.recording)
    assert [one.rule for one in found] == said
    if said:
        assert found[0].value == pytest.approx(1 - kept, abs=2e-3)
