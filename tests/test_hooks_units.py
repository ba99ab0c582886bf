"""Unit moments are what float64 numpy finds, whatever the layout, dtype and loop; and they are taken as said."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.overhead.counts import operations
from gradscope import GradScope, activations, probe
from gradscope.hooks import _unit_moments as unit_moments
from gradscope.hooks._layout import Layout, layout_of
from gradscope.hooks._slopes import OF_INPUT, OF_OUTPUT, largest_slope, output_tells, parameters_of
from gradscope.hooks._unit_moments import Pointwise, Silence, read_units
from gradscope.recording import UNIT_STATISTICS, Recording
from gradscope.recording._unit_moments import UNIT_COLUMNS

Array = NDArray[np.float64]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BITS = np.finfo(np.float64).eps


def oracle(x: Array, batch: int | None, units: int | None) -> dict[str, float]:
    """Straight from the definitions: the pairs of samples are summed one by one."""
    x = np.asarray(x, dtype=np.float64)
    x = x[None] if batch is None else np.moveaxis(x, batch, 0)
    axis = units if units is None or (batch is not None and units > batch) else units + 1
    x = x[..., None] if axis is None else np.moveaxis(x, axis, -1)
    n, u = x.shape[0], x.shape[-1]
    flat = x.reshape(n, -1)
    silent = (x.reshape(-1, u) == 0).all(axis=0)
    with np.errstate(all="ignore"):
        square = (flat**2).sum() / n
        pairs = [flat[i] @ flat[j] for i in range(n) for j in range(n) if i != j]
        spread = ((x - x.mean(axis=-1, keepdims=True)) ** 2).sum() / (x**2).sum()
        found = {"batch_similarity": np.mean(pairs) / square if pairs else math.nan}
        differences = [((flat[i] - flat[j]) ** 2).sum() for i in range(n) for j in range(n) if i != j]
        found["batch_spread"] = np.mean(differences) / 2 / square if differences else math.nan
    return found | {
        "entries": x.size,
        "units": u,
        "samples": n,
        "silent_units": int(silent.sum()),
        "unit_spread": float(spread) if u > 1 else math.nan,
    }


def row_of(x: Tensor, layout: Layout, pointwise: Pointwise | None = None) -> dict[str, float]:
    reading = read_units(x, layout, pointwise, Silence(), 0)
    return dict(zip(UNIT_COLUMNS, reading.row(reading.numbers.cpu()), strict=True))


def check(found: dict[str, float], expected: dict[str, float], entries: int) -> None:
    for name, value in expected.items():
        # Sums of squares of that many numbers in float64, of either; similarity is a difference from 1.
        np.testing.assert_allclose(found[name], value, rtol=8 * entries * BITS, atol=8 * entries * BITS, err_msg=name)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Tensor, Layout]:
    dims = draw(st.integers(1, 5))
    shape = [draw(st.integers(1, 5)) for _ in range(dims)]
    axes = list(range(dims))
    batch = draw(st.sampled_from([None, *axes]))
    units = draw(st.sampled_from([None, *(a for a in axes if a != batch)]))
    torch.manual_seed(draw(st.integers(0, 10**6)))
    x = torch.randn(shape, dtype=torch.float64)
    x = x * draw(st.sampled_from([1.0, 1e-3, 100.0])) + draw(st.sampled_from([0.0, 5.0]))
    if draw(st.booleans()):
        x = x.relu()
    x = x.to(draw(st.sampled_from(DTYPES)))
    if draw(st.booleans()):
        x = x.transpose(0, -1).contiguous().transpose(0, -1)  # other strides
    return x, Layout(dims, batch, units)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(tensors(), st.sampled_from([1, 7, 2**21]))
def test_every_column_is_that_of_the_definition(drawn: tuple[Tensor, Layout], piece: int) -> None:
    x, layout = drawn
    with patch.dict(unit_moments.PIECE_ENTRIES, cpu=piece):  # cut in all ways
        found = row_of(x, layout)
    check(found, oracle(x.double().numpy(), layout.batch, layout.units), x.numel())
    assert found["dead_units"] == found["silent_units"]
    assert found["dead_reads"] == 1
    assert found["saturated"] == -1
    assert math.isnan(found["slope"])


@pytest.mark.parametrize("factor", [1e-300, 1e-200, 1e160, 1e300])
def test_the_size_of_float64_entries_makes_no_difference(factor: float) -> None:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    whole, scaled = row_of(x, Layout(2, 0, 1)), row_of(x * factor, Layout(2, 0, 1))
    for name in ("batch_similarity", "batch_spread", "unit_spread"):
        assert scaled[name] == pytest.approx(whole[name], rel=1e-12)


def test_half_precision_neither_overflows_nor_loses_digits() -> None:
    x = (torch.randn(64, 32, generator=torch.Generator().manual_seed(1)) * 3 + 300).half()
    found = row_of(x * 200, Layout(2, 0, 1))  # squares are 3.6e9, beyond float16
    check(found, oracle((x * 200).double().numpy(), 0, 1), x.numel())


def test_samples_that_are_nearly_the_same_are_told_from_those_that_are() -> None:
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)).expand(16, 64).clone()
    assert row_of(x, Layout(2, 0, 1))["batch_spread"] == 0.0
    assert row_of(x.mT.contiguous(), Layout(2, 0, 1))["unit_spread"] == 0.0
    wide = x.double()
    wide[0, 0] += 1e-9
    found = row_of(wide, Layout(2, 0, 1))
    expected = oracle(wide.numpy(), 0, 1)["batch_spread"]
    assert 0 < expected < 1e-18  # 1 − similarity would be 0
    assert found["batch_spread"] == pytest.approx(expected, rel=1e-6)  # 1e-9 is known to 1e-16/1e-9 of itself


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entries_that_are_not_finite_give_nan_and_no_error(bad: float, dtype: torch.dtype) -> None:
    x = torch.ones(4, 3, dtype=dtype)
    x[1, 2] = bad
    x[:, 0] = 0
    found = row_of(x, Layout(2, 0, 1), Pointwise(activations.get("tanh"), {}, x, of_output=False))
    assert all(math.isnan(found[name]) for name in ("batch_similarity", "batch_spread", "unit_spread", "slope"))
    assert found["silent_units"] == 1


def test_one_sample_one_unit_and_zeros_have_nothing_to_compare() -> None:
    assert math.isnan(row_of(torch.ones(1, 3), Layout(2, 0, 1))["batch_spread"])
    assert math.isnan(row_of(torch.ones(3, 1), Layout(2, 0, 1))["unit_spread"])
    zeros = row_of(torch.zeros(3, 4), Layout(2, 0, 1))
    assert zeros["silent_units"] == 4
    assert all(math.isnan(zeros[name]) for name in ("batch_similarity", "batch_spread", "unit_spread"))


# -- slopes ----------------------------------------------------------------------------------------------------

Z = np.concatenate([np.linspace(-12, 12, 4801) + 1e-3 / 3, [-1e300, -700.0, -90.0, 90.0, 700.0, 1e300]])
FORMS = [
    *(name for name in activations.names() if name in OF_INPUT),
    *("leaky_relu(0.3)", "elu(0.5)", "celu(2)", "softplus(3)", "hardtanh(-2, 0.5)", "prelu(0.1)", "elu(-1)"),
]


@pytest.mark.parametrize("name", FORMS)
def test_a_slope_is_that_of_the_table(name: str) -> None:
    activation = activations.get(name)
    z = torch.from_numpy(Z)
    got = OF_INPUT[name.partition("(")[0]](z, parameters_of(activation, None)).numpy()
    # The table's own tails are exact; of sums of a few terms that are at most 2 the rounding is some 1e-16.
    np.testing.assert_allclose(got, activation.derivative(Z), rtol=1e-12, atol=1e-15 if name != "sin" else 1e-12)
    largest = largest_slope(activation)
    if largest is not None:
        assert largest == pytest.approx(np.max(np.abs(activation.derivative(np.linspace(-12, 12, 100_001)))), rel=1e-6)
        assert activation.saturates == "both"


@pytest.mark.parametrize("name", [n for n in FORMS if output_tells(activations.get(n))])
def test_the_output_tells_the_same_slope(name: str) -> None:
    activation = activations.get(name)
    y = torch.from_numpy(activation.function(Z))
    got = OF_OUTPUT[name.partition("(")[0]](y, parameters_of(activation, None)).numpy()
    np.testing.assert_allclose(got, activation.derivative(Z), rtol=1e-9, atol=4 * BITS)


def test_every_activation_of_the_table_that_is_pointwise_has_a_slope() -> None:
    assert set(OF_INPUT) == {n for n in activations.names() if activations.get(n).elementwise} - {"identity"}
    assert not output_tells(activations.get("elu(-1)"))
    assert not output_tells(activations.get("leaky_relu(-0.5)"))
    assert largest_slope(activations.get("relu6")) is None
    assert largest_slope(activations.get("hardtanh(0, 1)")) is None


def columns(recording: Recording, step: int = -1) -> dict[str, dict[str, float]]:
    sites, found = recording.unit_moments(step)
    return {s.name: {c: float(getattr(found, c)[i]) for c in UNIT_COLUMNS} for i, s in enumerate(sites)}


MODULES: list[tuple[Callable[[], nn.Module], str]] = [
    (nn.ReLU, "relu"),
    (lambda: nn.ReLU(inplace=True), "relu"),
    (lambda: nn.LeakyReLU(0.3, inplace=True), "leaky_relu(0.3)"),
    (nn.Sigmoid, "sigmoid"),
    (nn.Tanh, "tanh"),
    (nn.Softsign, "softsign"),
    (nn.Hardtanh, "hardtanh"),
    (lambda: nn.Hardtanh(inplace=True), "hardtanh"),
    (nn.Hardsigmoid, "hardsigmoid"),
    (nn.ReLU6, "relu6"),
    (nn.GELU, "gelu"),
    (lambda: nn.GELU(approximate="tanh"), "gelu_tanh"),
    (nn.SiLU, "silu"),
    (lambda: nn.ELU(inplace=True), "elu"),
    (nn.Softplus, "softplus"),
    (nn.Mish, "mish"),
]


@pytest.mark.parametrize(("make", "name"), MODULES)
def test_slope_and_saturation_of_a_module_are_those_of_its_input(make: Callable[[], nn.Module], name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), make(), nn.Linear(32, 1)).double()
    with torch.no_grad():
        net[0].weight *= 20
    x = torch.randn(40, 6, dtype=torch.float64)
    z = net[0](x).detach().numpy()
    activation, found = activations.get(name), columns(probe(net, x))
    slope = activation.derivative(z)
    # In place the slope is told from the output, where 1 − y² and y(1 − y) lose what is below 1e-16.
    assert found["1"]["slope"] == pytest.approx((slope**2).mean(), rel=1e-9)
    largest = largest_slope(activation)
    assert found["1"]["saturated"] == (-1 if largest is None else (np.abs(slope) < 0.01 * largest).sum())
    if largest is not None:
        assert found["1"]["saturated"] > 0
    assert math.isnan(found["0"]["slope"])
    assert found["2"]["saturated"] == -1


def test_what_was_computed_in_place_and_cannot_be_told_is_nan() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(inplace=True), nn.Linear(8, 8), nn.SiLU())
    found = columns(probe(net, torch.randn(5, 4)))
    assert math.isnan(found["1"]["slope"])
    assert not math.isnan(found["3"]["slope"])


def test_prelu_has_the_slope_of_each_channel() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.PReLU(3)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.0, 0.5, -1.0]))
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    z = net[0](x).detach()
    slope = torch.where(z > 0, torch.ones_like(z), net[1].weight.detach()[:, None, None])
    assert columns(probe(net, x))["1"]["slope"] == pytest.approx(float(slope.square().mean()), rel=1e-12)


def test_functional_activations_have_slopes_where_they_are_sites() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 16)

        def forward(self, x: Tensor) -> Tensor:
            return F.leaky_relu(torch.tanh(self.a(x) * 5), 0.2)

    torch.manual_seed(0)
    net, x = Net().double(), torch.randn(8, 4, dtype=torch.float64)
    with GradScope(net, functional=True, every=1) as scope:
        scope(x).sum().backward()
    found = columns(scope.recording)
    z = (net.a(x) * 5).detach().numpy()
    slope = activations.get("tanh").derivative(z)
    assert found["<root>:tanh"]["slope"] == pytest.approx((slope**2).mean(), rel=1e-12)
    assert found["<root>:tanh"]["saturated"] == (slope < 0.01).sum()
    outer = activations.get("leaky_relu(0.2)").derivative(np.tanh(z))
    assert found["<root>:leaky_relu"]["slope"] == pytest.approx((outer**2).mean(), rel=1e-12)


# -- axes ------------------------------------------------------------------------------------------------------

_CONV1D = Layout(3, 0, 1)


@pytest.mark.parametrize(
    ("module", "shape", "fed", "expected"),
    [
        (nn.Linear(2, 2), (7, 2), None, (0, 1)),
        (nn.Linear(2, 2), (7, 5, 2), None, (0, 2)),
        (nn.Linear(2, 2), (7, 5, 5, 2), None, (0, 3)),
        (nn.Linear(2, 2), (5, 7, 2), Layout(3, 1, 2), (1, 2)),  # after a recurrent module with time first
        (nn.LayerNorm(2), (7, 5, 5, 2), None, (0, 3)),
        (nn.Conv2d(1, 4, 3), (7, 4, 5, 5), None, (0, 1)),
        (nn.Conv2d(1, 4, 3), (4, 5, 5), None, (None, 0)),
        (nn.Conv1d(1, 4, 3), (7, 4, 5), None, (0, 1)),
        (nn.Conv1d(1, 4, 3), (4, 5), None, (None, 0)),
        (nn.BatchNorm1d(4), (7, 4), None, (0, 1)),
        (nn.BatchNorm1d(4), (7, 4, 5), None, (0, 1)),
        (nn.GroupNorm(2, 4), (7, 4, 5), None, (0, 1)),
        (nn.InstanceNorm2d(4), (7, 4, 5, 5), None, (0, 1)),
        (nn.MaxPool1d(2), (7, 4, 5), None, (0, 1)),
        (nn.ReLU(), (7, 4, 5), _CONV1D, (0, 1)),
        (nn.ReLU(), (7, 4, 5), None, (0, 2)),
        (nn.ReLU(), (7, 4), _CONV1D, (0, 1)),
        (nn.ReLU(), (7, 4, 5, 5), None, (0, 1)),
        (nn.ReLU(), (7, 5, 5, 4), Layout(4, 0, 3), (0, 3)),
        (nn.PReLU(4), (7, 4, 5), None, (0, 1)),
        (nn.Flatten(), (7, 20), Layout(4, 0, 1), (0, 1)),
        (nn.LSTM(2, 4), (5, 7, 4), None, (1, 2)),
        (nn.LSTM(2, 4, batch_first=True), (7, 5, 4), None, (0, 2)),
        (nn.LSTM(2, 4), (5, 4), None, (None, 1)),
        (nn.MultiheadAttention(4, 2), (5, 7, 4), None, (1, 2)),
        (nn.MultiheadAttention(4, 2, batch_first=True), (7, 5, 4), None, (0, 2)),
        (nn.Identity(), (7,), None, (0, None)),
        (nn.Identity(), (), None, (None, None)),
        (None, (7, 3, 5, 5), None, (0, 1)),
    ],
)
def test_the_axes_of_samples_and_units(
    module: nn.Module | None, shape: tuple[int, ...], fed: Layout | None, expected: tuple[int | None, int | None]
) -> None:
    assert layout_of(module, torch.zeros(shape), 0, fed) == Layout(len(shape), *expected)


def test_the_states_of_a_recurrent_module_are_never_batch_first() -> None:
    assert layout_of(nn.GRU(2, 4, batch_first=True), torch.zeros(1, 7, 4), 1, None) == Layout(3, 1, 2)


class Seen:
    """Copies of what every leaf module returned."""

    def __init__(self, model: nn.Module) -> None:
        self.first: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if not list(module.children()) or isinstance(module, nn.MultiheadAttention):
                module.register_forward_hook(lambda m, i, o, name=name: self._see(name, o))

    def _see(self, name: str, output: Any) -> None:
        self.first.setdefault(name, (output if isinstance(output, Tensor) else output[0]).detach().clone())


class Recurrent(nn.Module):
    """Time first, then a layer and an activation on the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head, self.act = nn.GRU(3, 6), nn.Linear(6, 5), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.head(self.rnn(x)[0]))
        return out


CONV = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)]
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, tuple[int, int]]]] = {
    "conv": (lambda: nn.Sequential(*CONV), (5, 3, 8, 8), {str(i): (0, 1) for i in range(6)}),
    "conv, channels last": (
        lambda: nn.Sequential(*CONV).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        (5, 3, 8, 8),
        {str(i): (0, 1) for i in range(6)},
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Conv1d(4, 3, 1)),
        (6, 2, 9),
        {str(i): (0, 1) for i in range(4)},
    ),
    "recurrent": (Recurrent, (7, 4, 3), {"rnn": (1, 2), "head": (1, 2), "act": (1, 2)}),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (4, 5, 8),
        {"self_attn": (0, 2), "linear1": (0, 2), "linear2": (0, 2), "norm1": (0, 2), "norm2": (0, 2)},
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_a_step_s_unit_moments_are_those_of_its_activations(name: str) -> None:
    make, shape, axes = NETS[name]
    torch.manual_seed(0)
    net = make()
    with GradScope(net, every=1) as scope:
        seen = Seen(net)
        scope(torch.randn(shape)).square().sum().backward()
    found = columns(scope.recording)
    for site, (batch, units) in axes.items():
        x = seen.first[site]
        check(found[site], oracle(x.double().numpy(), batch, units), x.numel())
    assert set(axes) <= set(found)


# -- when ------------------------------------------------------------------------------------------------------


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def train(scope: GradScope, steps: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    for _ in range(steps):
        scope(torch.randn(8, 4)).sum().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        else:
            scope.step()


@pytest.mark.parametrize(("every", "steps", "expected"), [(1, 25, [0, 10, 20]), (3, 40, [0, 30]), (None, 12, [0, 10])])
def test_each_tenth_recorded_step_has_them_from_the_first_on(every: int, steps: int, expected: list[int]) -> None:
    with GradScope(small(), every=every) as scope:
        train(scope, steps)
    r = scope.recording
    assert r.steps[r.has_unit_moments].tolist() == expected
    assert "each tenth recorded step" in r.facts["unit_moments"]


@pytest.mark.parametrize("how", [{"slow": False}, {"signals": ("weight", "weight_grad")}], ids=str)
def test_they_are_left_out_where_that_is_asked_for(how: dict[str, Any]) -> None:
    with GradScope(small(), every=1, **how) as scope:
        train(scope, 2)
    assert not scope.recording.has_unit_moments.any()
    assert scope.recording.facts["unit_moments"] is None


def test_slow_is_true_or_false() -> None:
    with pytest.raises(ValueError, match="slow is 10; True or False is allowed"):
        GradScope(small(), slow=10)  # type: ignore[arg-type]


def test_of_accumulated_passes_the_first_that_a_backward_follows_counts() -> None:
    net = small()
    with GradScope(net, every=1) as scope:
        seen = Seen(net)
        with torch.no_grad():
            scope(torch.randn(9, 4))
        scope(torch.randn(7, 4))  # no backward follows
        seen.first.clear()
        for samples in (5, 3):
            scope(torch.randn(samples, 4)).sum().backward()
        scope.step()
    found = columns(scope.recording)
    assert found["2"]["samples"] == 5
    check(found["1"], oracle(seen.first["1"].double().numpy(), 0, 1), 30)


def test_of_passes_that_share_one_backward_the_first_counts() -> None:
    with GradScope(small(), every=1) as scope:
        (scope(torch.randn(5, 4)).sum() + scope(torch.randn(3, 4)).sum()).backward()
    assert columns(scope.recording)["2"]["samples"] == 5


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Sequential(nn.Linear(4, 6), nn.ReLU()), nn.Linear(6, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(checkpoint(self.first, x, use_reentrant=self.reentrant))
        return out


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_second_run_of_a_checkpointed_segment_is_not_read(reentrant: bool) -> None:
    with GradScope(Checkpointed(reentrant), every=1) as scope:
        scope(torch.randn(5, 4, requires_grad=True)).sum().backward()
    found = columns(scope.recording)
    assert {name: row["dead_reads"] for name, row in found.items()} == dict.fromkeys(found, 1.0)
    assert {"first.0", "first.1", "last"} <= set(found)


def test_a_module_called_twice_has_a_row_for_each_call() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.layer = nn.ReLU(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.act(self.layer(self.act(x)))
            return out

    net, x = Net(), torch.ones(3, 4)
    x[:, 0] = -1
    with torch.no_grad():
        net.layer.weight.fill_(-1.0)
        net.layer.bias.zero_()
    found = columns(probe(net, x))
    assert (found["act"]["silent_units"], found["act#1"]["silent_units"]) == (1, 4)


def test_a_unit_is_dead_once_it_was_silent_in_every_one_of_the_last_ten_reads() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3))
        net[0].bias.zero_()
    with GradScope(net, every=1, signals=("activation",)) as scope:
        for step in range(160):
            # Unit 0 is active always, unit 1 in the first read only, unit 2 never.
            x = torch.tensor([[1.0, 1.0 if step == 0 else -1.0, -1.0]]).repeat(2, 1).requires_grad_()
            scope(x).sum().backward()
            scope.step()
    r = scope.recording
    reads = np.flatnonzero(r.has_unit_moments)
    rows = [columns(r, int(i))["1"] for i in reads]
    assert len(rows) == 16
    assert [row["silent_units"] for row in rows] == [1, *[2] * 15]
    assert [row["dead_reads"] for row in rows] == [*range(1, 11), *[10] * 6]
    assert [row["dead_units"] for row in rows] == [*[1] * 10, *[2] * 6]
    np.testing.assert_array_equal(r.values("activation", "dead_fraction", reads)[:, -1], [*[1 / 3] * 10, *[2 / 3] * 6])


def test_validation_has_none_and_probe_has_them(recwarn: pytest.WarningsRecorder) -> None:
    with GradScope(small(), every=1, validation=True) as scope:
        train(scope, 1)
        with torch.no_grad():
            scope(torch.randn(3, 4))
    assert scope.validation is not None
    assert not scope.validation.has_unit_moments.any()
    r = probe(small(), torch.randn(3, 4))
    assert r.has_unit_moments.all()
    for stat in UNIT_STATISTICS:
        assert r.profile("activation", stat).values.shape == (4,)
    assert not recwarn.list


def test_inputs_that_do_not_vary_are_seen() -> None:
    x = torch.randn(1, 4).expand(6, 4)
    found = columns(probe(small(), x))
    assert found["<input>"]["batch_similarity"] == 1.0
    assert found["2"]["batch_spread"] < 1e-12  # kernels may sum another row in another order


def test_odd_outputs_are_passed_over_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.empty = nn.Linear(4, 4), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            self.empty(x[:0])
            self.empty(x.to_sparse())
            self.empty(x.to(torch.float8_e4m3fn))
            out: Tensor = self.layer(x)
            return out

    found = columns(probe(Odd(), torch.randn(3, 4)))
    assert "layer" in found
    assert found["empty#2"]["units"] == 4
    assert not recwarn.list


def test_an_input_that_is_one_number_is_a_site_of_one_entry(recwarn: pytest.WarningsRecorder) -> None:
    class Timed(nn.Linear):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return super().forward(x) * time

    with GradScope(Timed(4, 4), every=1) as scope:
        scope(torch.randn(3, 4), torch.tensor(0.5)).sum().backward()
    assert not recwarn.list
    found = columns(scope.recording)["<input>[1]"]
    assert (found["entries"], found["units"], found["samples"]) == (1, 1, 1)


def test_nothing_waits_for_a_device_and_no_tensor_is_kept() -> None:
    net, kept = small(), []
    with GradScope(net, every=1) as scope:
        net[1].register_forward_hook(lambda m, i, o: kept.append(weakref.ref(o)))

        def passes() -> Tensor:
            return scope(torch.randn(8, 4)).sum()

        counted = operations(lambda: passes().backward())
        assert counted.syncs == 0
        gc.collect()
        assert [ref() for ref in kept] == [None]
    assert scope.recording.has_unit_moments.all()
