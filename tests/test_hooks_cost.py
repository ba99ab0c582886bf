"""What recording costs, in counts that no other load can move: operations of torch, waits for values, memory.

Time is judged by `benchmarks/overhead`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.overhead.counts import growth, measurable, operations
from benchmarks.overhead.result import Result
from gradscope import GradScope
from gradscope.hooks import _kernel as kernel

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("ratio", "null", "valid"),
    [(1.0, 1.014, True), (1.0, 1.016, False), (1.05, 0.984, False), (1.5, 1.04, True), (1.5, 0.94, False)],
)
def test_a_figure_counts_where_the_null_tool_is_within_a_tenth_of_the_cost(
    ratio: float, null: float, valid: bool
) -> None:
    assert Result("tool", "W1", ratio=ratio, null=(1.0, null)).valid is valid


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(32, 32), nn.ReLU())])


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


INPUTS = {perceptron: (16, 32), convnet: (4, 3, 12, 12)}


def _per_tensor(make: Callable[[], nn.Module], scaled: bool = False, **given: Any) -> tuple[float, int]:
    """Operations of a recorded step beyond those of a bare one, over the tensors recorded; and values waited for."""
    model, x = make(), torch.randn(INPUTS[make])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)

    def step() -> None:
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()

    step()
    bare = operations(step)
    with GradScope(model, optimizer, every=1, scaler=scaler, **given) as scope:
        for _ in range(3):
            step()
        observed = operations(step)
        tensors = sum(len(scope.recording.sites_of(s)) for s in scope.recording.facts["signals"])
    more = observed - bare
    return more.total / tensors, more.syncs


@pytest.mark.skipif(kernel.native is None, reason="the native kernel was not built here")
@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("histograms", [False, True])
def test_the_native_kernel_needs_next_to_no_operation_of_torch(
    make: Callable[[], nn.Module], scaled: bool, histograms: bool
) -> None:
    operations_per_tensor, waits = _per_tensor(make, scaled, histograms=histograms)
    assert operations_per_tensor <= 0.3
    assert waits == 0


def test_the_native_kernel_is_built_where_the_interpreters_compiler_is() -> None:
    compiler = (sysconfig.get_config_var("CC") or "").split()
    if not compiler or shutil.which(compiler[0]) is None or sys.implementation.name != "cpython":
        pytest.skip("there is no compiler here")
    if os.environ.get("GRADSCOPE_NATIVE") == "0":
        pytest.skip("the kernel is not wanted")
    assert kernel.native is not None


@pytest.mark.parametrize("given", [{"mode": "sample"}, {"histograms": "sample"}], ids=str)
def test_a_sampled_step_waits_for_no_value(given: dict[str, Any]) -> None:
    for make in INPUTS:
        assert _per_tensor(make, **given)[1] == 0


_TORCH_ONLY = """
from tests.test_hooks_cost import INPUTS, _per_tensor
for make in INPUTS:
    assert _per_tensor(make, True, histograms=True)[1] == 0
    assert _per_tensor(make, mode="sample")[1] == 0
    assert _per_tensor(make, histograms="sample")[1] == 0
    operations, waits = _per_tensor(make)
    assert 3 < operations <= 7, (make.__name__, operations)
    assert waits == 0, waits
"""


def test_without_it_seven_operations_a_tensor_are_enough() -> None:
    environment = os.environ | {"GRADSCOPE_NATIVE": "0"}
    run = subprocess.run(
        [sys.executable, "-c", _TORCH_ONLY], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(not measurable(), reason="nothing tells here how much memory is in use")
@pytest.mark.parametrize(
    "given",
    [
        {"every": 1},
        {"every": 7},
        {"every": 1, "histograms": True},
        {"every": 1, "mode": "sample", "histograms": "sample"},
        {"every": "auto"},
        {"every": 7, "on_nonfinite": "warn"},  # with the ring of the steps since the last due one
    ],
    ids=str,
)
def test_a_thousand_steps_grow_by_less_than_five_megabytes(given: dict[str, Any]) -> None:
    model, x = perceptron(), torch.randn(16, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradScope(model, optimizer, **given):

        def step() -> None:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        grown = growth(step, steps=1000, warm=200)
    assert grown.heap <= 5e6
    assert grown.blocks <= 20_000  # a few for each step's number, none for its rows


def test_an_idle_scope_makes_no_operation_and_no_call_within_the_model() -> None:
    model, x = perceptron(), torch.randn(16, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step()
    bare = operations(step)
    with GradScope(model, optimizer, every=1000):
        for _ in range(3):
            step()
        more = operations(step) - bare
        assert more.total == 0
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model)


def test_the_suite_of_values_holds_without_the_native_kernel() -> None:
    """The numbers of a run are those of float64 numpy whichever code reduces them."""
    environment = os.environ | {"GRADSCOPE_NATIVE": "0"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_hooks_values.py"]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
