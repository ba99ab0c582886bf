"""When a step begins and ends, what belongs to it, and what is said instead of a wrong number."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradscope import GradScope, Recording, RecordingError


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def _loss(model: Any, seed: int = 0, rows: int = 5) -> Tensor:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    return model(x).square().sum()


def _rms(tensors: list[Tensor]) -> float:
    return float(torch.cat([t.double().flatten() for t in tensors]).square().mean().sqrt())


def test_by_default_the_first_hundred_steps_and_then_each_tenth_are_recorded() -> None:
    model = _net()
    with GradScope(model) as scope:
        for _ in range(125):
            _loss(scope).backward()
            scope.step()
    assert scope.recording.steps.tolist() == [*range(100), 100, 110, 120]


def test_every_seventh_step_is_recorded_when_asked() -> None:
    model = _net()
    with GradScope(model, every=7) as scope:
        for _ in range(20):
            _loss(scope).backward()
            scope.step()
    assert scope.recording.steps.tolist() == [0, 7, 14]


@pytest.mark.parametrize("when", ["before", "after"])
def test_step_may_be_called_before_or_after_the_optimizer(when: str) -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with GradScope(model) as scope:
        for seed in range(3):
            optimizer.zero_grad()
            loss = _loss(scope, seed)
            loss.backward()
            expected.append(_rms([model[0].weight.grad]) * 0.1)
            if when == "before":
                scope.step(loss)
            optimizer.step()
            if when == "after":
                scope.step(loss.item())
    recording = scope.recording
    assert recording.steps.tolist() == [0, 1, 2]
    assert np.isfinite(recording.notes("loss")).all()
    (column,) = [i for i, s in enumerate(recording.sites_of("update")) if s.name == "0.weight"]
    # The parameter's own rounding, 2^-24 of it, is what is left of the update beside lr times gradient.
    assert np.allclose(recording.values("update", "rms")[:, column], expected, rtol=1e-4)


def test_the_weight_is_the_value_that_the_forward_used() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    used = []
    with GradScope(model) as scope:
        for seed in range(3):
            used.append(_rms([model[0].weight.detach()]))
            optimizer.zero_grad()
            _loss(scope, seed).backward()
            optimizer.step()
            scope.step()
    (column,) = [i for i, s in enumerate(scope.recording.sites_of("weight")) if s.name == "0.weight"]
    assert np.allclose(scope.recording.values("weight", "rms")[:, column], used, rtol=1e-12)


@pytest.mark.parametrize("how", ["step", "optimizer"])
def test_micro_steps_merge_to_the_statistics_of_the_whole_batch(how: str) -> None:
    model = _net()
    seen: list[Tensor] = []
    model[1].register_forward_hook(lambda m, i, o: seen.append(o.detach().clone()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = []
    with GradScope(model, optimizer if how == "optimizer" else None) as scope:
        for step in range(3):
            optimizer.zero_grad()
            for part in range(4):
                _loss(scope, seed=4 * step + part, rows=3 + part).backward()
                assert len(scope.recording.steps) == step  # looking does not split a step
            gradients.append(_rms([model[0].weight.grad]))
            optimizer.step()
            if how == "step":
                scope.step()
    recording = scope.recording
    assert recording.steps.tolist() == [0, 1, 2]
    batches = [torch.cat(seen[4 * i : 4 * i + 4]).double().numpy() for i in range(3)]
    (column,) = [i for i, s in enumerate(recording.sites_of("activation")) if s.name == "1"]
    for stat, oracle in (("mean", np.mean), ("var", np.var), ("count", np.size), ("max", np.max)):
        assert np.allclose(recording.values("activation", stat)[:, column], [oracle(b) for b in batches], rtol=1e-6)
    (column,) = [i for i, s in enumerate(recording.sites_of("weight_grad")) if s.name == "0.weight"]
    assert np.allclose(recording.values("weight_grad", "rms")[:, column], gradients, rtol=1e-6)
    assert (recording.values("weight_grad", "count")[:, column] == 24).all()


def test_with_neither_the_next_forward_after_a_backward_closes_a_step() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradScope(model) as scope:
        for seed in range(4):
            optimizer.zero_grad()
            _loss(scope, seed).backward()
            optimizer.step()
            assert len(scope.recording.steps) == seed
    recording = scope.recording
    assert recording.steps.tolist() == [0, 1, 2, 3]
    assert np.isfinite(recording.values("update", "rms")).all()
    assert recording.facts["closed_by"] == "the next forward after a backward"


def test_a_loop_without_optimizer_has_a_step_for_each_backward() -> None:
    with GradScope(_net()) as scope:
        for seed in range(5):
            _loss(scope, seed).backward()
            assert len(scope.recording.steps) == 0  # scope.step() might still join them
    assert scope.recording.steps.tolist() == [0, 1, 2, 3, 4]


def test_an_optimizer_that_is_given_closes_the_step_and_its_gradients_are_those_after_clipping() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clipped, raw = [], []
    with GradScope(model, optimizer) as scope, GradScope(model) as before:
        for seed in range(3):
            optimizer.zero_grad()
            _loss(model, seed).backward()
            raw.append(_rms([model[2].weight.grad]))
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            clipped.append(_rms([model[2].weight.grad]))
            optimizer.step()
            scope.note(lr=0.1)
    for recording, expected in ((scope.recording, clipped), (before.recording, raw)):
        (column,) = [i for i, s in enumerate(recording.sites_of("weight_grad")) if s.name == "2.weight"]
        assert np.allclose(recording.values("weight_grad", "rms")[:, column], expected, rtol=1e-6)
    assert scope.recording.notes("lr").tolist() == [0.1, 0.1, 0.1]
    assert "after clipping" in scope.recording.facts["weight_grad"]
    assert "before clipping" in before.recording.facts["weight_grad"]


def test_a_closure_computes_its_gradients_inside_the_optimizer_and_they_are_seen() -> None:
    model = _net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(model)
        loss.backward()
        return loss

    with GradScope(model, optimizer) as scope:
        for _ in range(2):
            optimizer.step(closure)
    assert scope.recording.steps.tolist() == [0, 1]
    for signal in ("weight_grad", "update", "activation_grad"):
        assert (scope.recording.values(signal, "rms") > 0).all()


def test_validation_between_steps_belongs_to_no_step() -> None:
    model = _net()
    with GradScope(model) as scope:
        for seed in range(3):
            _loss(scope, seed).backward()
            with torch.no_grad():
                _loss(scope, 100, rows=50)
            scope.step()
            _loss(scope, 100, rows=50)  # with gradient, but nothing goes backward
    assert scope.recording.steps.tolist() == [0, 1, 2]
    assert (scope.recording.values("activation", "count") == [[20, 30, 30, 10]] * 3).all()


def test_a_step_closed_without_a_backward_keeps_its_forward_signals() -> None:
    with GradScope(_net()) as scope:
        _loss(scope)
        scope.step(float("nan"))
        _loss(scope).backward()
        scope.step()
    assert scope.recording.steps.tolist() == [0, 1]
    assert np.isfinite(scope.recording.values("activation", "rms")).all()
    assert np.isnan(scope.recording.values("activation_grad", "rms")[0]).all()


def test_layers_called_without_their_model_are_observed() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradScope(model) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            hidden = torch.relu(model[0](torch.ones(2, 4)))
            model[2](hidden).sum().backward()
            optimizer.step()
    recording = scope.recording
    assert recording.steps.tolist() == [0, 1, 2]
    assert [s.name for s in recording.sites_of("activation")] == ["0", "2"]
    assert recording.sites_of("activation")[0].activation_after == "relu"
    assert np.isfinite(recording.values("update", "rms")).all()


def test_another_thread_that_evaluates_the_model_is_not_mixed_in() -> None:
    model = _net()
    inside, done = threading.Event(), threading.Event()

    def evaluate() -> None:
        inside.wait()
        with torch.no_grad():
            _loss(model, rows=99)
        done.set()

    def let_it_run(*_: Any) -> None:
        if threading.current_thread() is not thread:
            inside.set()
            assert done.wait(10)

    thread = threading.Thread(target=evaluate)
    thread.start()
    model[1].register_forward_pre_hook(let_it_run)
    with GradScope(model) as scope:
        _loss(scope).backward()
    thread.join()
    assert scope.recording.values("activation", "count").tolist() == [[20, 30, 30, 10]]


def test_a_second_backward_of_the_same_forward_is_not_counted_twice() -> None:
    model = _net()
    with GradScope(model) as scope:
        loss = _loss(scope)
        (gradient,) = torch.autograd.grad(loss, [model[0].weight], create_graph=True)
        (loss + gradient.square().sum()).backward()
    assert (scope.recording.values("activation_grad", "count") == [[30, 30, 10]]).all()


def test_gradients_under_a_scaler_are_recorded_unscaled_and_a_skipped_step_is_marked() -> None:
    for with_optimizer in (False, True):
        model = _net()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        plain = []
        with GradScope(model, optimizer if with_optimizer else None, scaler=scaler) as scope:
            for step in range(3):
                optimizer.zero_grad()
                loss = _loss(scope)
                plain.append(_rms([torch.autograd.grad(loss, [model[0].weight], retain_graph=True)[0]]))
                if step == 1:
                    loss = loss * float("inf")
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                if not with_optimizer:
                    scope.step()
        recording = scope.recording
        assert recording.skipped.tolist() == [False, True, False]
        (column,) = [i for i, s in enumerate(recording.sites_of("weight_grad")) if s.name == "0.weight"]
        measured = recording.values("weight_grad", "rms")[:, column]
        assert np.allclose(measured[[0, 2]], np.array(plain)[[0, 2]], rtol=1e-6)


def test_sites_are_chosen_by_pattern_or_predicate() -> None:
    for sites in ("2", ["2", "nothing*"][:1], lambda site: site.module == "2"):
        with GradScope(_net(), sites=sites) as scope:
            _loss(scope).backward()
        assert {s.name for s in scope.recording.sites} == {"2", "2.weight", "2.bias"}


def test_signals_that_are_not_asked_for_are_not_recorded() -> None:
    with GradScope(_net(), signals=("activation",)) as scope:
        for _ in range(2):
            _loss(scope).backward()
    assert scope.recording.steps.tolist() == [0, 1]
    assert scope.recording.sites_of("activation_grad") == ()
    assert {s.signal for s in scope.recording.sites} == {"activation"}


def test_sites_say_what_they_are() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    with GradScope(model) as scope:
        scope(torch.randn(5, 2, 5, 5)).sum().backward()
    conv, norm, act, flat, linear = [s for s in scope.recording.sites_of("activation") if s.name != "<input>"]
    assert [s.role for s in (conv, norm, act, flat, linear)] == [
        "pre-activation",
        "norm",
        "activation",
        "other",
        "pre-activation",
    ]
    assert [s.depth for s in (conv, norm, act, flat, linear)] == [1, 2, 3, 4, 5]
    assert (conv.fan_in, conv.fan_out, conv.activation_after) == (9.0, 4 / 2 * 9 / 4, "relu")
    assert (linear.fan_in, linear.fan_out, linear.activation_after) == (16.0, 3.0, None)
    assert conv.shape == (5, 4, 2, 2)
    weight = next(s for s in scope.recording.sites_of("weight") if s.name == "4.weight")
    assert (weight.module, weight.param, weight.depth, weight.fan_in) == ("4", "weight", 5, 16.0)


class NewGELUActivation(nn.Module):
    """As transformers writes it: from other functions, a tanh among them."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def test_the_activation_that_follows_is_found_through_norms_functions_and_modules_of_others() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
            self.norm, self.gelu, self.softsign = nn.LayerNorm(4), NewGELUActivation(), nn.Softsign()

        def forward(self, x: Tensor) -> Tensor:
            a, b, c, d, e = self.layers
            x = self.norm(a(x)).relu()
            x = self.softsign(self.gelu(b(x)).view(2, 2, 4) + c(x).view(2, 2, 4))
            return e(nn.functional.selu(d(x.flatten(0, 1)), inplace=True))

    with GradScope(Net()) as scope:
        scope(torch.randn(4, 4)).sum().backward()
    found = {s.name: s.activation_after for s in scope.recording.sites_of("activation") if "layers" in s.name}
    gradients = {s.name: s.activation_after for s in scope.recording.sites_of("weight_grad") if s.param == "weight"}
    assert gradients["layers.1.weight"] == found["layers.1"]  # though entered after the forward pass
    assert [found[f"layers.{i}"] for i in range(5)] == ["relu", "gelu", "softsign", "selu", None]


def test_each_call_of_a_reused_layer_has_the_activation_that_follows_that_call() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(torch.tanh(self.a(nn.functional.gelu(self.a(x)))))

    with GradScope(Net()) as scope:
        scope(torch.randn(4, 4)).sum().backward()
    found = {s.name: s.activation_after for s in scope.recording.sites_of("activation") if s.name.startswith("a")}
    assert found == {"a": "gelu", "a#1": "tanh", "a#2": None}


def test_an_in_place_activation_on_a_view_follows_its_layer() -> None:
    with GradScope(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.GELU())) as scope:
        scope(torch.randn(2, 3, 4)).sum().backward()
    found = {s.name: s.activation_after for s in scope.recording.sites_of("activation_grad")}
    assert found == {"0": "relu", "1": None, "2": "gelu", "3": None}


@pytest.mark.parametrize(
    ("function", "name"),
    [(getattr(nn.functional, n), n) for n in ("relu", "leaky_relu", "relu6", "elu", "celu", "selu", "gelu", "silu")]
    + [(getattr(nn.functional, n), n) for n in ("mish", "softplus", "hardtanh", "hardsigmoid", "hardswish")]
    + [(torch.tanh, "tanh"), (torch.sigmoid, "sigmoid"), (torch.sin, "sin")]
    + [
        (lambda x: torch.softmax(x, -1), "softmax"),
        (lambda x: nn.functional.leaky_relu(x, 0.2), "leaky_relu(0.2)"),
        (lambda x: nn.functional.gelu(x, approximate="tanh"), "gelu_tanh"),
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: x.clamp(min=0), "relu"),
        (lambda x: torch.log_softmax(x, -1), None),
    ],
)
def test_functional_activations_are_known_by_their_node(function: Any, name: str | None) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return function(self.layer(x))

    with GradScope(Net()) as scope:
        scope(torch.randn(4, 4)).sum().backward()
    (site,) = [s for s in scope.recording.sites_of("activation") if s.name == "layer"]
    assert site.activation_after == name


def test_a_residual_sum_is_a_block_and_calls_of_a_reused_layer_are_sites() -> None:
    from tests.cases import CASES, call, total

    cases = {c.name: c for c in CASES}
    for name, expected in (
        ("in-place residual", {"0.second": "pre-activation", "0": "block", "1": "block"}),
        ("reused layer", {"cell": "pre-activation", "cell#1": "pre-activation", "cell#2": "pre-activation"}),
        ("tuple and dict outputs", {"pair": "other", "pair[1]": "other"}),
        ("lstm", {"lstm": "other", "lstm[1]": "other", "lstm[2]": "other"}),
        ("attention", {"layers.0.self_attn": "other", "layers.0": "block", "layers.0.norm1": "norm"}),
    ):
        with GradScope(cases[name].model()) as scope:
            total(call(scope, cases[name].inputs())).backward()
        roles = {s.name: s.role for s in scope.recording.sites_of("activation")}
        assert {k: roles.get(k) for k in expected} == expected, name


def test_what_has_no_gradient_is_missing_not_zero() -> None:
    from tests.cases import CASES, total

    (case,) = [c for c in CASES if c.name == "frozen and unused"]
    model = case.model()
    with GradScope(model) as scope:
        total(scope(case.inputs())).backward()
    recording = scope.recording
    assert {s.name for s in recording.sites_of("weight_grad")} == {"head.weight", "head.bias"}
    trainable = {s.name: s.trainable for s in recording.sites_of("weight")}
    assert trainable["unused.weight"]
    assert not trainable["backbone.weight"]


def test_a_run_that_is_not_closed_keeps_its_last_step(tmp_path: Path) -> None:
    script = (
        "import torch; from gradscope import GradScope\n"
        "model = torch.nn.Linear(3, 3); scope = GradScope(model, log='run.gscope')\n"
        "for _ in range(3): scope(torch.ones(2, 3)).sum().backward()\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert Recording.load(tmp_path / "run.gscope").steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize("how", ["step", "optimizer"])
def test_a_killed_run_keeps_every_step_that_was_closed_before_its_validation(how: str, tmp_path: Path) -> None:
    script = (
        "import os, signal, torch; from gradscope import GradScope\n"
        "model = torch.nn.Linear(3, 3); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        f"scope = GradScope(model, {'optimizer' if how == 'optimizer' else 'None'}, log='run.gscope')\n"
        "for _ in range(3):\n"
        "    scope(torch.ones(2, 3)).sum().backward(); optimizer.step()\n"
        f"    {'scope.step()' if how == 'step' else 'pass'}\n"
        f"{'' if how == 'step' else 'with torch.no_grad(): scope(torch.ones(2, 3))'}\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path).returncode == -9
    assert Recording.load(tmp_path / "run.gscope").steps.tolist() == [0, 1, 2]


def test_a_note_made_before_the_forward_belongs_to_the_step_that_begins() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradScope(model) as scope:
        for epoch in range(3):
            scope.note(epoch=epoch)
            _loss(scope).backward()
            optimizer.step()
            scope.step()
    assert scope.recording.notes("epoch").tolist() == [0, 1, 2]


def test_the_recording_file_can_be_read_while_training_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run.gscope"
    with GradScope(_net(), log=path) as scope:
        for seed in range(4):
            _loss(scope, seed).backward()
            scope.step()
        # Whether an optimizer will still change the fourth is known when the next forward begins.
        assert Recording.load(path).steps.tolist() == [0, 1, 2]
    assert Recording.load(path).steps.tolist() == [0, 1, 2, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["run.gscope"]
    with pytest.raises(RecordingError, match=r"run\.gscope"):
        GradScope(_net(), log=path)


def test_print_shows_a_row_for_each_site_and_the_slopes() -> None:
    with GradScope(_net()) as scope:
        assert "no step is complete" in str(scope)
        _loss(scope).backward()
    lines = str(scope).splitlines()
    assert lines[0].startswith("step 0")
    assert [line.split()[1] for line in lines[2:6]] == ["<input>", "0", "1", "2"]
    assert lines[-1].startswith("backward")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model": "net"}, "model is of type str; GradScope observes a torch.nn.Module"),
        ({"every": 0}, "every is 0; None, 'auto' or a whole number from 1 is allowed"),
        ({"signals": ("activations",)}, "signals has 'activations'; .* did you mean 'activation'?"),
        ({"signals": ()}, "signals is ()"),
        ({"sites": "layer*"}, "sites has 'layer.', which matches none of the model's 4 modules"),
        ({"sites": [3]}, "sites has 3; None, glob patterns"),
        ({"optimizer": 0.1}, "optimizer is of type float"),
        (
            {"optimizer": torch.optim.lr_scheduler.StepLR(torch.optim.SGD(nn.Linear(2, 2).parameters()), 1)},
            "optimizer is of type StepLR; a torch.optim.Optimizer",
        ),
        ({"on_nonfinite": "stop"}, "on_nonfinite is 'stop'; None, 'warn', 'raise', 'dump' are allowed"),
        ({"process_group": 3}, "process_group is of type int; 'auto'"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters())},
            "optimizer holds none of the model's parameters",
        ),
        ({"scaler": 2.0}, "scaler is of type float"),
        ({"loggers": [print]}, "loggers is .*leave it empty"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence.replace("()", r"\(\)")):
        GradScope(**({"model": _net()} | arguments))
