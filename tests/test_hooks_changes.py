"""A model that changes between its steps: what is recorded by the short ways is what is true, at each step and at few.

Oracles are plain torch beside the scope, in float64.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradscope import GradScope, Recording
from gradscope.hooks import _kernel as kernel
from gradscope.hooks._blocks import Pool
from gradscope.hooks._moments import Arena

EVERY = (1, 3)


def small() -> tuple[nn.Sequential, torch.optim.SGD]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def column(recording: Recording, signal: Any, name: str, statistic: Any = "mean") -> dict[int, float]:
    """By step, the value of one site."""
    names = [site.name for site in recording.sites_of(signal)]
    values = recording.values(signal, statistic)[:, names.index(name)]
    return dict(zip(map(int, recording.steps), map(float, values), strict=True))


@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("like", ["transposed", "channels_last", "converted", "otherwise"])
def test_a_difference_is_taken_entry_by_entry_however_both_lie(
    like: str, dtype: torch.dtype, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native and kernel.native is None:
        pytest.skip("the native kernel was not built here")
    if not native:
        monkeypatch.setattr("gradscope.hooks._moments.native", None)
    torch.manual_seed(0)
    before = torch.randn(3, 4, 5, 6).to(dtype)
    if like == "transposed":
        before = before.transpose(0, 3)
    elif like == "channels_last":
        before = before.to(memory_format=torch.channels_last)
    after = (before.double() * 1.5 + 1).to(dtype)
    if like == "otherwise":
        after = after.to(memory_format=torch.channels_last)
    elif like == "converted":
        after = after.double()
    arena = Arena(Pool(False))
    assert arena.observe(after, before) == 0
    arena.send()
    moments = arena.host.moments([0])
    true = after.double() - before.double()
    assert moments.mean[0] == pytest.approx(true.mean().item(), rel=1e-6, abs=1e-7)
    assert moments.std[0] == pytest.approx(true.std(correction=0).item(), rel=1e-6)
    assert moments.max[0] == pytest.approx(true.max().item(), rel=1e-6)


def test_updates_of_a_channels_last_convnet_are_what_was_added() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)
    optimizer, true = torch.optim.SGD(model.parameters(), lr=0.1), []
    with GradScope(model, optimizer, every=1) as scope:
        for _ in range(3):
            before = model[2].weight.detach().double().clone()
            optimizer.zero_grad()
            model(torch.randn(2, 3, 8, 8)).square().mean().backward()
            optimizer.step()
            true.append((model[2].weight.detach().double() - before).std(correction=0).item())
    assert list(column(scope.recording, "update", "2.weight", "std").values()) == pytest.approx(true, rel=1e-6)


def _expand(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data[:1].expand(4, 4)


def _view(layer: nn.Linear) -> None:
    layer.half()
    layer.weight.data = layer.weight.data.view(torch.bfloat16)


@pytest.mark.parametrize("given", [True, False], ids=["optimizer", "no optimizer"])
@pytest.mark.parametrize("change", [nn.Module.double, nn.Module.half, _expand, _view], ids=lambda f: f.__name__)
def test_weights_and_updates_are_true_where_their_data_was_changed_between_steps(
    change: Callable[[nn.Linear], Any], given: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False)
    if change is _view:
        layer.half()  # so that the change leaves the address
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    weights, updates = [], []
    with GradScope(layer, optimizer if given else None, every=1) as scope:
        for step in range(3):
            if step == 1:
                change(layer)
            before = layer.weight.detach().double().clone()
            optimizer.zero_grad()
            layer(torch.ones(2, 4, dtype=layer.weight.dtype)).sum().backward()
            if step and change is _expand:
                optimizer.zero_grad()  # what is expanded cannot be changed in place
            optimizer.step()
            weights.append(before.mean().item())
            updates.append((layer.weight.detach().double() - before).mean().item())
    assert list(column(scope.recording, "weight", "weight").values()) == pytest.approx(weights, rel=1e-6)
    found = column(scope.recording, "update", "weight")
    for step, update in enumerate(updates):
        if given or step or change is nn.Module.double:  # else the change between the steps is a part of the update
            assert found[step] == pytest.approx(update, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("closed_by", ["optimizer", "no optimizer", "scope.step()"])
@pytest.mark.parametrize(
    "whole", [lambda step: step < 2, lambda step: step % 2 == 0], ids=["first two", "every second"]
)
def test_steps_that_call_parts_of_the_model_count_while_the_hooks_rest(
    whole: Callable[[int], bool], closed_by: str
) -> None:
    model, optimizer = small()
    scope = GradScope(model, optimizer if closed_by == "optimizer" else None, every=4)
    for step in range(20):
        x = torch.ones(2, 4)
        optimizer.zero_grad()
        (model(x) if whole(step) else model[2](model[0](x))).square().mean().backward()
        optimizer.step()
        scope.note(made=step)
        if closed_by == "scope.step()":
            scope.step()
    scope.close()
    assert list(scope.recording.steps) == [0, 4, 8, 12, 16]
    assert list(scope.recording.notes("made")) == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("given", [True, False], ids=["optimizer", "no optimizer"])
def test_a_parameter_that_was_frozen_when_the_hooks_were_put_on_again_has_its_gradient(given: bool) -> None:
    model, optimizer = small()
    true = {}
    with GradScope(model, optimizer if given else None, every=3) as scope:
        for step in range(8):
            model[0].weight.requires_grad_(step not in (2, 5))
            optimizer.zero_grad()
            model(torch.randn(2, 4)).sum().backward()
            if step % 3 == 0:
                true[step] = model[0].weight.grad.mean().item()
            optimizer.step()
    assert column(scope.recording, "weight_grad", "0.weight") == pytest.approx(true, rel=1e-5)


@pytest.mark.parametrize("every", EVERY)
def test_a_hook_of_others_stays_behind_ours_when_the_hooks_have_rested(every: int) -> None:
    model, optimizer = small()
    calls: list[str] = []
    model[0].register_forward_hook(lambda _, __, output: calls.append("earlier") or output * 2)
    with GradScope(model, optimizer, every=every) as scope:
        model[0].register_forward_hook(lambda _, __, output: calls.append("later") or output * 100)
        optimizer.param_groups[0]["lr"] = 0.0
        for _ in range(7):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
    true = 2 * nn.functional.linear(torch.ones(2, 4), model[0].weight, model[0].bias).double().mean().item()
    assert calls == ["earlier", "later"] * 7
    assert column(scope.recording, "activation", "0") == pytest.approx(
        dict.fromkeys(range(0, 7, every), true), rel=1e-6
    )


@pytest.mark.parametrize("leaves", [False, True], ids=["computed", "copies"])
@pytest.mark.parametrize("every", EVERY)
def test_weights_that_stand_in_for_a_call_are_let_go_and_the_trained_ones_recorded(every: int, leaves: bool) -> None:
    model, optimizer = small()
    gradients, updates = {}, {}
    with GradScope(model, optimizer, every=every) as scope:
        for step in range(5):
            doubled = {name: parameter * 2 for name, parameter in model.named_parameters()}
            alive = weakref.ref(doubled["0.weight"])
            optimizer.zero_grad()
            if leaves:  # as first-order meta-learning has it: their gradients are given to the trained ones
                doubled = {name: parameter.detach().requires_grad_() for name, parameter in doubled.items()}
                alive = weakref.ref(doubled["0.weight"])
            functional_call(model, doubled, (torch.ones(2, 4),)).square().sum().backward()
            if leaves:
                for name, parameter in model.named_parameters():
                    parameter.grad = doubled[name].grad
            del doubled
            before, gradient = model[0].weight.detach().double().clone(), model[0].weight.grad.mean().item()
            optimizer.step()
            assert alive() is None
            if step % every == 0:
                gradients[step] = gradient
                updates[step] = (model[0].weight.detach().double() - before).mean().item()
    assert column(scope.recording, "weight_grad", "0.weight") == pytest.approx(gradients, rel=1e-5)
    assert column(scope.recording, "update", "0.weight") == pytest.approx(updates, rel=1e-5)


@pytest.mark.parametrize("given", [True, False], ids=["optimizer", "no optimizer"])
def test_clipping_is_seen_where_others_have_hooks_on_the_parameters_too(given: bool) -> None:
    model, optimizer = small()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: None)
    with GradScope(model, optimizer if given else None, every=1) as scope:
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), 0.1))
        optimizer.step()
    notes = scope.recording.notes_at(-1)
    assert notes["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert notes["grad_norm_clipped"] == pytest.approx(0.1, rel=1e-4)
    assert notes["clip_coefficient"] == pytest.approx(0.1 / norm, rel=1e-4)


class SometimesNumber(nn.Module):
    """Gives a matrix, and at every second call a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * 2 if self.calls % 2 else x.mean()


class Itself(nn.Module):
    """A leaf, though it has a name for a child, that returns what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.register_module("child", None)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Outer(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.layer, self.part = nn.Linear(4, 4), part

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.part(self.layer(x))
        return out.sum()[None]


@pytest.mark.parametrize(("part", "recorded"), [(SometimesNumber, [0, 2, 4]), (Itself, [0, 1, 2, 3, 4, 5])])
def test_a_call_is_recorded_or_not_whichever_way_it_takes(part: type[nn.Module], recorded: list[int]) -> None:
    torch.manual_seed(0)
    model = Outer(part())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradScope(model, optimizer, every=1) as scope:
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
    found = column(scope.recording, "activation", "part")
    assert [step for step, value in found.items() if not math.isnan(value)] == recorded


@pytest.mark.parametrize("signals", [("weight", "update"), ("weight_grad",)])
def test_layers_that_are_called_are_not_said_to_be_silent_when_one_is_unfrozen(signals: tuple[Any, ...]) -> None:
    model, optimizer = small()
    model[0].requires_grad_(False)
    with GradScope(model, every=1, signals=signals) as scope:
        for step in range(6):
            if step == 3:
                model[0].requires_grad_(True)
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        assert not scope.unobserved


def test_a_batch_of_gradients_is_passed_over_and_the_loss_s_own_is_recorded() -> None:
    model, optimizer = small()
    with GradScope(model, optimizer, every=1) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            out = model(torch.ones(2, 4))
            torch.autograd.grad(
                out, model[0].weight, torch.eye(6).view(6, 2, 3), is_grads_batched=True, retain_graph=True
            )
            out.sum().backward()
            optimizer.step()
    assert list(scope.recording.steps) == [0, 1, 2]
    assert column(scope.recording, "activation_grad", "2") == {0: 1.0, 1: 1.0, 2: 1.0}


@pytest.mark.parametrize("every", [1, 4])
def test_a_new_layer_with_an_optimizer_of_its_own_keeps_the_steps_going(every: int) -> None:
    model, optimizer = small()
    with GradScope(model, every=every) as scope:
        for step in range(16):
            if step == 2:
                model[2] = nn.Linear(4, 3)
                optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
            out = model(torch.ones(2, 4))
            optimizer.zero_grad(set_to_none=False)
            out.square().sum().backward()
            optimizer.step()
    assert list(scope.recording.steps) == list(range(0, 16, every))


@pytest.mark.parametrize("every", EVERY)
def test_layers_that_change_places_or_names_are_recorded_where_they_stand(every: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.0), torch.randn(8, 4)
    with GradScope(model, optimizer, every=every) as scope:
        for step in range(7):
            if step == 2:
                model[0], model[1] = model[1], model[0]
            if step == 4:
                del model[0]  # all others have another number
            if step == 5:
                model.last = model[-1]
                del model._modules["3"]
            model(x).square().mean().backward()
            optimizer.step()
    recording, at = scope.recording, x
    names = [site.name for site in recording.sites_of("activation")]
    assert not any("#" in name for name in names)  # none was called twice
    for name, layer in model.named_children():
        at = layer(at)
        mean = at.detach().double().mean().item()
        assert column(recording, "activation", name)[6] == pytest.approx(mean, abs=1e-7), name
        if isinstance(layer, nn.Linear):
            mean = layer.weight.detach().double().mean().item()
            assert column(recording, "weight", f"{name}.weight")[6] == pytest.approx(mean, abs=1e-8), name
    for gone in ("3", "4"):
        assert math.isnan(column(recording, "activation", gone)[6])
        assert math.isnan(column(recording, "activation_grad", gone)[6])
        assert math.isnan(column(recording, "weight", f"{gone}.weight")[6])


@pytest.mark.parametrize("every", [1, 50])
def test_a_layer_that_was_taken_out_is_let_go(every: int) -> None:
    model, optimizer = small()
    with GradScope(model, optimizer, every=every):
        for step in range(4):
            if step == 2:
                gone, model[0] = weakref.ref(model[0]), nn.Linear(4, 4)
                optimizer = optimizer.__class__(model.parameters(), lr=0.1)
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        gc.collect()
        assert gone() is None
