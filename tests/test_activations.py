"""The table against torch: functions, slopes, names; and saturation against its definition."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope import activations
from gradscope.activations import Activation, get, names, of_functional, of_module

PARAMETRISED = (
    "leaky_relu(0.2)",
    "leaky_relu(-0.5)",
    "prelu(0.1)",
    "elu(0.5)",
    "celu(2)",
    "softplus(2)",
    "hardtanh(-2, 0.5)",
)
F = torch.nn.functional
TORCH = {
    "identity": lambda z: z * 1.0,
    "softmax": functools.partial(torch.softmax, dim=-1),
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "prelu": lambda z: F.prelu(z, torch.tensor([0.25], dtype=z.dtype)),
    "prelu(0.1)": lambda z: F.prelu(z, torch.tensor([0.1], dtype=z.dtype)),
    "sin": torch.sin,
    "leaky_relu(0.2)": functools.partial(F.leaky_relu, negative_slope=0.2),
    "leaky_relu(-0.5)": functools.partial(F.leaky_relu, negative_slope=-0.5),
    "elu(0.5)": functools.partial(F.elu, alpha=0.5),
    "celu(2)": functools.partial(F.celu, alpha=2.0),
    "softplus": functools.partial(F.softplus, threshold=40.0),  # 20, torch's default, drops exp(-20) = 2e-9
    "softplus(2)": functools.partial(F.softplus, beta=2.0, threshold=40.0),
    "hardtanh(-2, 0.5)": functools.partial(F.hardtanh, min_val=-2.0, max_val=0.5),
}
EDGES = [0.0, 1.0, -1.0, 3.0, -3.0, 6.0, -6.0, 0.5, -2.0, 20.0, -20.0, 40.0, -40.0, 745.0, -745.0]
LARGE = [s * 10.0**e for s in (-1.0, 1.0) for e in (3, 10, 100, 150, 300)]


def torch_function(name: str):
    return TORCH.get(name) or getattr(F, name)


def torch_value_and_slope(name: str, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = torch.from_numpy(z).requires_grad_()
    y = torch_function(name)(x)
    if name == "softmax":
        jacobian = torch.autograd.functional.jacobian(torch_function(name), x.detach())
        return y.detach().numpy(), jacobian.diagonal().numpy()
    y.sum().backward()
    return y.detach().numpy(), x.grad.numpy()


@pytest.mark.parametrize("name", [*names(), *PARAMETRISED])
def test_function_and_slope_are_torchs_at_ordinary_and_kink_points(name):
    z = np.concatenate([np.linspace(-12, 12, 1201), EDGES])
    if name == "softmax":
        z = z[::40]
    value, slope = torch_value_and_slope(name, z)
    # hardsigmoid: torch's slope is the float32 of 1/6, 5e-9 off.
    slope_error = 6e-9 if name == "hardsigmoid" else 1e-14
    np.testing.assert_allclose(get(name).function(z), value, rtol=4e-15, atol=4e-15)
    np.testing.assert_allclose(get(name).derivative(z), slope, rtol=slope_error, atol=slope_error)


@pytest.mark.parametrize("name", [n for n in (*names(), *PARAMETRISED) if n not in ("softmax", "sin")])
def test_huge_arguments_neither_warn_nor_overflow_and_agree_with_torch(name):
    z = np.array(LARGE)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        value, slope = get(name).function(z), get(name).derivative(z)
    assert np.all(np.isfinite(value))
    assert np.all(np.isfinite(slope))
    theirs = torch_value_and_slope(name, z)
    # torch computes z³, z² and z·(1 - s) there and gets inf·0; where it is finite the numbers agree.
    for ours, other in zip((value, slope), theirs, strict=True):
        there = np.isfinite(other)
        np.testing.assert_allclose(ours[there], other[there], rtol=6e-9, atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(z=st.floats(-1e300, 1e300), name=st.sampled_from([n for n in names() if n != "softmax"]))
def test_slope_is_finite_and_bounded_everywhere(z, name):
    assert abs(float(get(name).derivative(np.array([z]))[0])) <= 1.76  # SELU's λα = 1.7581 is the largest
    assert np.isfinite(get(name).function(np.array([z])))[0]


@pytest.mark.parametrize("name", [*names(), *PARAMETRISED])
def test_slope_is_the_difference_quotient_of_the_function(name):
    a = get(name)
    z = np.linspace(-7, 7, 1009) + 0.00123  # no kink within h
    h = 1e-6
    if a.elementwise:
        quotient = (a.function(z + h) - a.function(z - h)) / (2 * h)
        np.testing.assert_allclose(a.derivative(z), quotient, atol=3e-9)
    else:
        rows = np.random.default_rng(0).normal(size=(5, 8))
        step = h * np.eye(8)
        for i in range(8):
            quotient = (a.function(rows + step[i]) - a.function(rows - step[i])) / (2 * h)
            np.testing.assert_allclose(a.derivative(rows)[:, i], quotient[:, i], atol=3e-9)


@pytest.mark.parametrize("name", [*names(), *PARAMETRISED])
def test_derivative_jumps_at_each_kink_and_nowhere_else(name):
    a = get(name)
    if not a.elementwise:
        assert a.kinks == ()
        return
    z = np.unique(np.concatenate([np.linspace(-8, 8, 1601), *([k - 1e-9, k + 1e-9] for k in a.kinks)]))
    jumps = np.abs(np.diff(a.derivative(z)))
    across = np.array([any(lo < k < hi or k in (lo, hi) for k in a.kinks) for lo, hi in itertools.pairwise(z)])
    assert np.all(jumps[~across] < 0.04)  # smooth: at most 0.01 times the largest curvature, mish's 3.5
    for kink in a.kinks:
        low, high = a.derivative(np.nextafter(kink, (-np.inf, np.inf)))
        assert abs(high - low) > 0.1


def test_tails_keep_their_digits_where_a_difference_from_one_would_be_zero():
    z = np.array([-100.0, 100.0])
    np.testing.assert_allclose(get("tanh").derivative(z), 4 * math.exp(-200), rtol=1e-13)
    np.testing.assert_allclose(get("sigmoid").derivative(z), math.exp(-100), rtol=1e-13)
    # gelu(-20) = -20·Φ(-20), Φ(-20) = 2.7536241186062337e-89
    assert get("gelu").function(np.array([-20.0]))[0] == pytest.approx(-20 * 2.7536241186062337e-89, rel=1e-13)
    assert get("softmax").derivative(np.array([100.0, 0.0, 0.0])) == pytest.approx(
        [2 * math.exp(-100), math.exp(-100), math.exp(-100)], rel=1e-13
    )


@pytest.mark.parametrize("name", [*names(), *PARAMETRISED])
def test_torch_names_resolve(name):
    for path in (*get(name).modules, *get(name).functionals):
        parts = path.split(".")
        target = functools.reduce(getattr, parts[1:], importlib.import_module(parts[0]))
        assert callable(target), path


@pytest.mark.parametrize("name", names())
def test_each_row_is_found_again_by_its_torch_names(name):
    extra = {"approximate": "tanh"} if name == "gelu_tanh" else {}
    for path in get(name).modules:
        assert of_module(path.rpartition(".")[2], **extra) is get(name)
    for path in get(name).functionals:
        assert of_functional(path, **extra) is get(name)
        assert of_functional(path.rpartition(".")[2], **extra) is get(name)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (torch.nn.LeakyReLU(0.2), "leaky_relu(0.2)"),
        (torch.nn.ReLU(inplace=True), "relu"),
        (torch.nn.ELU(0.5), "elu(0.5)"),
        (torch.nn.CELU(2.0), "celu(2)"),
        (torch.nn.GELU(), "gelu"),
        (torch.nn.GELU(approximate="tanh"), "gelu_tanh"),
        (torch.nn.Hardtanh(-2.0, 0.5), "hardtanh(-2, 0.5)"),
        (torch.nn.ReLU6(), "relu6"),
        (torch.nn.Softplus(beta=2), "softplus(2)"),
        (torch.nn.Softmax(dim=-1), "softmax"),
    ],
)
def test_a_live_module_is_recognised_with_its_parameters(module, name):
    found = of_module(type(module).__name__, **vars(module))
    assert found is get(name)
    z = torch.linspace(-4, 4, 33, dtype=torch.float64)
    np.testing.assert_allclose(found.function(z.numpy()), module(z.clone()).numpy(), atol=1e-14)


def test_prelu_of_several_channels_has_the_slope_that_gives_the_same_second_moment():
    slopes = torch.tensor([0.1, 0.3, -0.5])
    found = of_module("PReLU", weight=slopes)
    assert found.params["slope"] == pytest.approx(math.sqrt((0.01 + 0.09 + 0.25) / 3), rel=1e-6)
    assert get(found.name) is found  # the name reads back exactly


def test_what_is_no_activation_is_none():
    assert of_module("Linear") is None
    assert of_module("LogSoftmax") is None
    assert of_functional("linear") is None
    assert of_functional("log_softmax") is None
    assert of_functional("torch.Tensor.add_") is None


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("logistic", "sigmoid"),
        ("swish", "silu"),
        ("none", "identity"),
        ("linear", "identity"),
        (None, "identity"),
        ("ReLU", "relu"),
        ("LeakyReLU", "leaky_relu"),
        ("leaky-relu", "leaky_relu"),
        (" Hard_Tanh ", "hardtanh"),
        ("leaky_relu(0.01)", "leaky_relu"),
        ("leaky_relu(slope=0.01)", "leaky_relu"),
        ("elu(1.0)", "elu"),
        ("gelu(tanh)", "gelu_tanh"),
        ("gelu(none)", "gelu"),
        ("gelu(erf)", "gelu"),
    ],
)
def test_aliases_case_and_default_parameters_lead_to_the_one_row(given, name):
    assert get(given) is get(name)
    assert get(get(given)) is get(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rleu", "did you mean 'relu'"),
        ("leaky_rellu(0.2)", "did you mean 'leaky_relu'"),
        ("", "Known are identity, tanh"),
        ("leaky_relu(0.2, 3)", "allowed: slope=0.01"),
        ("leaky_relu(alpha=0.2)", "'alpha=0.2' is no parameter of leaky_relu"),
        ("relu(1)", "allowed: none"),
        ("gelu(sigmoid)", "none or erf or tanh"),
        ("elu(x)", "'x' is no parameter"),
        ("elu(nan)", "'nan' is no parameter"),
        ("celu(0)", "alpha must not be 0"),
        ("softplus(-1)", "beta must be above 0"),
        ("hardtanh(2, 1)", "low must be below high"),
        (3, "activation=3 is unknown"),
    ],
)
def test_a_wrong_name_is_one_sentence_that_says_what_is_allowed(given, message):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        get(given)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", [*names(), *PARAMETRISED, "elu(300)", "celu(20)", "leaky_relu(0.001)"])
def test_saturation_is_where_the_slope_falls_below_one_percent_for_good(name):
    a = get(name)
    low, high = a.saturation
    scan = np.concatenate([-np.geomspace(1e-6, 1e4, 50_000)[::-1], np.geomspace(1e-6, 1e4, 50_000)])
    slope = np.abs(a.derivative(scan)) if a.elementwise else a._slope_of_one(scan)
    limit = 0.01 * np.max(slope)
    assert np.all(slope[(scan < low - 1e-9) | (scan > high + 1e-9)] < limit * (1 + 1e-6))
    for edge, outward in ((low, -1.0), (high, 1.0)):
        if math.isfinite(edge):
            inside = np.array([edge - outward * 1e-6 * max(1.0, abs(edge))])
            assert a._slope_of_one(inside)[0] >= limit * (1 - 1e-6)
        else:
            assert np.any(slope[outward * scan > 5e3] >= limit)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("sigmoid", -math.log((1 + math.sqrt(0.99)) / (1 - math.sqrt(0.99))), None),
        ("softmax", -math.log((1 + math.sqrt(0.99)) / (1 - math.sqrt(0.99))), None),
        ("tanh", -math.acosh(10.0), None),
        ("softsign", -9.0, None),
        ("elu", math.log(0.01), math.inf),
        ("selu", math.log(0.01), math.inf),
        ("celu(2)", 2 * math.log(0.01), math.inf),
        ("softplus", -math.log(99.0), math.inf),
        ("relu6", 0.0, 6.0),
        ("hardswish", -3.0, math.inf),
    ],
)
def test_saturation_has_its_closed_form(name, low, high):
    assert get(name).saturation == pytest.approx((low, -low if high is None else high), rel=1e-9)


def test_recommended_schemes_are_the_papers():
    by_scheme = {s: {n for n in names() if get(n).scheme == s} for s in ("glorot_normal", "lecun_normal")}
    assert by_scheme["lecun_normal"] == {"selu"}
    assert by_scheme["glorot_normal"] == {
        "identity", "tanh", "sigmoid", "softmax", "softsign", "hardtanh", "hardsigmoid", "sin",
    }  # fmt: skip
    assert {get(n).scheme for n in names()} == {"glorot_normal", "lecun_normal", "he_normal"}


def test_an_activation_of_the_users_own_is_a_value_like_the_others():
    mine = Activation("square", np.square, lambda z: 2 * z)
    assert get(mine) is mine
    assert mine.saturates == "no"
    assert mine == Activation("square", mine.function, mine.derivative)
    assert len({mine, get("relu")}) == 2


def test_the_table_is_read_without_torch():
    code = "import sys, gradscope.activations as a; a.get('gelu').saturation; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_are_what_all_says():
    assert set(activations.__all__) == {"Activation", "get", "names", "of_functional", "of_module"}
