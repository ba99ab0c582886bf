"""What the scope records is what float64 numpy finds on the tensors themselves."""

from __future__ import annotations

from collections import defaultdict
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradscope import GradScope
from gradscope.hooks import _kernel as kernel
from gradscope.hooks import _moments as moments
from gradscope.hooks._blocks import Pool
from gradscope.hooks._lattice import Lattice
from gradscope.hooks._moments import Arena
from gradscope.recording import STATISTICS, Moments, Recording
from tests.cases import CASES, Case, call, total

# Checkpointing repeats calls, a fused path makes none, and the oracle cannot see below a change in place.
_OTHERS = ("checkpoint", "view", "segments", "part changed", "frozen encoder", "lazy")
LEAVES = [c for c in CASES if not any(word in c.name for word in _OTHERS)]


def close(measured: float, expected: float, rel: float = 1e-5) -> bool:
    return bool(np.isclose(measured, expected, rtol=rel, atol=0, equal_nan=True))


def _floating(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = value.values()
    return [t for v in value for t in _floating(v)] if isinstance(value, (tuple, list, type({}.values()))) else []


class Oracle:
    """Copies of every leaf module's outputs and of their gradients, by site name."""

    def __init__(self, model: nn.Module) -> None:
        self.activation: dict[str, Tensor] = {}
        self.gradient: dict[str, Tensor] = {}
        self.calls: dict[str, int] = defaultdict(int)
        for name, module in model.named_modules():
            if not list(module.children()) and "parametrizations" not in name:
                module.register_forward_hook(lambda m, i, o, name=name or "<root>": self._see(name, o))

    def _see(self, name: str, output: Any) -> None:
        call = self.calls[name]
        self.calls[name] += 1
        for i, tensor in enumerate(_floating(output)):
            if tensor.dim() == 0:
                continue
            full = (f"{name}#{call}" if call else name) + (f"[{i}]" if i else "")
            self.activation[full] = tensor.detach().clone()
            if tensor.requires_grad:
                tensor.register_hook(lambda g, full=full: self._see_gradient(full, g))

    def _see_gradient(self, full: str, gradient: Tensor | None) -> None:
        if gradient is not None:
            self.gradient[full] = gradient.detach().clone()


def _compare(recording: Recording, signal: str, expected: dict[str, Tensor], exact_sites: bool = False) -> None:
    column = {site.name: i for i, site in enumerate(recording.sites_of(signal))}
    assert set(expected) <= set(column)
    if exact_sites:
        assert set(expected) == set(column)
    for stat in STATISTICS:
        row = recording.values(signal, stat)[0]
        for name, tensor in expected.items():
            values = tensor.double().to_dense() if tensor.is_sparse else tensor.double()
            oracle = STATISTICS[stat].function(Moments.from_array(values.numpy()))[0]
            if stat == "subnormal_fraction":  # by the dtype; torch's operations do not count them
                subnormal = (values != 0) & (values.abs() < torch.finfo(tensor.dtype).tiny)
                oracle = np.nan if kernel.native is None else subnormal.double().mean().item()
            assert close(row[column[name]], oracle), (signal, stat, name, row[column[name]], oracle)


@pytest.mark.parametrize("case", LEAVES, ids=str)
def test_every_signal_agrees_with_float64_numpy_on_the_tensors_themselves(case: Case) -> None:
    torch.manual_seed(1)
    model, inputs = case.model(), case.inputs()
    oracle = Oracle(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    named = dict(model.named_parameters())
    before = {n: p.detach().clone() for n, p in named.items()}
    with GradScope(model, every=1) as scope:
        total(call(scope, inputs)).backward()
        gradients = {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
        optimizer.step()
    _compare(scope.recording, "activation", oracle.activation)
    _compare(scope.recording, "activation_grad", oracle.gradient)
    _compare(scope.recording, "weight", before, exact_sites=True)
    _compare(scope.recording, "weight_grad", gradients, exact_sites=True)
    updates = {n: named[n].detach().double() - before[n].double() for n in named if named[n].requires_grad}
    _compare(scope.recording, "update", updates, exact_sites=True)


def test_a_view_changed_in_place_has_the_gradient_of_the_value_the_layer_returned() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 8)
    x = torch.randn(4, 3, 5)
    weights = torch.randn(4, 3, 8)
    with GradScope(nn.Sequential(layer, nn.ReLU(inplace=True))) as scope:
        (scope(x) * weights).sum().backward()
    returned = layer(x).detach().requires_grad_()  # a leaf, not a view: nothing is in place here
    (returned.relu() * weights).sum().backward()
    _compare(scope.recording, "activation", {"0": returned.detach(), "1": returned.detach().relu()})
    _compare(scope.recording, "activation_grad", {"0": returned.grad, "1": weights})


@pytest.mark.parametrize("reentrant", ["checkpoint", "reentrant checkpoint"])
def test_checkpointed_layers_have_one_site_and_their_gradient(reentrant: str) -> None:
    (case,) = [c for c in CASES if c.name == reentrant]
    torch.manual_seed(0)
    model, x = case.model(), torch.randn(4, 6, requires_grad=True)
    with GradScope(model) as scope:
        total(scope(x)).backward()
    plain = nn.Sequential(model.first, *model.middle, model.last)
    oracle = Oracle(plain)
    total(plain(x.detach())).backward()
    names = dict(zip("01234", ["first", "middle.0", "middle.1", "middle.2", "last"], strict=True))
    _compare(scope.recording, "activation", {names[k]: v for k, v in oracle.activation.items()})
    _compare(scope.recording, "activation_grad", {names[k]: v for k, v in oracle.gradient.items()})
    assert not any("#" in site.name for site in scope.recording.sites)


WAYS = ("native", "torch", "elsewhere")


def _moments(x: Tensor, minus: Tensor | None = None, way: str = "native") -> Moments:
    """By our kernel; by torch's operations on the CPU; or as on a GPU, where no value may be read."""
    if way == "native" and kernel.native is None:
        pytest.skip("the native kernel was not built here")
    with patch.object(moments, "native", kernel.native if way == "native" else None):
        arena = Arena(Pool())
        if way == "elsewhere":
            arena.next_row(x.device)[0].host = None
        row = arena.observe(x, minus)
        arena.send()
        assert row is not None
        return arena.host.moments([row])


def _agree(a: Moments, b: Moments, rel: float = 1e-5) -> None:
    for stat, statistic in STATISTICS.items():
        if stat == "subnormal_fraction":  # the oracle is given float64 values, whose subnormals are others
            continue
        measured, expected = statistic.function(a)[0], statistic.function(b)[0]
        # The mean of what cancels has the rounding of its largest entry.
        cancelled = stat == "mean" and abs(measured - expected) <= 1e-15 * float(b.max[0] - b.min[0])
        assert cancelled or close(measured, expected, rel), (stat, a, b)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1e-37, 1e-30, 1.0, 1e30, 1e37])
def test_moments_are_right_where_squares_leave_float32(size: float, way: str) -> None:
    x = (torch.randn(1000, generator=torch.Generator().manual_seed(0)) * size).float()
    _agree(_moments(x, way=way), Moments.from_array(x.double().numpy()))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_moments_are_right_where_squares_leave_float64(size: float, way: str) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * size
    _agree(_moments(x, way=way), Moments.from_array(x.numpy()))


@pytest.mark.parametrize("way", WAYS)
def test_variance_survives_a_mean_a_thousand_times_the_deviation(way: str) -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)) + 1000
    _agree(_moments(x, way=way), Moments.from_array(x.double().numpy()), rel=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_a_constant_tensor_has_variance_exactly_zero(way: str) -> None:
    assert _moments(torch.full((777,), 0.1), way=way).std[0] == 0.0


@pytest.mark.parametrize("shape", [(3, 5), (700, 700), (1, 262145)])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "expanded"])
@pytest.mark.parametrize("way", WAYS)
def test_any_memory_layout_and_any_size_is_read_whole(shape: tuple[int, int], layout: str, way: str) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = {"contiguous": x, "transposed": x.T, "strided": x[:, ::2], "expanded": x[:1].expand(4, -1)}[layout]
    _agree(_moments(x, way=way), Moments.from_array(x.double().numpy()))
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    _agree(_moments(x, other, way), Moments.from_array(x.double().numpy() - other.double().numpy()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("way", WAYS)
def test_narrow_dtypes_are_reduced_in_float64(dtype: torch.dtype, way: str) -> None:
    x = torch.linspace(-300, 300, 999).to(dtype)
    _agree(_moments(x, way=way), Moments.from_array(x.double().numpy()))


@pytest.mark.parametrize("way", WAYS)
def test_a_sparse_gradient_counts_the_entries_it_does_not_store(way: str) -> None:
    dense = torch.zeros(10, 3)
    dense[2], dense[5] = 1.5, -2.0
    _agree(_moments(dense.to_sparse(1), way=way), Moments.from_array(dense.double().numpy()))


values = st.lists(
    st.floats(width=32) | st.sampled_from([0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-45]),
    min_size=1,
    max_size=40,
)


@settings(deadline=None, max_examples=200)
@given(values, st.sampled_from(WAYS))
def test_moments_of_any_float32_values_are_those_of_float64_numpy(entries: list[float], way: str) -> None:
    x = torch.tensor(entries, dtype=torch.float32)
    measured, expected = _moments(x, way=way), Moments.from_array(x.double().numpy())
    for name in ("count", "zeros", "nans", "infs", "min", "max"):
        assert np.array_equal(getattr(measured, name), getattr(expected, name), equal_nan=True), name
    # float64 keeps std to about 1e-16 of the largest entry; the square root doubles the digits lost.
    largest = float(torch.where(x.isfinite(), x, 0).abs().max())
    for name in ("mean", "std"):
        assert np.allclose(
            getattr(measured, name), getattr(expected, name), rtol=1e-6, atol=1e-13 * largest, equal_nan=True
        )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_subnormals_are_counted_by_the_dtype_or_said_not_to_be(dtype: torch.dtype, way: str) -> None:
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([0.0, -0.0, tiny, -tiny, 1.0, float("nan")] + 7 * [-tiny / 2], dtype=dtype)
    fraction = STATISTICS["subnormal_fraction"].function(_moments(x, way=way))[0]
    assert fraction == 7 / 13 if way == "native" else np.isnan(fraction)


def _estimated(x: Tensor, minus: Tensor | None, step: int, way: str) -> Moments:
    with patch.object(moments, "native", kernel.native if way == "native" else None):
        arena = Arena(Pool(), Lattice(step))
        row = arena.observe(x, minus)
        arena.send()
        assert row is not None
        assert arena.sampled
        return arena.host.moments([row])


@pytest.mark.parametrize("way", ["native", "torch"])
@pytest.mark.parametrize("size", [65_536, 65_531, 300_007])
def test_a_sample_estimates_all_but_the_extremes_which_are_exact(size: int, way: str) -> None:
    if way == "native" and kernel.native is None:
        pytest.skip("the native kernel was not built here")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator).relu() + 0.25 * torch.randn(size, generator=generator).sign()
    x[torch.rand(size, generator=generator) < 0.25] = 0
    minus = torch.randn(size, generator=generator)
    for y in (None, minus):
        expected = Moments.from_array((x if y is None else x.double() - y).numpy())
        found = [_estimated(x, y, step, way) for step in range(40)]
        for m in found:
            assert (m.count, m.min, m.max) == (expected.count, expected.min, expected.max)
        deviation = expected.std[0] / 4096**0.5  # of one estimate of the mean: the entries are independent
        means = np.array([m.mean[0] for m in found])
        assert np.abs(means - expected.mean[0]).max() < 5 * deviation
        assert len(set(means)) > 10  # each step reads others
        assert abs(np.mean([m.std[0] for m in found]) / expected.std[0] - 1) < 0.02
        zeros = np.array([m.zeros[0] for m in found]) / size
        share = expected.zeros[0] / size
        assert np.abs(zeros - share).max() <= 5 * (share * (1 - share) / 4096) ** 0.5


@pytest.mark.parametrize("way", ["native", "torch"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sample_misses_no_entry_that_is_not_finite(bad: float, way: str) -> None:
    if way == "native" and kernel.native is None:
        pytest.skip("the native kernel was not built here")
    for place in range(0, 65_536, 997):
        x = torch.ones(65_536)
        x[place] = bad
        found = _estimated(x, None, place, way)
        assert found.nans[0] + found.infs[0] == 1


def test_a_sampled_run_says_so_and_an_exact_one_does_not() -> None:
    model, x = nn.Linear(256, 256), torch.randn(64, 256)
    facts = []
    for arguments in ({}, {"histograms": True}, {"histograms": "sample"}, {"mode": "sample"}):
        with GradScope(model, every=1, **arguments) as scope:
            scope(x).sum().backward()
        facts.append(scope.recording.facts.get("sampled"))
        if "histograms" in arguments:
            counted = scope.recording.histogram("weight", "weight", 0)[1].sum()
            assert counted == 65_536 if arguments["histograms"] is True else 3_000 < counted < 5_000
    assert facts[:2] == [None, None]
    assert facts[2] == {"entries": 4096, "of": ["histogram"]}
    assert facts[3] == {"entries": 4096, "of": ["mean", "std", "zeros", "subnormals"]}


def test_histograms_count_every_finite_entry_that_is_not_zero_by_its_power_of_two() -> None:
    model = nn.Linear(64, 64)
    with GradScope(model, histograms=True) as scope:
        scope(torch.randn(32, 64)).sum().backward()
    edges, counts = scope.recording.histogram("weight", "weight", 0)
    magnitudes = np.log2(np.abs(model.weight.detach().double().numpy()))
    assert counts.sum() == 64 * 64
    assert np.array_equal(counts, np.histogram(magnitudes, edges)[0])


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("size", [1e-37, 1.0, 1e37])
def test_moments_on_cuda_are_those_of_float64_numpy(size: float) -> None:
    x = (torch.randn(70_000) * size).float()
    x[3], x[5] = torch.nan, torch.inf
    _agree(_moments(x.cuda()), Moments.from_array(x.double().numpy()))


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("convolutions", "lstm", "attention")], ids=str)
def test_a_step_on_cuda_synchronizes_nowhere_in_a_hook(case: Case) -> None:
    model = case.model().cuda()
    inputs = case.inputs().cuda()
    total(model(inputs).cpu()).backward()  # warm up: lazy handles of the libraries synchronize once
    with GradScope(model, every=1) as scope:
        for _ in range(2):
            torch.cuda.set_sync_debug_mode("error")
            try:
                scope(inputs).square().mean().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            scope.step()
    assert np.isfinite(scope.recording.values("activation_grad", "rms")).any()
