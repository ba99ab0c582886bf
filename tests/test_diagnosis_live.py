"""`on_finding`: told once when something begins and once when it is over, and nothing of it touches the training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradscope import Finding, GradScope, GradScopeWarning
from gradscope.diagnosis import Limits, Watch, diagnose
from gradscope.diagnosis._diagnose import judged
from gradscope.diagnosis._evidence import Evidence
from tests.diagnosing import recorded, shrunk, two_blobs


def plain(hidden: int = 2, width: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(hidden):
        layers += [nn.Linear(16 if i == 0 else width, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 4))
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.kaiming_normal_(m.weight)
            nn.init.zeros_(m.bias)
    nn.init.normal_(model[-1].weight, std=0.1)
    return model


def watched(
    steps: int,
    before: Callable[[int, nn.Module, torch.optim.Optimizer], None] = lambda step, model, optimizer: None,
    told: Callable[[Finding], Any] | None = None,
    batch: Callable[[int], tuple[Tensor, Tensor]] | None = None,
    every: int = 1,
    model: nn.Module | None = None,
    lr: float = 0.05,
) -> tuple[list[tuple[int, Finding]], nn.Module, GradScope]:
    """Train; what was told, each with the number of the step in which it was."""
    model = plain() if model is None else model
    batch = batch or two_blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    heard: list[tuple[int, Finding]] = []
    now = 0

    def hear(one: Finding) -> None:
        heard.append((now, one))

    with GradScope(model, optimizer, every=every, on_finding=told or hear) as scope:
        for now in range(steps):  # `hear` reads it
            before(now, model, optimizer)
            inputs, target = batch(now)
            loss = nn.functional.cross_entropy(model(inputs), target)
            optimizer.zero_grad()
            scope.note(loss=loss)
            loss.backward()
            optimizer.step()
    return heard, model, scope


def large_batch(at: int, until: int | None = None) -> Callable[[int], tuple[Tensor, Tensor]]:
    plain_batch = two_blobs()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        inputs, target = plain_batch(step)
        return (inputs * 300 if at <= step < (until or at + 1) else inputs), target

    return batch


def test_nothing_is_told_of_a_healthy_run() -> None:
    assert watched(150)[0] == []


def broken(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if step == 17:
        with torch.no_grad():
            model[2].weight[0, 0] = float("nan")  # type: ignore[index, operator, union-attr]


@pytest.mark.parametrize("every", [1, 10])
def test_a_nan_is_told_once_with_its_step_by_the_next_recorded_one(every: int) -> None:
    heard, _, _ = watched(60, broken, every=every)
    (step, one), *more = heard
    assert one.rule == "non-finite"
    assert more == []
    # A step is written when the next forward pass begins: between two looks there are at most `every` and that one.
    assert 17 <= step <= 17 + 2 * every
    assert one.steps[0] == 17 if every == 1 else 20


def test_a_spike_is_told_in_the_step_behind_it_and_not_at_the_next_regular_look() -> None:
    heard, _, _ = watched(40, batch=large_batch(33), lr=1e-4)
    step, one = heard[0]
    assert one.rule in ("gradient-spike", "input-scale")
    assert 33 <= step <= 34  # regular looks are ten steps apart: at 32 and 42
    assert 33 in one.steps


def killed(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if step == 12:
        with torch.no_grad():
            model[0].bias.fill_(-100.0)  # type: ignore[index, operator, union-attr]


def test_units_that_die_are_told_within_four_steps() -> None:
    # The loss of step 12 jumps; it is written in step 13, from which on unit moments are taken: 14 and 15 are two in a
    # row, as the rule demands, and 15 is written in 16. Regular looks have unit moments of steps 10, 20, 30.
    heard, _, scope = watched(40, killed)
    step, one = heard[0]
    assert (one.rule, one.frontier and one.frontier.name) == ("dead-units", "1")
    assert step <= 16
    assert [int(s) for s in scope.recording.steps[scope.recording.has_unit_moments][:5]] == [0, 10, 13, 14, 15]


def jump(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = 0.05 if step < 30 else 50.0


def test_a_learning_rate_that_jumps_is_told_within_five_steps() -> None:
    heard, _, _ = watched(60, jump)
    step, one = heard[0]
    assert one.rule in ("update-too-large", "gradient-spike")
    assert 30 <= step <= 35


def test_what_began_after_the_last_look_is_told_when_the_scope_is_closed() -> None:
    def left_out(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if step == 22:  # the rules have just been asked, and will be again in step 47
            optimizer.param_groups[0]["lr"] = 1e-12

    heard, _, scope = watched(40, left_out)
    (step, one) = heard[-1]
    assert (one.rule, one.steps, one.cleared) == ("update-too-small", (22,), None)
    assert step == 39
    assert [f.rule for f in scope.diagnose()] == ["update-too-small"]


def test_steps_that_promise_little_are_not_cleared_when_the_window_has_left_the_start() -> None:
    heard, _, _ = watched(250, lr=1e-5)
    assert [(one.rule, one.cleared) for _, one in heard] == [("update-too-small", None)]


def frozen_rate(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = 1e-12 if 30 <= step < 60 else 0.05


def test_a_finding_is_told_once_when_it_begins_and_once_when_it_is_over() -> None:
    heard, _, _ = watched(200, frozen_rate)
    told = [(one.rule, one.cleared is not None) for _, one in heard]
    assert told == [("update-too-small", False), ("update-too-small", True)]
    (begun, first), (over, last) = heard
    assert 30 < begun < 60 < over
    assert first.steps == (30,)
    assert last.cleared is not None
    assert 60 < last.cleared <= over


def test_a_note_that_becomes_worse_is_told_when_it_does() -> None:
    told: list[Finding] = []
    watch = Watch(told.append)
    mild = recorded(drifting(2.2), steps=6, notes=lambda s: {"loss": 1.0 / (s + 1)})
    assert [(one.rule, one.severity) for one in diagnose(mild)] == [("vanishing-gradient", "note")]
    watch.look(mild, 5)
    assert told == []
    watch.look(recorded(drifting(2.2, evened=False), steps=6), 6)
    assert [(one.rule, one.severity) for one in told] == [("vanishing-gradient", "warning")]


def drifting(decades: float, evened: bool = True) -> dict[tuple[str, str], dict[str, Any]]:
    """A gradient that vanishes; with `evened` the optimizer gives all layers the same update, as Adam does."""
    changes: dict[tuple[str, str], dict[str, Any]] = {}
    for i in range(11):
        size = 10 ** (-decades * (10 - i) / 10)
        changes["activation_grad", str(i)] = {"std": 1e-3 * size}
        if i % 2 == 0:
            changes["weight_grad", f"{i}.weight"] = {"std": 0.01 * size}
            if not evened:
                changes["update", f"{i}.weight"] = {"std": 1e-4 * size}
    return changes


def test_what_is_read_off_the_first_weights_is_not_cleared_when_the_window_has_left_them() -> None:
    told: list[Finding] = []
    watch = Watch(told.append)
    for steps in (50, 120, 130, 140):  # the window is of 100
        watch.look(recorded(shrunk(1.6), steps=steps), steps - 1)
    assert [(one.rule, one.cleared) for one in told] == [("init-mismatch", None)]


def test_an_error_in_it_warns_once_and_training_goes_on_bit_identically() -> None:
    def failing(one: Finding) -> None:
        raise ZeroDivisionError("of the user")

    with pytest.warns(GradScopeWarning, match="on_finding is called no more.*ZeroDivisionError: of the user") as told:
        _, with_it, scope = watched(40, spoiled, told=failing)
    assert len(told) == 1
    assert len(scope.recording.steps) == 40
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        without = bare(40)
    assert all(torch.equal(a, b) for a, b in zip(with_it.parameters(), without.parameters(), strict=True))


def spoiled(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = 1e-12 if 5 <= step < 30 else 0.05


def bare(steps: int) -> nn.Module:
    model, batch = plain(), two_blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(steps):
        spoiled(step, model, optimizer)
        inputs, target = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    return model


def test_only_the_last_steps_are_looked_at() -> None:
    recording = recorded(steps=150)
    evidence = Evidence(recording, Limits(), last=100)
    assert evidence.steps.tolist() == list(range(50, 150))
    assert not evidence.from_the_start
    assert list(judged(evidence, ["default-init"])) == []
    assert Evidence(recording, Limits()).from_the_start
