"""A probe records one batch of any model and leaves it as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradscope import GradScope, probe
from tests.cases import CASES, Case, call


class WithLoss(nn.Module):
    """As transformers' models do: the output carries the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        logits = self.layer(x)
        return Output(logits, nn.functional.cross_entropy(logits, labels))


class Output(tuple):
    def __new__(cls, logits: Tensor, loss: Tensor) -> Output:
        self = super().__new__(cls, (loss, logits))
        self.loss = loss
        return self


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_probe_leaves_parameters_gradients_buffers_mode_and_random_state(case: Case) -> None:
    torch.manual_seed(0)
    model, inputs = case.model(), case.inputs()
    if case.name == "lazy":
        with pytest.raises(ValueError, match="parameters without a shape"):
            probe(model, inputs)
        call(model, inputs)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5) if parameter.requires_grad else None
    gradients = [p.grad for p in model.parameters()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.random.get_rng_state()
    recording = probe(model, inputs)
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(a is b for a, b in zip(gradients, (p.grad for p in model.parameters()), strict=True))
    assert all(g is None or (g == 0.5).all() for g in gradients)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    filled = recording.values("activation", "count") > 0
    assert np.isfinite(recording.values("activation", "rms")[filled]).all()
    assert recording.facts["source"] == "probe"


def test_without_a_loss_a_gradient_of_rms_one_enters_at_the_output() -> None:
    torch.manual_seed(0)
    recording = probe(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 512)), torch.randn(64, 64))
    # 32768 draws of v²: the standard deviation of its mean is √(2/32768) = 0.8 %, half of that for the rms.
    assert abs(recording.values("activation_grad", "rms")[0, -1] - 1) < 5 * 0.004


def test_the_loss_is_loss_fn_of_output_and_target() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(7, 3), torch.randint(2, (7,))
    recording = probe(model, x, y, nn.functional.cross_entropy)
    expected = nn.functional.cross_entropy(model(x), y)
    (gradient,) = torch.autograd.grad(expected, [model.weight])
    assert recording.notes("loss")[0] == expected.item()
    column = [s.name for s in recording.sites_of("weight_grad")].index("weight")
    assert np.isclose(recording.values("weight_grad", "std")[0, column], gradient.double().std(correction=0), rtol=1e-5)
    assert probe(model, x, loss_fn=lambda out: out.square().mean()).notes("loss")[0] > 0


def test_inputs_may_be_positional_or_named_and_the_output_may_carry_its_loss() -> None:
    model, x, labels = WithLoss(), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    for inputs in ((x, labels), {"x": x, "labels": labels}):
        assert probe(model, inputs).notes("loss")[0] == model(x, labels).loss.item()


def test_a_probe_works_where_gradients_are_off_and_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
    with torch.no_grad():
        recording = probe(model, torch.randn(8, 4))
    assert (recording.values("activation_grad", "rms") > 0).all()
    assert not model.training


def test_a_model_that_raises_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(5, 5))
    before = model[0].running_mean.clone()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        probe(model, torch.randn(8, 4))
    assert torch.equal(model[0].running_mean, before)
    assert not model._forward_hooks


def test_a_probe_in_the_middle_of_a_step_is_no_part_of_the_scopes_recording() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with GradScope(model) as scope:
        out = scope(torch.randn(3, 4)).sum()
        recording = probe(model, torch.randn(100, 4))
        out.backward()
    assert recording.values("activation", "count").tolist() == [[400, 400, 400]]
    assert scope.recording.values("activation", "count").tolist() == [[12, 12, 12]]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model": print}, "model is of type builtin_function_or_method; probe takes a torch.nn.Module"),
        ({"target": torch.zeros(2)}, "target is given without loss_fn"),
        ({"loss_fn": lambda out: out}, r"loss_fn returned a tensor of shape \(2, 3\); a tensor with one entry"),
        ({"loss_fn": lambda out: 1.0}, "loss_fn returned float"),
        ({"model": nn.Linear(3, 3).requires_grad_(False)}, "the model's output has no gradient"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        probe(**({"model": nn.Linear(3, 3), "inputs": torch.randn(2, 3)} | arguments))
