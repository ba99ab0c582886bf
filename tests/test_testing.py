"""Assertions for unittest and scripts: what fails them, what they say, and that nothing is left of a run."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradscope.testing import (
    BaselineError,
    GradientRegression,
    NotDeterministicError,
    Policy,
    assert_healthy,
    assert_no_dead_units,
    assert_scale,
    assert_signal_propagates,
    load_baseline,
)
from gradscope.testing._observe import Subject, observed
from gradscope.testing._policy import in_ci

X = torch.linspace(-1.5, 1.5, 64 * 32).reshape(64, 32).sin()


def deep(activation: type[nn.Module] = nn.Tanh, depth: int = 10, std: float = 32**-0.5) -> nn.Sequential:
    model = nn.Sequential(*[part for _ in range(depth) for part in (nn.Linear(32, 32), activation())], nn.Linear(32, 4))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std) if parameter.dim() > 1 else nn.init.zeros_(parameter)
    return model


def written(path: Path) -> GradientRegression:
    return GradientRegression(path, policy=Policy(update=True))


# -- assertions without a baseline ----------------------------------------------------------------------------


def test_a_sound_model_is_healthy_and_one_whose_gradient_vanishes_is_not() -> None:
    assert assert_healthy(deep, X).worst != "error"
    with pytest.raises(AssertionError, match="vanishing"):
        assert_healthy(lambda: deep(nn.Sigmoid, 20), X)


def test_fail_on_says_from_which_severity() -> None:
    def slowly() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*[p for _ in range(7) for p in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4))

    assert assert_healthy(slowly, X).worst == "warning"
    with pytest.raises(AssertionError, match="warning: "):
        assert_healthy(slowly, X, fail_on="warning")
    with pytest.raises(ValueError, match="did you mean 'warning'"):
        assert_healthy(slowly, X, fail_on="warnings")


def test_a_signal_propagates_or_the_first_layer_beyond_is_named() -> None:
    assert_signal_propagates(deep, X)
    with pytest.raises(AssertionError) as caught:
        assert_signal_propagates(lambda: deep(std=0.1 * 32**-0.5), X)
    forward, backward = str(caught.value).splitlines()
    # A tenth of the size from layer to layer: the third layer passed is 2 decades off, tanh takes a little more.
    assert forward.startswith("activation does not propagate forward: from 0 ")
    assert "to 4 (rms" in forward
    assert backward.startswith("activation_grad does not propagate backward: from 20 ")


def test_dead_units_are_counted_and_named() -> None:
    def dead() -> nn.Module:
        model = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        nn.init.ones_(model[2].bias)
        with torch.no_grad():
            model[0].bias += 10.0
            model[0].bias[:2] = -1e3
        return model

    with pytest.raises(AssertionError, match=r"first 1 \(25.0%\)"):
        assert_no_dead_units(dead, X)
    assert_no_dead_units(nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 1)), X)
    with pytest.raises(ValueError, match="max_fraction is 2"):
        assert_no_dead_units(dead, X, max_fraction=2)


class Functional(nn.Module):
    """Activations as functions, of which the first is dead where its bias is far below zero."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 8), nn.Linear(8, 1)
        nn.init.constant_(self.a.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(nn.functional.relu(self.a(x)))


def test_units_of_functional_activations_die_too_and_without_any_there_is_nothing_to_claim(tmp_path: Path) -> None:
    assert_no_dead_units(Functional(3.0), X)
    with pytest.raises(AssertionError, match=r"first <root>:relu \(100.0%\)"):
        assert_no_dead_units(Functional(-100.0), X)
    with pytest.raises(AssertionError, match=r"first <root>:relu \(100.0%\)"):
        written(tmp_path / "a.json").assert_no_dead_units(Functional(-100.0), X)
    with pytest.raises(ValueError, match="model has no activation"):
        assert_no_dead_units(nn.Linear(32, 8), X)


def test_a_scale_is_that_of_the_output_the_input_gradient_the_weight_or_a_site() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(400, 400, bias=False)
    nn.init.normal_(layer.weight, std=0.05)
    x = torch.randn(64, 400)
    # Three means of squares of 25,600 normal numbers or more: an rms is right to 0.5 %.
    for signal, expected in (("activation", 1.0), ("activation_grad", 1.0), ("weight", 0.05)):
        assert_scale(layer, signal, expected, rtol=0.03, inputs=x)  # type: ignore[arg-type]
        with pytest.raises(AssertionError, match=f"{signal} of .* times the expected"):
            assert_scale(layer, signal, expected * 1.1, rtol=0.03, inputs=x)  # type: ignore[arg-type]
    recording = observed(Subject(nn.Sequential(layer, nn.ReLU()), x))
    assert_scale("0.weight", "weight", 0.05, rtol=0.03, recording=recording)
    with pytest.raises(ValueError, match=r"did you mean '0.weight'"):
        assert_scale("0.weigth", "weight", 0.05, recording=recording)
    with pytest.raises(ValueError, match="inputs is missing"):
        assert_scale(layer, "activation", 1.0)
    assert x.grad is None
    assert not x.requires_grad


# -- nothing is left of a run ---------------------------------------------------------------------------------


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.stack(x)


def test_model_optimizer_random_state_threads_and_settings_are_as_before(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = Stateful()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(X).square().mean().backward()
    optimizer.step()  # its state is not empty
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), model.calls))
    gradients = [p.grad for p in model.parameters()]
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    torch.set_num_threads(2)
    try:
        written(tmp_path / "a.json").check(
            model, X, loss_fn=lambda out: out.square().mean(), steps=4, optimizer=optimizer
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.are_deterministic_algorithms_enabled() == strict
    for old, new in zip(before[:2], (model.state_dict(), optimizer.state_dict()), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0, equal_nan=True)
    assert model.calls == before[2]
    assert all(a is b for a, b in zip(gradients, (p.grad for p in model.parameters()), strict=True))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert states[2] == random.getstate()
    assert optimizer.param_groups[0]["params"][0] is next(model.parameters())


def test_a_run_is_the_same_on_any_number_of_threads(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    path = tmp_path / "a.json"
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            GradientRegression(path, policy=Policy(update_new=True, rtol=1e-5)).check(deep, X)
    finally:
        torch.set_num_threads(threads)
    assert path.exists()


# -- the check ------------------------------------------------------------------------------------------------


def test_a_missing_baseline_is_written_and_fails_once_and_in_ci_only_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(AssertionError, match="is missing"):
        GradientRegression(path, policy=Policy(may_write=False)).check(deep, X)
    assert not path.exists()
    with pytest.raises(AssertionError, match="has been written"):
        GradientRegression(path, policy=Policy()).check(deep, X)
    assert GradientRegression(path, policy=Policy()).check(deep, X)


@pytest.mark.parametrize(
    ("value", "expected"), [("", False), ("false", False), ("False", False), ("true", True), ("1", True)]
)
def test_ci_is_set_and_neither_empty_nor_false(value: str, expected: bool) -> None:
    assert in_ci({"CI": value}) == expected
    assert not in_ci({})


def test_a_difference_says_where_what_and_how_to_accept_it_and_keeps_what_was_obtained(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    written(path).check(deep, X)
    with pytest.raises(AssertionError) as caught:
        GradientRegression(path, policy=Policy(), accept="pytest --gradscope-update").check(lambda: deep(nn.GELU), X)
    message = str(caught.value)
    for part in ("1 was Tanh, and is now GELU", "diagnosis now: ", "to accept: pytest --gradscope-update"):
        assert part in message
    kept = tmp_path / "a.obtained.json"
    assert str(kept) in message
    kept.replace(path)  # accepted by hand
    assert GradientRegression(path, policy=Policy()).check(lambda: deep(nn.GELU), X)
    assert not kept.exists()


def test_several_checks_of_one_test_have_a_baseline_each(tmp_path: Path) -> None:
    regression = written(tmp_path / "a.json")
    regression.check(deep, X)
    regression.check(deep, X)
    regression.check(deep, X, name="wide")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-2.json", "a-wide.json", "a.json"]
    with pytest.raises(ValueError, match="another check of this test has"):
        regression.check(deep, X, name="wide")
    with pytest.raises(ValueError, match="part of a file's name"):
        regression.check(deep, X, name="../x")


def test_an_optimizer_that_evaluates_the_loss_itself_is_trained_as_torch_does_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = deep(depth=2)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)

    def loss_fn(out: Tensor) -> Tensor:
        return (out - 1).square().mean()

    regression = written(tmp_path / "a.json")
    regression.check(model, X, loss_fn=loss_fn, steps=3, optimizer=optimizer)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not optimizer.state
    assert GradientRegression(tmp_path / "a.json").check(model, X, loss_fn=loss_fn, steps=3, optimizer=optimizer)

    losses = []
    for _ in range(3):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(model(X))
            loss.backward()
            return loss

        losses.append(loss_fn(model(X)).item())
        optimizer.step(closure)  # type: ignore[arg-type]
    kept = load_baseline(tmp_path / "a.json")
    assert kept.loss.tolist() == pytest.approx(losses, rel=1e-5)
    assert losses[2] < losses[0] / 2


def test_a_check_that_cannot_be_made_is_told_too(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    regression = GradientRegression(tmp_path / "a.json", told=lambda one: told.append((one.status, one.headline)))
    for model, x in ((deep().requires_grad_(False), X), (deep(), X[:, :3])):
        with pytest.raises((ValueError, RuntimeError)):
            regression.check(model, x)
        with pytest.raises((ValueError, RuntimeError)):
            regression.assert_healthy(model, x)
    assert [status for status, _ in told] == ["unusable"] * 4
    assert told[0][1] == told[1][1] == "the model's output has no gradient: nothing in it requires one"
    assert told[2][1].startswith("RuntimeError: mat1 and mat2")


class Restless(nn.Module):
    """Draws from a generator of its own that nobody seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 1)
        self.generator = torch.Generator()
        self.generator.seed()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) + torch.randn(32, generator=self.generator))


@pytest.mark.parametrize("factory", [False, True])
def test_a_model_that_is_not_deterministic_is_refused_and_the_site_is_named(tmp_path: Path, factory: bool) -> None:
    model = Restless if factory else Restless()
    with pytest.raises(NotDeterministicError, match=r"activation of second is first .* give a generator") as caught:
        written(tmp_path / "a.json").check(model, X)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_weights_or_inputs_of_another_seed_are_told_from_a_fault(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = deep()
    written(tmp_path / "a.json").check(model, X)
    torch.manual_seed(1)
    with pytest.raises(AssertionError, match="the weights differ from the start: if the model was made before"):
        GradientRegression(tmp_path / "a.json").check(deep(), X)
    with pytest.raises(AssertionError, match="the inputs themselves differ"):
        GradientRegression(tmp_path / "a.json").check(model, 2 * X)


def test_what_cannot_be_compared_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    written(path).check(deep, X)
    with pytest.raises(BaselineError, match="has 1 step, and this run has 2"):
        GradientRegression(path).check(deep, X, steps=2, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    with pytest.raises(BaselineError, match="is of one seed and this run is of 4 seeds"):
        GradientRegression(path).check(deep, X, seeds=4)
    with pytest.raises(BaselineError, match="for another test, 'a', and not for 'b'"):
        GradientRegression(path, "b").check(deep, X)
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda:0"'))
    with pytest.raises(BaselineError, match="was made on cuda:0 and this run is on cpu"):
        GradientRegression(path).check(deep, X)


def test_arguments_that_cannot_be_meant_are_refused_in_one_sentence(tmp_path: Path) -> None:
    check = written(tmp_path / "a.json").check
    with pytest.raises(TypeError, match="model is of type int"):
        check(3, X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps is 3 and there is no optimizer"):
        check(deep, X, steps=3)
    with pytest.raises(ValueError, match="seeds needs a function"):
        check(deep(), X, seeds=4)
    with pytest.raises(ValueError, match="seeds is 2; a whole number from 4"):
        check(deep, X, seeds=2)
    with pytest.raises(ValueError, match="optimizer holds another's parameters"):
        check(deep, X, optimizer=torch.optim.SGD(deep().parameters(), lr=0.1))
    frozen = deep().requires_grad_(False)
    with pytest.raises(ValueError, match="the model's output has no gradient"):
        check(frozen, X)
    with pytest.raises(ValueError, match="the model has no parameter that is trained"):
        check(frozen, X, steps=2, optimizer=torch.optim.SGD)
    assert not list(tmp_path.iterdir())


def test_it_works_where_torch_s_own_testing_has_frozen_the_global_flags(tmp_path: Path) -> None:
    """`torch.testing._internal` calls it when imported, and a suite may import that; it cannot be undone."""
    program = (
        "import torch; from torch import nn; torch.backends.disable_global_flags()\n"
        "from gradscope.testing import assert_signal_propagates\n"
        "assert_signal_propagates(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), torch.ones(4, 8))\n"
        "from gradscope.testing._deterministic import deterministic\n"
        "before = torch._C._get_cudnn_deterministic()\n"
        "with deterministic(0): assert torch._C._get_cudnn_deterministic()\n"
        "assert torch._C._get_cudnn_deterministic() == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
