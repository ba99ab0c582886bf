"""Every way of training: what belongs to a step, what is counted once, what goes on after an interrupt."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import tracemalloc
import warnings
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gradscope import GradScope, GradScopeWarning
from gradscope.hooks._clipping import ClipSamples
from gradscope.recording import Recording


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def _batch(seed: int = 0, rows: int = 5) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))


def column(recording: Recording, signal: str, name: str, stat: str = "rms") -> np.ndarray:
    (index,) = [i for i, s in enumerate(recording.sites_of(signal)) if s.name == name]
    return recording.values(signal, stat)[:, index]


def _rms(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


def test_micro_steps_belong_to_one_step_without_anybody_saying_so() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradScope(model, every=1) as scope:
        for step in range(3):
            optimizer.zero_grad()
            for part in range(4):
                model(_batch(4 * step + part)).square().mean().backward()
            optimizer.step()
    assert scope.recording.steps.tolist() == [0, 1, 2]
    assert (column(scope.recording, "activation", "1", "count") == 4 * 5 * 6).all()
    assert np.isfinite(scope.recording.values("update", "rms")).all()


@pytest.mark.parametrize("given", [False, True])
def test_gradients_thrown_away_make_a_skipped_step(given: bool) -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradScope(model, optimizer if given else None, every=1) as scope:
        for step in range(4):
            loss = model(_batch(step)).square().mean()
            loss.backward()
            if step != 2:  # a loop that leaves a bad batch out
                optimizer.step()
            optimizer.zero_grad()
    assert scope.recording.steps.tolist() == [0, 1, 2, 3]
    assert scope.recording.skipped.tolist() == [False, False, True, False]


def test_several_optimizers_close_a_step_each_or_share_one() -> None:
    """As in a GAN, whose halves take turns, and as where matrices and vectors have an optimizer each."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"g": nn.Linear(3, 3), "d": nn.Linear(3, 1)})
    optimizers = [torch.optim.SGD(model[k].parameters(), lr=0.1) for k in ("g", "d")]
    with GradScope(model, optimizers) as scope:
        for _ in range(2):
            for turn in ("d", "g"):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                fake = model["g"](torch.ones(2, 3))
                model["d"](fake.detach() if turn == "d" else fake).sum().backward()
                optimizers[turn == "d"].step()
    assert scope.recording.steps.tolist() == [0, 1, 2, 3]
    moved = {k: column(scope.recording, "update", f"{k}.weight") > 0 for k in ("g", "d")}
    assert moved["d"].tolist() == [True, False, True, False]
    assert moved["g"].tolist() == [False, True, False, True]

    model = _net()
    optimizers = [
        torch.optim.SGD([p for p in model.parameters() if (p.dim() > 1) is two], lr=0.1) for two in (True, False)
    ]
    with GradScope(model, optimizers) as scope:
        for step in range(3):
            model(_batch(step)).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert scope.recording.steps.tolist() == [0, 1, 2]
    assert (scope.recording.values("update", "rms") > 0).all()
    assert (scope.recording.values("weight_grad", "rms") > 0).all()


def test_the_backward_that_leaves_gradients_counts_not_that_of_a_penalty_before_it() -> None:
    model, x = _net(), _batch().requires_grad_()

    def loss_of(out: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out.square().mean() + (slope.norm() - 1).square()

    with GradScope(model) as scope:
        loss_of(model(x)).backward()
    seen: list[Tensor] = []
    out = model[0](x)
    handle = out.register_hook(lambda g: seen.append(g))
    loss_of(model[2](model[1](out))).backward()
    handle.remove()
    assert np.isclose(column(scope.recording, "activation_grad", "0")[0], _rms(seen[-1]), rtol=1e-6)
    assert not np.isclose(_rms(seen[0]), _rms(seen[-1]), rtol=1e-2)
    assert column(scope.recording, "activation_grad", "0", "count")[0] == 30
    assert scope.unobserved == {}


def test_of_several_backwards_of_one_forward_the_first_is_recorded_and_that_is_said() -> None:
    model = _net()
    with GradScope(model) as scope:
        out = model(_batch())
        out.sum().backward(retain_graph=True)
        first = _rms(model[0].weight.grad)
        out.square().sum().backward()
        both = _rms(model[0].weight.grad)
    assert (column(scope.recording, "activation_grad", "2") == 1.0).all()
    assert "the first is recorded" in scope.unobserved["0"]
    assert np.isclose(column(scope.recording, "weight_grad", "0.weight")[0], both)
    assert first != both


def test_autograd_grad_alone_is_a_backward_too() -> None:
    model = _net()
    with GradScope(model) as scope:
        for seed in range(3):
            found = torch.autograd.grad(model(_batch(seed)).square().sum(), list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), found, strict=True):
                    p -= 0.1 * g
    assert scope.recording.steps.tolist() == [0, 1, 2]
    assert np.isfinite(scope.recording.values("activation_grad", "rms")).all()
    assert (scope.recording.values("update", "rms") > 0).all()
    assert all(p.grad is None for p in model.parameters())


def test_transforms_of_functions_pass_through_unharmed() -> None:
    model, x = _net(), _batch()
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(w: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, w, (row,)).square().sum()

    def results() -> list[Tensor]:
        each = vmap(grad(loss), in_dims=(None, 0))(weights, x)
        return [*grad(loss)(weights, x).values(), *each.values(), torch.func.jacrev(loss)(weights, x)["0.weight"]]

    bare = results()
    with GradScope(model, functional=True, validation=True) as scope:
        seen = results()
        model(x).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(bare, seen, strict=True))
    assert scope.recording.steps.tolist() == [0]
    assert (column(scope.recording, "activation", "1", "count") == 30).all()


@pytest.mark.parametrize("given", [False, True])
def test_optimizers_that_run_inside_the_backward_are_seen_before_they_free_the_gradients(given: bool) -> None:
    model, plain = _net(), _net()
    expected = []
    for step in range(3):
        plain.zero_grad()
        plain(_batch(step)).square().sum().backward()
        expected.append(_rms(plain[0].weight.grad))
        torch.optim.SGD(plain.parameters(), lr=0.1).step()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step_and_free(p: Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step_and_free)
    with GradScope(model, list(optimizers.values()) if given else None) as scope:
        for step in range(3):
            model(_batch(step)).square().sum().backward()
    assert scope.recording.steps.tolist() == [0, 1, 2]
    assert np.allclose(column(scope.recording, "weight_grad", "0.weight"), expected, rtol=1e-6)
    assert np.allclose(column(scope.recording, "update", "0.weight"), 0.1 * np.array(expected), rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_the_evaluations_of_a_closure_are_one_step_without_the_optimizer_given() -> None:
    model = _net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(_batch()).square().sum()
        loss.backward()
        return loss

    with GradScope(model) as scope:
        for _ in range(2):
            optimizer.step(closure)
    assert scope.recording.steps.tolist() == [0, 1]
    assert not scope.recording.skipped.any()


@pytest.mark.parametrize("given", [False, True])
def test_a_trainer_that_runs_the_last_micro_batch_inside_the_optimizers_step_is_recorded_right(given: bool) -> None:
    """As Lightning does: clipping and all happen in the closure."""
    model = _net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    norms, gradients = [], []

    def backward(seed: int) -> None:
        (model(_batch(seed)).square().mean() / 2).backward()

    with GradScope(model, optimizer if given else None) as scope:
        for step in range(3):

            def closure(step: int = step) -> None:
                backward(2 * step + 1)
                norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.01)))
                gradients.append(_rms(model[0].weight.grad))

            optimizer.zero_grad()
            backward(2 * step)
            optimizer.step(closure)
    recording = scope.recording
    assert recording.steps.tolist() == [0, 1, 2]
    assert not recording.skipped.any()
    assert (column(recording, "activation", "1", "count") == 60).all()
    assert np.allclose(recording.notes("grad_norm"), norms, rtol=1e-5)
    assert np.allclose(recording.notes("clip_coefficient"), 0.01 / np.array(norms), rtol=1e-4)
    factor = 1.0 if given else recording.notes("clip_coefficient")
    assert np.allclose(column(recording, "weight_grad", "0.weight") * factor, gradients, rtol=1e-4)


def test_an_interrupt_in_the_middle_of_a_step_costs_that_step_only() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.error = _net(), None

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x).relu()
            if self.error is not None:
                raise self.error
            return x

    for error in (KeyboardInterrupt(), RuntimeError("the user's")):
        for gradient in (True, False):
            model = Net()
            with GradScope(model, functional=True, validation=True) as scope:
                for step in range(4):
                    model.error = error if step == 1 else None
                    try:
                        with torch.set_grad_enabled(gradient or step != 1):
                            model(_batch(step)).sum().backward()
                    except type(error):
                        continue
                    scope.step()
            assert scope.recording.steps.tolist() == [0, 1, 2]
            assert (column(scope.recording, "activation_grad", "inner.1", "count") == 30).all()
            functions = [s.name for s in scope.recording.sites_of("activation") if ":" in s.name]
            assert functions == ["<root>:relu"]  # no mode of ours was left behind, to see each call twice
            assert torch.overrides._get_current_function_mode_stack() == []


def test_a_scope_can_come_and_go_in_the_middle_of_training() -> None:
    def train(observe: bool) -> list[Tensor]:
        model = _net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        scope = None
        for step in range(9):
            if observe and step == 2:
                scope = GradScope(model)
            if scope is not None and step == 5:
                scope.close()
                assert scope.recording.steps.tolist() == [0, 1, 2]
            optimizer.zero_grad()
            out = model(_batch(step))
            if observe and step == 7:
                scope = GradScope(model)  # between forward and backward
            out.sum().backward()
            optimizer.step()
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_two_scopes_on_one_model_record_the_same_and_close_apart() -> None:
    model = _net()
    first, second = GradScope(model), GradScope(model, functional=True)
    for step in range(2):
        model(_batch(step)).sum().backward()
    first.close()
    model(_batch(2)).sum().backward()
    second.close()
    assert first.recording.steps.tolist() == [0, 1]
    assert second.recording.steps.tolist() == [0, 1, 2]
    for signal in ("activation", "activation_grad", "weight"):
        assert np.array_equal(first.recording.values(signal, "rms"), second.recording.values(signal, "rms")[:2])
    assert not any(m._forward_hooks for m in model.modules())


def test_validation_is_recorded_apart_where_asked_for() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradScope(model, optimizer, validation=True) as scope:
        for step in range(3):
            model(_batch(step)).sum().backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                for seed in (10, 11):
                    expected = model(_batch(seed, rows=20))
            model.train()
    assert (column(scope.recording, "activation", "1", "count") == 30).all()
    apart = scope.validation
    assert apart is not None
    assert apart.steps.tolist() == [1, 2, 3]
    assert (column(apart, "activation", "1", "count") == 2 * 20 * 6).all()
    assert apart.facts["source"] == "validation"
    assert all(s in scope.recording.sites_of("activation") for s in apart.sites_of("activation"))
    with torch.no_grad():
        whole = torch.cat([model(_batch(10, rows=20)), expected])
    assert np.isclose(column(apart, "activation", "2")[-1], _rms(whole), rtol=1e-6)


def test_workers_of_a_data_loader_leave_the_recording_alone(tmp_path: Any) -> None:
    script = (
        "import torch\n"
        "from torch import nn\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "from gradscope import GradScope\n"
        "model = nn.Linear(4, 1)\n"
        "with GradScope(model, log='run.gscope') as scope:\n"
        "    for (x,) in DataLoader(TensorDataset(torch.randn(12, 4)), batch_size=4, num_workers=2,\n"
        "                           multiprocessing_context='fork'):\n"
        "        scope(x).sum().backward()\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert Recording.load(tmp_path / "run.gscope").steps.tolist() == [0, 1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_that_trains_the_model_does_not_write_the_parents_recording(tmp_path: Any) -> None:
    script = (
        "import os, sys, torch, warnings\n"
        "from gradscope import GradScope\n"
        "torch.set_num_threads(1)\n"
        "model = torch.nn.Linear(4, 1)\n"
        "scope = GradScope(model, log='run.gscope')\n"
        "model(torch.ones(2, 4)).sum().backward(); scope.step()\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    for _ in range(3): model(torch.ones(2, 4)).sum().backward(); scope.step()\n"
        "    sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "model(torch.ones(2, 4)).sum().backward(); scope.step(); scope.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("GradScopeWarning") == 1
    assert "forked child" in done.stderr
    assert Recording.load(tmp_path / "run.gscope").steps.tolist() == [0, 1]


def test_calls_of_another_thread_in_the_middle_of_a_forward_are_not_mixed_in() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.between = lambda: None

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            self.between()
            return self.b(x)

    model = Net()

    def evaluate() -> None:
        model.b(torch.ones(7, 4))  # a part of it
        model.between = lambda: None
        model(torch.ones(9, 4))  # and all of it

    def in_a_thread() -> None:
        thread = threading.Thread(target=evaluate)
        thread.start()
        thread.join()

    with GradScope(model) as scope:
        model.between = in_a_thread
        model(torch.ones(2, 4)).sum().backward()
        scope.step()
    assert scope.recording.values("activation", "count").tolist() == [[8, 8, 8]]
    assert scope.recording.values("activation_grad", "count").tolist() == [[8, 8]]


def test_no_scope_and_no_model_is_kept_alive_by_the_hooks_on_optimizers() -> None:
    model = _net()
    scope = GradScope(model)
    model(_batch()).sum().backward()
    gone = weakref.ref(model), weakref.ref(scope)
    del scope, model
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    optimizers = sys.modules["torch.optim.optimizer"]
    assert not optimizers._global_optimizer_pre_hooks
    assert not optimizers._global_optimizer_post_hooks


def test_tensors_that_outlive_their_step_keep_no_hook_of_ours() -> None:
    encoder, model = nn.Linear(4, 4), _net()
    features = encoder(_batch())
    with GradScope(model) as scope:
        out = model(features)
        hidden = model[0](features)
        (out.sum() + hidden.sum()).backward(retain_graph=True)
        scope.step()
    assert not any(t._backward_hooks for t in (features, out, hidden))


def test_memory_does_not_grow_with_the_steps() -> None:
    """9 bytes a step is what the recording keeps in memory; nothing else may grow."""
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with GradScope(model, every=1, on_nonfinite="warn", histograms=True) as scope:

        def steps(count: int) -> None:
            for _ in range(count):
                optimizer.zero_grad()
                model(_batch()).square().mean().backward()
                optimizer.step()
                scope.step()

        steps(100)
        tracemalloc.start()
        held = []
        for _ in range(5):
            steps(300)
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    # The first stretches fill caches once. One object kept a step, of 48 bytes at least, would be 14,400 in each.
    grown = min(later - earlier for earlier, later in pairwise(held))
    assert grown < 300 * 9 + 300 * 24, held


# Clipping


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("limit", [1e-3, 1e9])
def test_the_norm_before_and_after_clipping_and_the_factor_are_noted(given: bool, limit: float) -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, after = [], []
    with GradScope(model, optimizer if given else None) as scope:
        for step in range(3):
            optimizer.zero_grad()
            model(_batch(step)).square().sum().backward()
            before.append(float(nn.utils.clip_grad_norm_(model.parameters(), limit)))
            after.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters()])))
            optimizer.step()
    notes = {name: scope.recording.notes(name) for name in scope.recording.note_names}
    # float32 norms, and a factor known from float32 entries: a few units in 2^-24 each.
    assert np.allclose(notes["grad_norm"], before, rtol=1e-5)
    assert np.allclose(notes["grad_norm_clipped"], after, rtol=1e-5)
    assert np.allclose(notes["clip_coefficient"], np.array(after) / before, rtol=1e-5)
    assert ("after clipping" in scope.recording.facts["weight_grad"]) is given


def test_samples_that_a_device_sent_as_float64_still_round_as_the_gradient_did() -> None:
    torch.manual_seed(0)
    samples = ClipSamples()
    for name in ("a", "b"):
        gradient = torch.randn(8)
        samples.rounding[name] = torch.finfo(gradient.dtype).eps
        samples.before[name], samples.after[name] = gradient.double(), (gradient * 0.3712345).double()
    assert samples.coefficient(1.0) == pytest.approx(0.3712345, rel=4 * 2.0**-23)


def test_clipping_entry_by_entry_has_no_one_factor() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradScope(model) as scope:
        model(_batch()).square().sum().backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.05)
        optimizer.step()
    assert np.isnan(scope.recording.notes("clip_coefficient")).all()
    assert "clip_coefficient" in scope.recording.note_names
    assert "grad_norm_clipped" not in scope.recording.note_names


def test_a_scaler_unscales_before_clipping_and_its_factor_is_noted() -> None:
    for given in (False, True):
        model = _net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        before = []
        with GradScope(model, optimizer if given else None, scaler=scaler, histograms=True) as scope:
            for step in range(3):
                optimizer.zero_grad()
                scaler.scale(model(_batch(step)).square().sum()).backward()
                scaler.unscale_(optimizer)
                before.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.25)))
                scaler.step(optimizer)
                scaler.update()
        notes = {name: scope.recording.notes(name) for name in scope.recording.note_names}
        assert np.allclose(notes["grad_norm"], before, rtol=1e-5)
        assert np.allclose(notes["clip_coefficient"], 0.25 / np.array(before), rtol=1e-4)
        assert (notes["loss_scale"] == 2.0**16).all()
        edges, counts = scope.recording.histogram("activation_grad", "2", 0)
        largest = np.log2(scope.recording.values("activation_grad", "abs_max")[0, -1])
        top = int(np.flatnonzero(counts)[-1])
        assert edges[top] <= largest < edges[top + 1]


def test_a_users_own_note_of_the_same_name_stands() -> None:
    model = _net()
    with GradScope(model) as scope:
        model(_batch()).sum().backward()
        scope.note(grad_norm=42.0)
    assert scope.recording.notes("grad_norm").tolist() == [42.0]


def test_one_warning_and_no_more_after_an_error_inside() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = GradScope(model)
    scope._stepper.begin_forward = lambda root: 1 / 0  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            model(_batch(step)).sum().backward()
            optimizer.step()
    assert [w.category for w in caught] == [GradScopeWarning]
    assert not any(m._forward_hooks for m in model.modules())


# What can go wrong in a loop


class Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.utils.checkpoint.checkpoint(self.a, x, use_reentrant=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_segments_of_other_passes_do_not_lend_their_calls() -> None:
    """Contexts die, and another may have the same address: passes that no backward follows, and validations."""
    torch.manual_seed(0)
    model = Reentrant()
    with GradScope(model, validation=True, every=1) as scope:
        for step in range(20):
            model(torch.randn(3, 4, requires_grad=True))
            with torch.no_grad():
                model(torch.randn(3, 4))
            model(torch.randn(5, 4, requires_grad=True)).square().mean().backward()
            scope.step()
            assert len(scope.recording.steps) == step  # the last waits for the optimizer
    assert (column(scope.recording, "activation", "b", "count") == 30).all()
    assert (column(scope.recording, "activation_grad", "a", "count") == 20).all()


def test_a_forward_that_raises_keeps_no_activation_alive() -> None:
    class Kept:
        """As large as an activation."""

    class Holds(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.kept = Kept()
            seen.append(weakref.ref(ctx.kept))
            return x.clone()

    seen: list[weakref.ref[Kept]] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.b(Holds.apply(self.a(x)))
            raise MemoryError("as a batch that is too large")

    with GradScope(Net()) as scope:
        for _ in range(2):
            with pytest.raises(MemoryError):
                scope(_batch())
            gc.collect()
            assert seen[-1]() is None


def test_passes_with_gradient_that_no_backward_follows_pile_up_nothing() -> None:
    model = _net()
    with GradScope(model, on_nonfinite="dump") as scope:
        for seed in range(50):
            out = model(_batch(seed))  # the graph of the pass before is there until it is replaced
        open_step = scope._stepper.open_step()
        assert open_step is not None
        assert len(open_step.forwards) <= 2
        del out
        model(_batch()).sum().backward()
    assert scope.recording.steps.tolist() == [0]
    assert (column(scope.recording, "activation", "1", "count") == 30).all()


def test_several_forwards_before_one_backward_are_all_counted() -> None:
    model = _net()
    with GradScope(model) as scope:
        (model(_batch(0)) - model(_batch(1))).square().sum().backward()
    assert (column(scope.recording, "activation", "1", "count") == 60).all()
    assert (column(scope.recording, "activation_grad", "1", "count") == 60).all()


@pytest.mark.parametrize("options", [{"signals": ("activation",)}, {"sites": "1"}], ids=str)
def test_micro_steps_are_joined_whatever_is_recorded(options: dict[str, Any]) -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradScope(model, **options) as scope:
        for step in range(3):
            for part in range(4):
                model(_batch(4 * step + part)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert scope.recording.steps.tolist() == [0, 1, 2]
    assert (column(scope.recording, "activation", "1", "count") == 120).all()


def test_an_error_in_the_backward_costs_that_step_only() -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise RuntimeError("the user's")

    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradScope(model) as scope:
        for step in range(4):
            optimizer.zero_grad()
            hidden = model[1](model[0](_batch(step))) if step == 2 else None
            try:
                out = model(_batch(step)) if hidden is None else model[2](Fails.apply(hidden))
                out.sum().backward()
            except RuntimeError:
                continue
            optimizer.step()
            scope.step()
    assert (column(scope.recording, "activation", "1", "count")[-1:] == 30).all()


def test_an_optimizer_whose_step_raises_leaves_no_trace_in_the_next_steps() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def fail(*_: Any) -> None:
        raise RuntimeError("the user's")

    with GradScope(model) as scope:
        for step in range(4):
            optimizer.zero_grad()
            model(_batch(step)).sum().backward()
            handle = optimizer.register_step_pre_hook(fail) if step == 1 else None
            try:
                optimizer.step()
            except RuntimeError:
                continue
            finally:
                if handle is not None:
                    handle.remove()
    assert scope.recording.steps.tolist() == [0, 1, 2, 3]
    assert scope.recording.skipped.tolist() == [False, True, False, False]


def test_parameters_have_their_depth_also_where_activations_are_not_recorded() -> None:
    model = _net()
    with GradScope(model, signals=("weight",)) as scope:
        model(_batch()).sum().backward()
    assert [(s.name, s.depth) for s in scope.recording.sites_of("weight") if s.param == "weight"] == [
        ("0.weight", 1),
        ("2.weight", 3),
    ]


def test_the_columns_of_all_signals_of_parameters_are_in_one_order() -> None:
    """A backward reaches the bias of a layer before its weight."""
    with GradScope(_net()) as scope:
        for seed in range(2):
            scope(_batch(seed)).square().sum().backward()
    names = {kind: [s.name for s in scope.recording.sites_of(kind)] for kind in ("weight", "weight_grad", "update")}
    assert names["weight"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert names["weight"] == names["weight_grad"] == names["update"]


def test_a_step_that_the_scaler_skips_is_marked_whatever_is_recorded_and_whenever_the_scope_is_told() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    with GradScope(model, scaler=scaler, signals=("activation", "activation_grad")) as scope:
        for step in range(3):
            optimizer.zero_grad()
            scaler.scale(model(_batch(step)).square().sum() * (1e38 if step == 1 else 1)).backward()
            scaler.step(optimizer)
            scope.step()
            assert scope.recording is not None  # to look does not settle what the scaler has not yet said
            scaler.update()
    assert scope.recording.skipped.tolist() == [False, True, False]
    assert scope.recording.notes_at(1)["overflow_site"] == "2"


def test_weights_computed_for_one_call_are_no_parameters_to_hook() -> None:
    """As in MAML: functional_call with fast weights."""
    model = _net()
    with GradScope(model) as scope:
        weights = {name: p - 0.1 * p.square() for name, p in model.named_parameters()}
        functional_call(model, weights, (_batch(),)).sum().backward()
    assert scope.recording.steps.tolist() == [0]
    assert np.isfinite(scope.recording.values("activation_grad", "rms")).all()


def test_two_threads_that_train_one_model_do_not_stop_the_recording() -> None:
    model = _net()

    def train() -> None:
        for seed in range(20):
            model(_batch(seed)).sum().backward()

    with GradScope(model, every=1) as scope:
        model(_batch()).sum().backward()
        thread = threading.Thread(target=train)
        thread.start()
        for seed in range(20):
            model(_batch(seed)).sum().backward()
        thread.join()
    assert len(scope.recording.steps) == 21
    assert (column(scope.recording, "activation", "1", "count") == 30).all()
    assert "several threads" in scope.unobserved["<root>"]


def test_a_validation_may_be_looked_at_between_its_passes() -> None:
    model = _net()
    with GradScope(model, validation=True) as scope:
        model(_batch()).sum().backward()
        with torch.no_grad():
            for _ in range(2):
                model(_batch())
                assert scope.validation is not None
    assert scope.validation.steps.tolist() == [1]
    assert (column(scope.validation, "activation", "1", "count") == 60).all()


def test_a_pickled_model_is_read_where_gradscope_is_not_installed() -> None:
    import pickle

    with GradScope(_net()) as scope:
        stored = pickle.dumps(scope.model)
    assert b"gradscope" not in stored
