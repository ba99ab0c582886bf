"""Awkward models: what is seen of them, what is said of the rest, and that others' modes notice nothing."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gradscope import GradScope
from gradscope.recording import Recording
from tests.cases import CASES, Segments, call, total

BY_NAME = {case.name: case for case in CASES}


def rms(recording: Recording, signal: str, step: int = 0) -> dict[str, float]:
    return dict(
        zip((s.name for s in recording.sites_of(signal)), recording.values(signal, "rms")[step].tolist(), strict=True)
    )


def observed(name: str, **options: Any) -> GradScope:
    torch.manual_seed(0)
    case = BY_NAME[name]
    with GradScope(case.model(), **options) as scope:
        total(call(scope, case.inputs())).backward()
    return scope


def test_calls_in_reentrant_segments_within_segments_have_each_its_own_gradient() -> None:
    class Plain(Segments):
        def outer(self, x: Tensor) -> Tensor:
            return self.inner(torch.tanh(self.cell(x)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for _ in range(2):
                x = self.outer(x)
            return self.inner(x)

    torch.manual_seed(0)
    model, plain, x = Segments(), Plain(), torch.randn(4, 6)
    plain.load_state_dict(model.state_dict())
    found = []
    for each in (model, plain):
        with GradScope(each) as scope:
            scope(x).square().sum().backward()
        found.append(rms(scope.recording, "activation_grad"))
        assert [s.depth for s in scope.recording.sites_of("activation_grad") if s.module == "cell"] == [*range(2, 10)]
    del found[0]["<root>"], found[1]["<root>"]
    assert found[0] == found[1]


def test_an_encoder_in_evaluation_still_takes_its_fused_path() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    for each in (model, nn.Sequential(model, nn.Linear(8, 2))):
        with (
            GradScope(each, validation=True) as scope,
            torch.no_grad(),
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
        ):
            scope(torch.randn(2, 4, 8))
        assert "aten::_transformer_encoder_layer_fwd" in {event.key for event in profile.key_averages()}
        assert not model._forward_hooks
        assert scope.validation.values("activation", "count")[0, 1] == 64
        name = "<root>" if each is model else "0"
        assert "fused path" in scope.unobserved[name]


def test_an_encoder_that_left_its_fused_path_is_observed_again() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with GradScope(model) as scope:
        model.eval()
        with torch.no_grad():
            model(torch.randn(2, 4, 8))
        model.train()
        model(torch.randn(2, 4, 8)).sum().backward()
    assert {"self_attn", "linear1", "norm2"} <= set(rms(scope.recording, "activation_grad"))


class Functions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.last = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        h = F.gelu(self.last(h)) + torch.tanh(h)
        h = F.scaled_dot_product_attention(h, h, h)
        return F.gelu(h).sigmoid().clamp(min=0)


def test_functional_activations_are_sites_where_asked_for_and_their_numbers_are_right() -> None:
    torch.manual_seed(0)
    model, x = Functions(), torch.randn(2, 3, 6)
    with GradScope(model, functional=True) as scope:
        scope(x).square().sum().backward()
    sites = {s.name: s for s in scope.recording.sites_of("activation_grad")}
    assert [n for n in sites if ":" in n] == [
        "<root>:gelu",
        "<root>:tanh",
        "<root>:scaled_dot_product_attention",
        "<root>:gelu#1",
        "<root>:sigmoid",
        "<root>:clamp",
    ]
    assert sites["<root>:gelu"].role == "activation"
    assert sites["<root>:scaled_dot_product_attention"].role == "other"
    assert not any(n.startswith("body.1:") for n in sites)  # the module is the site
    last = torch.relu(model.body[0](x))
    h = F.gelu(model.last(last)) + torch.tanh(last)
    attended = F.scaled_dot_product_attention(h, h, h).detach().requires_grad_()
    gelu = F.gelu(attended)
    gelu.retain_grad()
    gelu.sigmoid().clamp(min=0).square().sum().backward()
    assert np.isclose(rms(scope.recording, "activation_grad")["<root>:gelu#1"], gelu.grad.square().mean().sqrt().item())
    expected = attended.grad.square().mean().sqrt().item()
    assert np.isclose(rms(scope.recording, "activation_grad")["<root>:scaled_dot_product_attention"], expected)
    with GradScope(model) as plain:
        plain(x).square().sum().backward()
    assert not any(":" in s.name for s in plain.recording.sites)


@pytest.mark.parametrize("case", [c for c in CASES if "checkpoint" not in c.name], ids=str)
def test_functional_sites_change_no_bit(case: Any) -> None:
    results = []
    for options in (None, {"functional": True, "validation": True, "on_nonfinite": "warn", "histograms": True}):
        torch.manual_seed(0)
        model = case.model()
        if options is None:
            total(call(model, case.inputs())).backward()
        else:
            with GradScope(model, **options):
                total(call(model, case.inputs())).backward()
        results.append([p.grad for p in model.parameters()] + [torch.random.get_rng_state()])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.equal(a.to_dense(), b.to_dense())


def test_what_was_not_called_or_called_around_its_hooks_is_said() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.called, self.direct, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.direct.forward(self.called(x))
            return self.attention(x, x, x)[0]

    with GradScope(Net()) as scope:
        scope(torch.randn(2, 3, 4)).sum().backward()
    assert set(scope.unobserved) == {"direct", "never", "attention.out_proj"}
    assert "not by calling it" in scope.unobserved["direct"]
    assert "never called" in scope.unobserved["never"]
    assert "MultiheadAttention" in scope.unobserved["attention.out_proj"]
    assert scope.recording.facts["unobserved"] == scope.unobserved
    assert "direct: " in str(scope)


def test_a_module_that_is_called_later_is_observed_from_then_on() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.both = False

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) if self.both else self.a(x)

    model = Net()
    with GradScope(model) as scope:
        model(torch.randn(2, 4)).sum().backward()
        assert "b" in scope.unobserved
        model.both = True
        model(torch.randn(2, 4)).sum().backward()
        model.c = nn.Linear(4, 4)
        model.forward = lambda x: model.c(model.a(x))
        model(torch.randn(2, 4)).sum().backward()
    assert scope.unobserved == {}
    assert [s.name for s in scope.recording.sites_of("activation_grad")] == ["a", "b", "c"]
    assert np.isfinite(scope.recording.values("weight_grad", "rms")[2, -2:]).all()


def test_a_view_whose_gradient_a_change_in_place_hides_is_said_to_be_unobserved() -> None:
    scope = observed("part changed in place")
    assert "changed in place" in scope.unobserved["part"]
    found = rms(scope.recording, "activation_grad")
    assert np.isnan(found.get("part", np.nan))
    assert {"part.linear", "last"} <= set(found)


def test_a_base_that_its_module_uses_itself_is_not_taken_for_its_view() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h, c = self.cell(x)  # without a batch both are views, and h is made of the base of c
            c.mul_(2)
            return torch.cat([h, c])

    with GradScope(Net()) as scope:
        for _ in range(2):
            scope(torch.randn(4)).square().sum().backward()
    assert "changed in place" in scope.unobserved["cell[1]"]
    assert np.isnan(scope.recording.values("activation_grad", "rms")[:, 1]).all()


def test_a_module_that_hands_on_a_view_has_its_gradient_although_the_view_is_changed_later() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.ReLU(inplace=True))
    x, weights = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    with GradScope(model) as scope:
        (scope(x) * weights).sum().backward()
    returned = model[0](x).detach().requires_grad_()
    (returned.relu() * weights).sum().backward()
    found = rms(scope.recording, "activation_grad")
    assert found["0"] == found["1"]
    assert np.isclose(found["0"], returned.grad.square().mean().sqrt().item(), rtol=1e-6)
    assert scope.unobserved == {}


class Views(nn.Module):
    """In a checkpointed segment: a view changed in place after a layer, and one after a module of another's making."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.cell = nn.Linear(4, 4), nn.LSTMCell(4, 4)

    def segment(self, x: Tensor) -> Tensor:
        h = self.linear(x).relu_()
        hidden, c = self.cell(h[0, 0])  # the cell made hidden of the base of c
        return h * c.mul_(2) + hidden

    def forward(self, x: Tensor, reentrant: bool) -> Tensor:
        return checkpoint(self.segment, x, use_reentrant=True) if reentrant else self.segment(x)


def test_a_view_changed_in_place_in_a_reentrant_segment_has_its_gradient_or_is_said() -> None:
    torch.manual_seed(0)
    model, x = Views(), torch.randn(2, 3, 4, requires_grad=True)
    scopes = []
    for reentrant in (False, True):
        with GradScope(model) as scope:
            scope(x, reentrant).square().sum().backward()
        scopes.append(scope)
    plain, again = (rms(scope.recording, "activation_grad") for scope in scopes)
    assert plain["linear"] == again["linear"] > 0
    assert all("in place" in scope.unobserved["cell[1]"] for scope in scopes)
    assert np.isnan(again.get("cell[1]", np.nan))


def test_a_view_that_nothing_uses_is_not_said_to_have_been_changed() -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.linear(x)
            return h, h[:, 0]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Body(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h, pooled = self.body(x)
            return self.head(h) + 0 * pooled.detach().sum()

    with GradScope(Net()) as scope:
        scope(torch.randn(2, 3, 4)).sum().backward()
    assert scope.unobserved == {}


@pytest.mark.parametrize("model", [nn.MSELoss(), nn.CrossEntropyLoss()], ids=["mse", "cross entropy"])
def test_a_loss_as_the_model_is_no_silence(model: nn.Module) -> None:
    x = torch.rand(3, 4, requires_grad=True)
    with GradScope(model) as scope:
        scope(x, torch.rand(3, 4)).backward()
    assert scope.unobserved == {}
    assert [s.name for s in scope.recording.sites_of("activation")] == ["<input>", "<input>[1]"]


def test_complex_values_are_passed_over_and_said_and_empty_ones_counted() -> None:
    scope = observed("complex and odd outputs")
    assert scope.unobserved == {"fourier": "its output is complex numbers"}
    counts = dict(
        zip(
            (s.name for s in scope.recording.sites_of("activation")),
            scope.recording.values("activation", "count")[0].tolist(),
            strict=True,
        )
    )
    assert counts == {"<input>": 24, "linear": 24, "odds": 0, "odds[2]": 24, "<root>": 24}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantized_output_is_passed_over_and_said() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.quantize = nn.Linear(3, 3), Quantize()

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            return h + self.quantize(h).dequantize().detach()

    with GradScope(Net()) as scope:
        scope(torch.randn(2, 3)).sum().backward()
    assert scope.unobserved == {"quantize": "its output is a quantized tensor"}


class Quantize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(x.detach(), 0.1, 0, torch.qint8)


def test_a_script_module_takes_no_hooks_and_that_is_said() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that scripting is deprecated
        model = nn.Sequential(torch.jit.script(nn.Linear(3, 3)), nn.Tanh())
    with GradScope(model) as scope:
        scope(torch.randn(2, 3)).sum().backward()
    assert scope.unobserved == {"0": "a ScriptModule, which takes no hooks"}
    assert np.isfinite(rms(scope.recording, "activation_grad")["1"])


def test_data_parallel_is_refused_with_what_to_use_instead() -> None:
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        GradScope(nn.DataParallel(nn.Linear(2, 2)))


def test_two_thousand_layers_are_observed() -> None:
    torch.manual_seed(0)
    layers = [m for _ in range(1000) for m in (nn.Linear(4, 4), nn.Tanh())]
    with GradScope(nn.Sequential(*layers)) as scope:
        scope(torch.randn(3, 4)).sum().backward()
    assert len(scope.recording.sites_of("activation_grad")) == 2000
    assert scope.recording.sites_of("activation_grad")[-1].depth == 2000


class Counting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(getattr(function, "__name__", str(function)))
        return function(*args, **(kwargs or {}))


def test_modes_of_others_see_none_of_our_operations() -> None:
    torch.manual_seed(0)
    model, x = BY_NAME["convolutions"].model(), torch.randn(3, 1, 8, 8)
    flops, calls = [], []
    for attach in (False, True):
        scope = GradScope(model, histograms=True) if attach else None
        counter = FlopCounterMode(display=False)
        with counter:
            model(x).sum().backward()
        flops.append(counter.get_total_flops())
        counting = Counting()
        with counting:
            model(x).sum().backward()
        calls.append(counting.calls)
        if scope is not None:
            scope.close()
            assert np.isfinite(scope.recording.values("activation", "rms")).all()
    assert flops[0] == flops[1]
    assert calls[0] == calls[1]


@pytest.mark.parametrize(
    "setting", ["deterministic", "anomaly", "default dtype", "meta default device", "saved tensors"]
)
def test_global_settings_of_others_are_respected(setting: str) -> None:
    from contextlib import ExitStack

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 4)
    packed: list[int] = []
    with ExitStack() as stack:
        if setting == "deterministic":
            torch.use_deterministic_algorithms(True)
            stack.callback(torch.use_deterministic_algorithms, False)
        elif setting == "anomaly":
            stack.enter_context(torch.autograd.set_detect_anomaly(True, check_nan=True))
        elif setting == "default dtype":
            torch.set_default_dtype(torch.float64)
            stack.callback(torch.set_default_dtype, torch.float32)
        elif setting == "meta default device":
            stack.enter_context(torch.device("meta"))
        else:
            stack.enter_context(
                torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.numel()) or t, lambda t: t)
            )
        model(x).sum().backward()
        before = len(packed)
        with GradScope(model, histograms=True) as scope:
            scope(x).sum().backward()
        assert len(packed) == 2 * before
    assert np.isfinite(scope.recording.values("activation_grad", "rms")).all()


def test_a_validation_in_inference_mode_spoils_no_later_step() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with GradScope(model, validation=True) as scope:
        with torch.inference_mode():
            model(torch.randn(5, 4))
        for _ in range(2):
            model(torch.randn(3, 4)).sum().backward()
            scope.step()
    assert scope.recording.steps.tolist() == [0, 1]
    assert scope.validation.values("activation", "count").tolist() == [[20, 20, 20]]


def test_a_copied_or_pickled_scope_is_the_model_without_it() -> None:
    with GradScope(nn.Linear(3, 3)) as scope:
        for twin in (copy.deepcopy(scope), pickle.loads(pickle.dumps(scope))):
            assert type(twin) is nn.Linear
            twin(torch.randn(2, 3)).sum().backward()
        scope(torch.randn(2, 3)).sum().backward()
    assert scope.recording.values("activation", "count").tolist() == [[6, 6]]


def test_tied_weights_have_one_site_under_their_first_name() -> None:
    scope = observed("tied weights")
    assert {s.name for s in scope.recording.sites_of("weight")} == {"embedding.weight", "body.weight", "body.bias"}


def test_lazy_modules_have_their_rows_from_the_first_step_on() -> None:
    scope = observed("lazy")
    for signal in ("weight", "weight_grad", "activation_grad"):
        assert np.isfinite(scope.recording.values(signal, "mean")).all()
    assert len(scope.recording.sites_of("weight_grad")) == 6


def test_frozen_unused_and_zero_gradients_are_told_apart() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(3, 3).requires_grad_(False)
            self.dead, self.head, self.unused = nn.Linear(3, 3), nn.Linear(3, 1), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.dead(self.frozen(x)))
            return self.head(h)

    model = Net()
    with torch.no_grad():
        model.dead.bias.fill_(-100.0)
    with GradScope(model) as scope:
        model(torch.randn(4, 3)).sum().backward()
        model.frozen.requires_grad_()
        scope.step()
        model(torch.randn(4, 3)).sum().backward()
    states = scope.recording.gradient_states(0)
    expected = {"frozen": "frozen", "dead": "zero", "unused": "unused"}
    assert {name: states[f"{name}.weight"] for name in expected} == expected
    assert (states["head.weight"], states["head.bias"]) == ("zero", "flows")
    later = scope.recording.gradient_states(1)
    assert later["frozen.weight"] == "zero"
    with GradScope(model, signals=("activation",)) as blind:
        model(torch.randn(4, 3)).sum().backward()
    with pytest.raises(ValueError, match="no weight_grad"):
        blind.recording.gradient_states()


def test_a_residual_stream_can_be_followed_apart_from_its_branches() -> None:
    scope = observed("in-place residual on views")
    stream = scope.recording.profile("activation", role="block")
    branch = scope.recording.profile("activation", role="pre-activation")
    assert [s.name for s in stream.sites] == ["0", "1"]
    assert [s.name for s in branch.sites] == ["0.first", "0.second", "1.first", "1.second"]


def test_a_clamp_by_tensors_and_an_output_without_end_stop_nothing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.odd = nn.Linear(3, 3), Cyclic()

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x).clamp(min=torch.zeros(3))
            return self.odd(h)[0]

    with GradScope(Net()) as scope:
        scope(torch.randn(2, 3)).sum().backward()
    assert np.isfinite(rms(scope.recording, "activation_grad")["linear"])


class Cyclic(nn.Module):
    def forward(self, x: Tensor) -> list[Any]:
        out: list[Any] = [x * 2, range(10**9)]
        out.append(out)
        return out
