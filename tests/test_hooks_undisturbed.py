"""Observing changes nothing and leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradscope import GradScope, GradScopeWarning
from tests.cases import CASES, Case, call, total

STEPS = 20


def _train(case: Case, observe: str | None) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    model = case.model()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    scope = None
    if observe is not None:
        scope = GradScope(model, optimizer if observe == "optimizer" else None, every=1 if observe != "auto" else 3)
    outputs = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = total(call(model if scope is None else scope, case.inputs()))
        loss.backward()
        optimizer.step()
        if observe == "step":
            scope.step(loss)
        outputs.append(loss.detach())
    if scope is not None:
        scope.close()
        assert len(scope.recording.steps) == len(range(0, STEPS, 3 if observe == "auto" else 1))
    return [
        *outputs,
        *(p.detach() for p in model.parameters()),
        *model.buffers(),
    ], torch.random.get_rng_state()


@pytest.mark.parametrize("observe", ["step", "optimizer", "auto"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_twenty_steps_of_training_are_bit_identical_with_the_scope(case: Case, observe: str) -> None:
    bare, bare_state = _train(case, None)
    seen, seen_state = _train(case, observe)
    assert all(a.isfinite().all() for a in bare)
    assert all(torch.equal(a, b) for a, b in zip(bare, seen, strict=True))
    assert torch.equal(bare_state, seen_state)


def _hook_tables(model: nn.Module) -> list[Any]:
    tables = [getattr(m, name) for m in model.modules() for name in vars(m) if name.endswith("_hooks")]
    tables += [p._post_accumulate_grad_hooks for p in model.parameters()]
    tables += [p._backward_hooks for p in model.parameters()]
    return [hook for table in tables for hook in (table or {}).values()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_close_leaves_no_hook_on_modules_parameters_inputs_or_optimizer(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        inputs.requires_grad_()
    if case.name == "lazy":
        call(model, inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keys, hooks = list(model.state_dict()), _hook_tables(model)
    for kind in (None, optimizer):
        with GradScope(model, kind) as scope:
            total(call(scope, inputs)).backward()
            optimizer.step()
            assert list(scope.state_dict()) == keys
            assert len(_hook_tables(model)) > len(hooks)
        assert _hook_tables(model) == hooks
        assert not any(t._backward_hooks for t in inputs) if isinstance(inputs, tuple) else not inputs._backward_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_no_tensor_of_a_step_outlives_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    seen: list[weakref.ref[Tensor]] = []
    for layer in model:
        layer.register_forward_hook(lambda m, i, o: seen.append(weakref.ref(o)))
    with GradScope(model, every=1) as scope:
        for _ in range(3):
            scope(torch.randn(3, 4)).sum().backward()
            gc.collect()
            assert len(seen) == 3
            assert not any(ref() is not None for ref in seen)
            seen.clear()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_copy_of_an_observed_model_works_and_does_not_report(case: Case) -> None:
    model = case.model()
    with GradScope(model, every=1) as scope:
        total(call(scope, case.inputs())).backward()
        twins = [copy.deepcopy(model)]
        if case.name != "parametrizations":  # torch itself does not pickle these
            twins.append(pickle.loads(pickle.dumps(model)))
        for twin in twins:
            total(call(twin, case.inputs())).backward()
        scope.step()
        total(call(scope, case.inputs())).backward()
    assert scope.recording.steps.tolist() == [0, 1]
    counts = scope.recording.values("activation", "count")
    assert np.array_equal(counts[0], counts[1], equal_nan=True)


def test_an_error_inside_gradscope_warns_once_and_training_goes_on() -> None:
    def broken(site: object) -> bool:
        raise RuntimeError("a predicate of the user's that fails")

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    scope = GradScope(model, sites=broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            scope(torch.randn(3, 4)).sum().backward()
            scope.step()
        scope.close()
    assert [w.category for w in caught] == [GradScopeWarning]
    assert "a predicate of the user's that fails" in str(caught[0].message)
    assert not _hook_tables(model)
    assert all(p.grad is not None for p in model.parameters())


def test_hooks_of_others_stay() -> None:
    model = nn.Linear(3, 3)
    fired: list[str] = []
    model.register_forward_hook(lambda m, i, o: fired.append("forward"))
    model.weight.register_post_accumulate_grad_hook(lambda p: fired.append("gradient"))
    with GradScope(model) as scope:
        scope(torch.randn(2, 3)).sum().backward()
    model(torch.randn(2, 3)).sum().backward()
    assert fired == ["forward", "gradient"] * 2


def test_the_scope_passes_for_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with GradScope(model) as scope:
        assert len(scope) == 2
        assert scope[0] is model[0]
        assert list(scope) == list(model)
        assert scope.eval() is model
        assert not scope.training
        scope.extra = 5
        assert model.extra == 5
        with pytest.raises(AttributeError, match="Sequential"):
            _ = scope.missing
