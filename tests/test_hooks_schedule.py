"""Which steps are recorded, and that between them nothing of ours is on the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradscope import GradScope
from gradscope.hooks import _attachment, _schedule, _watch
from gradscope.hooks._schedule import FIRST, Budget
from gradscope.recording import SIGNALS


class Run:
    """A run of training whose every step takes as long as it is told to, on a clock of its own."""

    def __init__(self, budget: float) -> None:
        self.now = 0.0
        self.budget = Budget(budget, clock=lambda: self.now)
        self.step = 0
        self.recorded: list[int] = []
        self.spent: list[float] = []

    def go(self, steps: int, alone: Callable[[int], float], cost: Callable[[int], float]) -> None:
        for _ in range(steps):
            self.budget.began(self.step)
            due = self.budget.due(self.step)
            if due:
                self.recorded.append(self.step)
            self.spent.append(cost(self.step) if due else 0.0)
            self.now += alone(self.step) + self.spent[-1]
            self.step += 1


@pytest.mark.parametrize("cost", [0.0005, 0.005, 0.05, 0.5])
@pytest.mark.parametrize("budget", [0.01, 0.02, 0.1])
def test_a_budget_is_kept_and_used(cost: float, budget: float) -> None:
    run = Run(budget)
    run.go(20_000, lambda _: 0.01, lambda _: cost)
    share = sum(run.spent[FIRST:]) / (run.now - sum(run.spent))
    allowed = min(cost / 0.01 / 2, budget)  # at least every other step is left alone
    assert run.recorded[:FIRST] == list(range(FIRST))
    assert share <= budget * 1.0001
    assert share >= 0.4 * allowed


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_stalls_do_not_break_the_budget(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = np.exp(rng.normal(0, 0.05, 20_000))
    stall = np.where(rng.random(20_000) < 0.02, 1.0, 0.0)  # a checkpoint, an evaluation
    run = Run(0.02)
    run.go(20_000, lambda i: 0.01 * noise[i] + stall[i], lambda _: 0.004)
    assert sum(run.spent[FIRST:]) <= 0.02 * 0.01 * noise.sum()
    interval = np.diff(run.recorded[-50:])
    assert 20 <= np.median(interval) <= 40  # 0.004 / 0.01 / 0.02 = 20, and never more often


def test_a_budget_follows_what_recording_comes_to_cost() -> None:
    run = Run(0.02)
    run.go(3_000, lambda _: 0.01, lambda _: 0.001)
    assert np.median(np.diff(run.recorded[-20:])) == 5
    run.go(20_000, lambda _: 0.01, lambda _: 0.01)
    assert np.median(np.diff(run.recorded[-20:])) == 50
    run.go(20_000, lambda _: 0.1, lambda _: 0.01)
    assert np.median(np.diff(run.recorded[-20:])) == 5


def test_what_each_tenth_recorded_step_costs_more_is_in_the_budget() -> None:
    run, number = Run(0.02), 0

    def cost(step: int) -> float:
        nonlocal number
        number += 1
        if number % 10 == 1:
            run.budget.slow(step, 10)
            return 0.011
        return 0.001

    run.go(20_000, lambda _: 0.01, cost)
    share = sum(run.spent[FIRST:]) / (run.now - sum(run.spent))
    assert np.median(np.diff(run.recorded[-50:])) == 10  # (0.001 + 0.010 / 10) / 0.01 / 0.02, and not 5
    assert 0.019 <= share <= 0.02 * 1.0001


@pytest.mark.parametrize("switch", [0.0002, 0.0005, 0.002])
@pytest.mark.parametrize("cost", [0.0, 0.0005])
def test_what_is_done_for_a_recorded_step_within_others_is_in_the_budget(switch: float, cost: float) -> None:
    """The hooks go on at the end of the step before, and off in the step after."""
    run, spent = Run(0.02), 0.0

    def aside() -> None:
        nonlocal spent
        run.now += switch
        spent += switch

    for _ in range(5_000):
        run.budget.began(run.step)
        due = run.budget.due(run.step)
        if not due and run.recorded[-1:] == [run.step - 1]:
            run.budget.aside(aside)
        run.recorded += [run.step] * due
        run.now += 0.01 + cost * due
        run.step += 1
        if not due and run.budget.due(run.step):
            run.budget.aside(aside)
    later = len(run.recorded) - FIRST
    assert later > 100
    assert (spent + later * cost) / (0.01 * run.step) <= 0.02 * 1.001
    assert (spent + later * cost) / (0.01 * run.step) >= 0.4 * min(0.02, (2 * switch + cost) / 0.01 / 2)


def test_steps_that_cost_more_between_others_than_the_first_ones_did_are_in_the_budget() -> None:
    run = Run(0.02)
    run.go(400, lambda _: 0.01, lambda step: 0.001 if step < FIRST else 0.002)
    assert run.recorded[FIRST:] == [30, 35, *range(45, 400, 10)]  # what step 30 costs is known when 35 is taken


class Together(Run):
    """One of several ranks: in the step after a recorded one it merges, and learns of the interval of all."""

    def __init__(self, budget: float, merge: float, others: Callable[[], int] = lambda: 0) -> None:
        super().__init__(budget)
        self.budget = Budget(budget, clock=lambda: self.now, together=True)
        self.merge = merge
        self.others = others

    def go(self, steps: int, alone: Callable[[int], float], cost: Callable[[int], float]) -> None:
        for _ in range(steps):
            self.budget.began(self.step)
            merges = bool(self.recorded) and self.recorded[-1] == self.step - 1
            if self.budget.due(self.step):
                self.recorded.append(self.step)
                self.spent.append(cost(self.step))
            else:
                self.spent.append(0.0)
            if merges:
                self.spent[-1] += self.merge
                self.budget.agreed(max(self.budget.proposal(), self.others()))
            self.now += alone(self.step) + self.spent[-1]
            self.step += 1


@pytest.mark.parametrize("cost", [0.0005, 0.005, 0.05])
@pytest.mark.parametrize("merge", [0.0005, 0.005, 0.05])
@pytest.mark.parametrize("budget", [0.02, 0.5])
def test_with_ranks_the_merge_in_the_step_after_is_in_the_budget(cost: float, merge: float, budget: float) -> None:
    run = Together(budget, merge)
    run.go(20_000, lambda _: 0.01, lambda _: cost)
    alone = run.now - sum(run.spent)
    share = sum(run.spent[FIRST + 1 :]) / alone
    allowed = min((cost + merge) / 0.01 / 3, budget)  # two of three steps are left alone
    assert run.recorded[:FIRST] == list(range(FIRST))
    assert np.diff(run.recorded[FIRST:]).min() >= 3  # else none would tell what a step costs without us
    assert share <= budget * 1.0001 + (cost + merge) / alone  # that of the first after those is not yet waited for
    assert share >= 0.4 * allowed


def test_the_longest_interval_of_any_rank_is_taken() -> None:
    run = Together(0.02, 0.001, others=lambda: 77)
    run.go(5_000, lambda _: 0.01, lambda _: 0.001)
    assert set(np.diff(run.recorded[FIRST + 1 :])) == {77}


def _loop(scope: GradScope, optimizer: torch.optim.Optimizer, steps: int, each: Callable[[int], Any]) -> None:
    torch.manual_seed(1)
    for step in range(steps):
        optimizer.zero_grad()
        scope(torch.randn(8, 6)).square().mean().backward()
        each(step)
        optimizer.step()


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def test_auto_records_the_first_twenty_steps_and_then_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

    monkeypatch.setattr(_schedule.Budget.__init__, "__defaults__", (lambda: Clock.now,))
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def each(step: int) -> None:
        Clock.now += 0.01 + (0.004 if len(model[0]._forward_hooks) else 0)

    with GradScope(model, optimizer, every="auto", budget=0.04) as scope:
        _loop(scope, optimizer, 200, each)
    steps = scope.recording.steps.tolist()
    assert steps[:FIRST] == list(range(FIRST))
    assert steps[FIRST:] == list(range(30, 200, 10))
    assert scope.recording.facts["every"] == "auto"
    assert scope.recording.facts["budget"] == 0.04


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"every": "often"}, "every is 'often'; None, 'auto' or a whole number from 1 is allowed"),
        ({"every": "atuo"}, "None, 'auto' or a whole number from 1 is allowed; did you mean 'auto'?"),
        ({"histograms": "smaple"}, "True, False or 'sample' is allowed; did you mean 'sample'?"),
        ({"budget": 0}, r"budget is 0; a share of the training time in \(0, 1\] is allowed"),
        ({"budget": "2%"}, r"budget is '2%'; a share of the training time in \(0, 1\] is allowed"),
        ({"mode": "sampled"}, "mode is 'sampled'; 'exact' or 'sample' is allowed; did you mean 'sample'?"),
        ({"histograms": "some"}, "histograms is 'some'; True, False or 'sample' is allowed"),
        (
            {"every": "auto", "on_nonfinite": "warn"},
            "every is 'auto' and on_nonfinite is 'warn', for which each step is read and no budget is kept; "
            "give every a number",
        ),
    ],
)
def test_what_is_not_allowed_is_named(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GradScope(nn.Linear(2, 2), **given)


def _ours(model: nn.Module) -> int:
    within = [m for m in model.modules() if m is not model]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in within)
    return hooks + sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


def test_between_recorded_steps_no_hook_is_within_the_model() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seen = []
    with GradScope(model, optimizer, every=5) as scope:
        _loop(scope, optimizer, 12, lambda step: seen.append(_ours(model)))
    assert [n > 0 for n in seen] == [step % 5 == 0 for step in range(12)]
    assert _ours(model) == 0


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("closing", ["optimizer", "foreign", "step()"])
def test_steps_recorded_after_a_rest_are_those_of_a_scope_that_never_rests(
    closing: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where torch keeps its hooks in a way that we do not know."""
    if not known:
        monkeypatch.setattr(_attachment, "_BY_ENTRY", False)
        monkeypatch.setattr(_watch, "_DIRECTLY", False)
    found = []
    for every in (1, 4):
        model = _net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with GradScope(model, optimizer if closing == "optimizer" else None, every=every) as scope:
            torch.manual_seed(1)
            for _ in range(13):
                optimizer.zero_grad()
                scope(torch.randn(8, 6)).square().mean().backward()
                optimizer.step()
                if closing == "step()":
                    scope.step()
        found.append(scope.recording)
        assert _ours(model) == 0
    each, fourth = found
    assert fourth.steps.tolist() == [0, 4, 8, 12]
    for signal in SIGNALS:
        for stat in ("mean", "std", "min", "max", "zero_fraction"):
            assert np.array_equal(each.values(signal, stat)[::4], fourth.values(signal, stat)), (signal, stat)


def test_a_model_of_which_only_parts_are_called_is_never_left_alone() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradScope(model, optimizer, every=3) as scope:
        for _ in range(7):
            optimizer.zero_grad()
            model[0](torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
    assert scope.recording.steps.tolist() == [0, 3, 6]
    assert np.isfinite(scope.recording.values("activation_grad", "rms")).all()


def test_the_hooks_stay_on_where_a_pass_returns_nothing_that_tells_of_its_backward() -> None:
    class KeepsItsLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.kept = _net(), []

        def forward(self, x: torch.Tensor) -> None:
            seen.append(_ours(self.net) > 0)
            self.kept.append(self.net(x).square().mean())

    seen: list[bool] = []
    model = KeepsItsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradScope(model, optimizer, every=3) as scope:
        for _ in range(7):
            optimizer.zero_grad()
            model(torch.randn(8, 6))
            model.kept.pop().backward()
            optimizer.step()
    assert all(seen)
    assert scope.recording.steps.tolist() == [0, 3, 6]


def test_the_hooks_stay_on_once_parts_of_the_model_were_called_between_passes() -> None:
    model, seen = _net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradScope(model, optimizer, every=5) as scope:
        for made in range(60):
            optimizer.zero_grad()
            called = model[0] if made % 4 == 2 else model
            called(torch.randn(8, 6)).square().mean().backward()
            seen.append(_ours(model) > 0)
            optimizer.step()
    assert not seen[1]
    assert all(seen[6:])
    assert scope.recording.steps.tolist() == list(range(0, 60, 5))


@pytest.mark.parametrize("closing", ["optimizer", "foreign"])
def test_an_optimizer_that_steps_twice_a_pass_makes_one_step_however_often_is_recorded(closing: str) -> None:
    for every in (1, 4):
        model, seen = _net(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with GradScope(model, optimizer if closing == "optimizer" else None, every=every) as scope:
            for made in range(13):
                optimizer.zero_grad()
                scope(torch.randn(8, 6)).square().mean().backward()
                scope.note(made=made)
                seen.append(_ours(model) > 0)
                optimizer.step()
                optimizer.step()
        assert scope.recording.steps.tolist() == list(range(0, 13, every))
        assert scope.recording.notes("made").tolist() == list(range(0, 13, every))
        assert seen == [made % every == 0 for made in range(13)]


def test_after_one_step_without_a_pass_the_hooks_rest_again() -> None:
    model, seen = _net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradScope(model, optimizer, every=10) as scope:
        for made in range(100):
            optimizer.zero_grad()
            scope(torch.randn(8, 6)).square().mean().backward()
            seen.append(_ours(model) > 0)
            optimizer.step()
            if made == 5:
                optimizer.step()
    assert not any(seen[1:6])
    assert all(seen[6:20])  # are parts of the model called?
    assert sum(seen[30:]) == 7


class _Hidden(nn.Module):
    """Returns its loss in an object that nobody can look into."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Callable[[], Tensor]:
        loss = self.layer(x).square().mean()
        return lambda: loss


def test_a_model_that_returns_no_tensor_is_recorded_at_each_step_that_is_due() -> None:
    model = _Hidden()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradScope(model, optimizer, every=3) as scope:
        for _ in range(7):
            optimizer.zero_grad()
            scope(torch.randn(8, 6))().backward()
            optimizer.step()
    assert scope.recording.steps.tolist() == [0, 3, 6]


def test_layers_that_were_added_during_a_rest_are_recorded() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradScope(model, optimizer, every=4) as scope:
        _loop(scope, optimizer, 2, lambda step: None)
        model.append(nn.Linear(2, 3))
        optimizer.add_param_group({"params": list(model[5].parameters())})
        _loop(scope, optimizer, 3, lambda step: None)
    names = [site.name for site in scope.recording.sites_of("weight_grad")]
    assert "5.weight" in names
    assert np.isfinite(scope.recording.values("activation_grad", "rms")[-1]).all()
