"""The first NaN or infinity: where, on which way, made there or carried; and the steps that led to it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradscope import GradScope, GradScopeWarning, NonFiniteError
from gradscope.recording import Recording

BAD = 33
"""The step of the fault: not one of those that are due, and 20 and more after the first."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.act = nn.ReLU(inplace=True)
        self.fault: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x))
        if self.fault == "function":
            h = h / 0.0
        h = self.b(h)
        if self.fault == "slope":
            h = (h - h).abs().sqrt()  # 0 forward, infinite slope
        return self.c(h)


def train(fault: str, tmp_path: Path, on_nonfinite: str | None = "warn", every: int = 10) -> tuple[GradScope, Net]:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with GradScope(model, every=every, on_nonfinite=on_nonfinite, log=tmp_path / "run.gscope") as scope:
        for step in range(BAD + 3):
            optimizer.zero_grad()
            model.fault = fault if step == BAD else None
            x = torch.randn(4, 8)
            if step == BAD and fault == "batch":
                x[1, 2] = torch.nan
            loss = model(x).square().mean()
            if step == BAD and fault == "loss":
                loss = loss * torch.inf
            loss.backward()
            if step == BAD and fault == "optimizer":
                optimizer.param_groups[0]["lr"] = float("inf")
            optimizer.step()
    return scope, model


EXPECTED = {
    "batch": ("activation", "<input>", False, "<input>"),
    "function": ("activation", "b", False, "act"),
    "slope": ("activation_grad", "b", True, "c"),
    "loss": ("activation_grad", "c", False, "<loss>"),
    "optimizer": ("update", "a.weight", True, ""),
}


@pytest.mark.parametrize("fault", EXPECTED)
def test_the_first_site_its_direction_and_whether_it_was_made_there_are_named(fault: str, tmp_path: Path) -> None:
    with pytest.warns(GradScopeWarning, match=f"step {BAD}: ") as caught:
        scope, _ = train(fault, tmp_path)
    assert len(caught) == 1
    first = scope.first_nonfinite
    assert first is not None
    assert (first.signal, first.site, first.producer, first.source) == EXPECTED[fault]
    assert first.step == BAD
    assert str(caught[0].message) == first.sentence
    loaded = Recording.load(tmp_path / "run.gscope")
    assert loaded.facts["first_nonfinite"]["site"] == first.site
    assert loaded.notes_at(loaded.steps.tolist().index(BAD))["nonfinite"] == first.sentence


def test_a_layer_that_overflows_is_the_producer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    with torch.no_grad():
        model[1].weight.fill_(1e38)
        model[0].bias.fill_(1e3)
    with pytest.warns(GradScopeWarning, match="it is made there"), GradScope(model, on_nonfinite="warn") as scope:
        scope(torch.ones(2, 4)).sum().backward()
    assert (scope.first_nonfinite.site, scope.first_nonfinite.producer) == ("1", True)


def test_the_steps_before_it_are_there_although_each_tenth_was_asked_for(tmp_path: Path) -> None:
    with pytest.warns(GradScopeWarning):
        scope, _ = train("slope", tmp_path)
    assert scope.recording.steps.tolist() == [0, 10, 20, 30, 31, 32, BAD]
    values = scope.recording.values("activation_grad", "rms")
    assert np.isfinite(values[:-1]).all()


def test_only_the_last_twenty_steps_are_kept_for_that(tmp_path: Path) -> None:
    with pytest.warns(GradScopeWarning):
        scope, _ = train("slope", tmp_path, every=1000)
    assert scope.recording.steps.tolist() == [0, *range(BAD - 20, BAD + 1)]


def test_raise_comes_before_the_optimizer_has_spoilt_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.fault = "slope"
    for given in (None, optimizer):
        with GradScope(model, given, on_nonfinite="raise") as scope:
            model(torch.randn(4, 8)).sum().backward()
            with pytest.raises(NonFiniteError, match="on the way back from 'c'") as caught:
                optimizer.step()
        assert caught.value.first == scope.first_nonfinite
        assert all(p.isfinite().all() for p in model.parameters())
        optimizer.zero_grad()
    with GradScope(model, on_nonfinite="raise") as scope:
        model(torch.randn(4, 8)).sum().backward()
        with pytest.raises(NonFiniteError):
            scope.step()
    scope = GradScope(model, on_nonfinite="raise")
    model(torch.randn(4, 8)).sum().backward()
    with pytest.raises(NonFiniteError):
        scope.close()
    assert scope.recording.steps.tolist() == [0]


def test_dump_keeps_the_batch_that_did_it_and_the_steps_before(tmp_path: Path) -> None:
    with pytest.warns(GradScopeWarning, match=r"its batch is in .*run\.nonfinite-step33\.pt"):
        scope, _ = train("batch", tmp_path, on_nonfinite="dump")
    kept = torch.load(tmp_path / f"run.nonfinite-step{BAD}.pt", weights_only=True)
    assert kept["step"] == BAD
    assert kept["sentence"] == scope.first_nonfinite.sentence
    ((args, kwargs),) = kept["batches"]
    assert kwargs == {}
    assert args[0].isnan().nonzero().tolist() == [[1, 2]]
    assert scope.recording.steps.tolist() == [0, 10, 20, 30, 31, 32, BAD]


def test_a_dump_without_a_path_says_where_it_is_and_keeps_a_recording_there() -> None:
    model = nn.Linear(2, 1)
    scope, x = GradScope(model, on_nonfinite="dump"), torch.tensor([[1.0, torch.inf]])
    scope(x).sum().backward()
    x.zero_()  # the batch is a copy
    with pytest.warns(GradScopeWarning, match="its batch is in") as caught:
        scope.close()
    path = Path(str(caught[0].message).rpartition(" is in ")[2])
    assert torch.load(path, weights_only=True)["batches"][0][0][0].tolist() == [[1.0, float("inf")]]
    assert Recording.load(path.with_suffix(".gscope")).steps.tolist() == [0]
    path.unlink()


def test_without_the_watch_it_is_known_of_recorded_steps_and_nothing_is_warned() -> None:
    model = nn.Linear(2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with GradScope(model) as scope:
            scope(torch.tensor([[1.0, torch.nan]])).sum().backward()
    assert scope.first_nonfinite is not None
    assert scope.first_nonfinite.site == "<input>"


def test_an_overflow_under_a_scaler_is_no_alarm_but_the_skipped_step_names_its_site() -> None:
    for given in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        with (
            warnings.catch_warnings(),
            GradScope(model, optimizer if given else None, scaler=scaler, on_nonfinite="raise") as scope,
        ):
            warnings.simplefilter("error")
            for step in range(3):
                optimizer.zero_grad()
                loss = model(torch.randn(3, 4)).square().mean() * (1e38 if step == 1 else 1)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        assert scope.recording.skipped.tolist() == [False, True, False]
        assert scope.recording.notes_at(1)["overflow_site"] == "1"
        assert "overflow_site" not in scope.recording.notes_at(2)
        assert scope.first_nonfinite is None


def test_micro_steps_are_told_apart() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scope = GradScope(model, optimizer, on_nonfinite="warn")
    for part in range(3):
        x = torch.ones(1, 2)
        if part == 2:
            x[0, 0] = torch.nan
        scope(x).sum().backward()
    optimizer.step()
    with pytest.warns(GradScopeWarning, match="the batch itself"):
        scope.close()
    assert scope.first_nonfinite.micro_step == 2


def _guarded_loop(end: str) -> GradScope:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scope = GradScope(model, every=10, on_nonfinite="warn")
    for step in range(6):
        optimizer.zero_grad()
        x = torch.randn(4, 8)
        if step == 3:
            x[0, 0] = torch.inf
        loss = model(x).square().mean()
        if not loss.isfinite():
            if end == "break":
                break
            continue
        loss.backward()
        optimizer.step()
    scope.close()
    return scope


@pytest.mark.parametrize("end", ["continue", "break"])
def test_a_loop_that_leaves_a_bad_loss_out_before_its_backward_is_told_all_the_same(end: str) -> None:
    with pytest.warns(GradScopeWarning, match="step 3: .* of '<input>'"):
        scope = _guarded_loop(end)
    assert scope.recording.steps.tolist()[:4] == [0, 1, 2, 3]
    assert scope.recording.skipped.tolist()[3] is (end == "break")


def test_a_loop_that_leaves_out_every_bad_loss_is_told_at_once_and_piles_up_nothing() -> None:
    model = Net()
    with torch.no_grad():
        model.a.weight[0, 0] = torch.nan  # as after an update that went wrong: no loss is finite any more
    scope = GradScope(model, on_nonfinite="warn")

    def losses(count: int) -> list[float]:
        return [loss.item() for _ in range(count) if not (loss := model(torch.randn(4, 8)).square().mean()).isfinite()]

    with pytest.warns(GradScopeWarning, match="step 0: .* in the weight of 'a.weight'"):
        assert len(losses(3)) == 3
    for _ in range(40):
        assert len(losses(1)) == 1
        open_step = scope._stepper.open_step()
        assert open_step is not None
        assert len(open_step.forwards) <= 2
    scope.close()
    assert scope.recording.steps.tolist() == [0]
    assert scope.recording.skipped.tolist() == [True]


def test_a_layer_is_not_blamed_for_what_was_not_recorded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with GradScope(model, sites="1") as scope:
        scope(torch.ones(2, 4)).sum().backward()
    assert (scope.first_nonfinite.site, scope.first_nonfinite.producer) == ("1", False)
    with GradScope(model, signals=("activation",)) as scope:
        scope(torch.ones(2, 4)).sum().backward()
    assert (scope.first_nonfinite.site, scope.first_nonfinite.producer) == ("0", False)
