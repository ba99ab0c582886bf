"""On a CUDA device: no synchronization in a hook, the same bits, the same numbers. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradscope import GradScope, GradScopeWarning
from tests.cases import CASES, Case, call, total

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@contextmanager
def no_synchronization() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_device(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cuda()
    if isinstance(value, tuple):
        return tuple(map(on_device, value))
    return {k: on_device(v) for k, v in value.items()} if isinstance(value, dict) else value


def _mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(inplace=True), nn.Linear(64, 8)).cuda()


@pytest.mark.parametrize("options", [{}, {"on_nonfinite": "warn", "histograms": True, "functional": True}], ids=str)
def test_training_steps_with_every_signal_synchronize_nowhere(options: dict[str, Any]) -> None:
    model, x = _mlp(), torch.randn(16, 32, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(scope: GradScope | None) -> None:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        if scope is not None:
            scope.note(loss=loss)

    step(None)  # lazy handles of the libraries synchronize once
    with GradScope(model, optimizer, every=1, **options) as scope:
        step(scope)  # our own buffers and pinned memory are made
        with no_synchronization():
            for _ in range(5):
                step(scope)
    assert scope.recording.steps.tolist() == [*range(6)]
    assert np.isfinite(scope.recording.notes("loss")).all()
    assert np.isfinite(scope.recording.values("update", "rms")).all()


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "frozen encoder"], ids=str)
def test_outputs_and_gradients_are_bit_identical(case: Case) -> None:
    results = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    for observe in (False, True):
        torch.manual_seed(0)
        model, inputs = case.model().cuda(), on_device(case.inputs())
        if observe:
            with GradScope(model, histograms=True):
                loss = total_on_device(call(model, inputs))
                loss.backward()
        else:
            loss = total_on_device(call(model, inputs))
            loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    torch.use_deterministic_algorithms(False)
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a.to_dense(), b.to_dense())


def total_on_device(out: Any) -> Tensor:
    with torch.device("cuda"):
        return total(out)


def test_the_first_nan_on_the_device_is_named() -> None:
    model, x = _mlp(), torch.randn(16, 32, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scope = GradScope(model, optimizer, every=100, on_nonfinite="warn")
    for step in range(5):
        optimizer.zero_grad()
        batch = x / 0 if step == 3 else x
        model(batch).mean().backward()
        optimizer.step()
    with pytest.warns(GradScopeWarning, match="step 3"):
        scope.close()
    assert scope.first_nonfinite.site == "<input>"
    assert scope.recording.steps.tolist() == [0, 1, 2, 3]


def test_work_that_a_cuda_graph_captures_is_passed_over() -> None:
    model, x = _mlp(), torch.randn(16, 32, device="cuda")
    for _ in range(3):
        model(x).sum().backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with GradScope(model) as scope, torch.cuda.graph(graph):
        model(x)
    graph.replay()
    torch.cuda.synchronize()
    assert any("CUDA graph" in reason for reason in scope.unobserved.values())
