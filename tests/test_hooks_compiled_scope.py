"""GradScope on compiled models: recorded steps are those of the uncompiled model, the others its one graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from gradscope import GradScope, GradScopeWarning
from gradscope.recording import Recording

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.silu, self.norm = nn.Linear(6, 6), nn.SiLU(inplace=True), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.silu(self.norm(self.linear(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _whole(model: nn.Module, backend: Any) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend=backend, fullgraph=True)


def _in_place(model: nn.Module, backend: Any) -> Callable[[Tensor], Tensor]:
    model.compile(backend=backend)
    return model


def _blocks(model: nn.Module, backend: Any) -> Callable[[Tensor], Tensor]:
    for block in model.blocks:
        block.compile(backend=backend, fullgraph=True)
    return model


def _wrapped_blocks(model: nn.Module, backend: Any) -> Callable[[Tensor], Tensor]:
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, backend=backend)
    return model


def _function(model: nn.Module, backend: Any) -> Callable[[Tensor], Tensor]:
    return torch.compile(lambda x: model(x), backend=backend)


def _as_it_is(model: nn.Module, backend: Any) -> Callable[[Tensor], Tensor]:
    return model


WAYS = (_whole, _in_place, _blocks, _wrapped_blocks, _function)


def train(way: Callable[..., Any], backend: Any, every: int = 3, attach_at: int = 0) -> tuple[GradScope, list[Tensor]]:
    torch.manual_seed(0)
    model = Net()
    run = way(model, backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope: GradScope | None = None
    for step in range(6):
        if step == attach_at:
            scope = GradScope(run if isinstance(run, nn.Module) else model, every=every)
        optimizer.zero_grad()
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        run(x).square().mean().backward()
        optimizer.step()
    assert scope is not None
    scope.close()
    return scope, [p.detach().clone() for p in model.parameters()]


def profiles(recording: Recording) -> dict[str, Any]:
    return {
        signal: ([s.name for s in recording.sites_of(signal)], recording.values(signal, "rms"))
        for signal in ("activation", "activation_grad", "weight_grad", "update")
    }


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_model_is_recorded_like_the_plain_one_and_trains_to_the_same_bits(way: Any, backend: str) -> None:
    counter = CompileCounterWithBackend(backend)
    plain, expected = train(_as_it_is, None)
    scope, parameters = train(way, counter)
    assert all(torch.equal(a, b) for a, b in zip(expected, parameters, strict=True))
    found, wanted = profiles(scope.recording), profiles(plain.recording)
    assert scope.recording.steps.tolist() == [0, 3]
    for signal, (names, values) in wanted.items():
        assert found[signal][0] == names
        assert np.array_equal(found[signal][1], values, equal_nan=True)
    assert scope.unobserved == plain.unobserved == {}
    assert counter.frame_count >= 1  # the other steps ran as compiled
    assert counter.frame_count <= (2 if way in (_blocks, _wrapped_blocks) else 1)


@pytest.mark.parametrize("way", [_whole, _in_place, _blocks])
def test_a_scope_attached_after_the_first_compiled_call_sees_all_the_same(way: Any) -> None:
    plain, expected = train(_as_it_is, None, attach_at=2)
    scope, parameters = train(way, "aot_eager", attach_at=2)
    assert all(torch.equal(a, b) for a, b in zip(expected, parameters, strict=True))
    assert np.array_equal(
        scope.recording.values("activation_grad", "rms"), plain.recording.values("activation_grad", "rms")
    )


def test_a_function_compiled_before_the_scope_was_attached_is_told_with_what_to_do() -> None:
    torch.manual_seed(0)
    model = Net()
    run = torch.compile(lambda x: model(x), backend="eager")
    run(torch.randn(4, 6)).sum().backward()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with GradScope(model) as scope:
            for _ in range(3):
                run(torch.randn(4, 6)).sum().backward()
    told = [str(w.message) for w in caught if w.category is GradScopeWarning]
    assert len(told) == 1
    assert "torch.compiler.reset()" in told[0]
    assert "torch.compiler.reset()" in scope.unobserved["<root>"]


def test_a_function_compiled_as_one_graph_is_unharmed_and_that_nothing_is_seen_is_told() -> None:
    torch.manual_seed(0)
    model = Net()
    run = torch.compile(lambda x: model(x), backend="eager", fullgraph=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with GradScope(model, functional=True) as scope:
            for _ in range(3):
                run(torch.randn(4, 6)).sum().backward()
    told = [str(w.message) for w in caught if w.category is GradScopeWarning]
    assert len(told) == 1
    assert "fullgraph=True" in told[0]
    assert len(scope.recording.steps) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore:.*jit:UserWarning")
def test_traces_and_exports_of_an_observed_model_have_nothing_of_ours_in_them() -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(4, 6)
    with GradScope(model) as scope:
        traced = torch.jit.trace(model, x)
        exported = torch.export.export(model, (x,))
        assert len(scope.recording.steps) == 0
    assert torch.equal(traced(x), model(x))
    assert torch.equal(exported.module()(x), model(x))
    assert not any("gradscope" in str(node.target) for node in exported.graph.nodes)
