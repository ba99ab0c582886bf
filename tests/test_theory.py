"""Mean field against closed forms, 40-digit quadrature, published profiles and float64 simulation."""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import subprocess
import sys
import time

import mpmath
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from gradscope import theory
from gradscope.activations import Activation, get, names
from gradscope.theory._moments import layer_moments

ORACLES = json.loads((pathlib.Path(__file__).parent / "oracles" / "theory.json").read_text(encoding="utf-8"))
ELEMENTWISE = [name for name in names() if name != "softmax"]
LN10 = math.log(10.0)


def cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


# --- expectations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ORACLES["gains"]))
def test_moments_and_gains_agree_with_the_oracle_file_to_13_digits(name):
    oracle = ORACLES["gains"][name]
    found = layer_moments(get(name), 0.0)
    assert theory.second_moment(name) == pytest.approx(oracle["m2"], rel=1e-13)
    assert theory.slope_moment(name) == pytest.approx(oracle["d2"], rel=1e-13)
    assert theory.gain(name) == pytest.approx(oracle["g_f"], rel=1e-13)
    assert theory.gain(name, "backward") == pytest.approx(oracle["g_b"], rel=1e-13)
    assert found.kappa_f == pytest.approx(oracle["kappa_f"], rel=1e-13)
    assert found.kappa_b == pytest.approx(oracle["kappa_b"], rel=1e-13)
    assert found.f_slope == pytest.approx(oracle["vslope"], abs=1e-14)


def test_the_oracle_file_covers_every_elementwise_activation():
    assert {get(name).name for name in ORACLES["gains"]} == set(ELEMENTWISE)


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        ("relu", lambda q: q / 2, lambda q: 1 / 2),
        ("leaky_relu(0.2)", lambda q: q * 1.04 / 2, lambda q: 1.04 / 2),
        ("sin", lambda q: -math.expm1(-2 * q) / 2, lambda q: (1 + math.exp(-2 * q)) / 2),
        (
            "elu",  # ½q + E[(e^h - 1)²; h < 0]
            lambda q: q / 2 + math.exp(2 * q) * cdf(-2 * q**0.5) - 2 * math.exp(q / 2) * cdf(-(q**0.5)) + 1 / 2,
            lambda q: 1 / 2 + math.exp(2 * q) * cdf(-2 * q**0.5),
        ),
        (
            "gelu",  # from the arcsine law of E[Φ(h)²]
            lambda q: q / 4 + q / (2 * math.pi) * (math.asin(q / (1 + q)) + 2 * q / ((1 + q) * math.sqrt(1 + 2 * q))),
            None,
        ),
        (
            "hardtanh",
            lambda q: (
                q * (1 - 2 * cdf(-1 / q**0.5) - 2 * math.exp(-1 / (2 * q)) / math.sqrt(2 * math.pi * q))
                + 2 * cdf(-1 / q**0.5)
            ),
            lambda q: 1 - 2 * cdf(-1 / q**0.5),
        ),
    ],
)
@pytest.mark.parametrize("q", [1e-3, 0.3, 1.0, 5.0, 100.0])
def test_second_moments_have_their_closed_forms(name, forward, backward, q):
    # hardtanh's own closed form loses 4 digits to cancellation at large q, elu's at small q.
    assert theory.second_moment(name, q) == pytest.approx(forward(q), rel=1e-11)
    if backward:
        assert theory.slope_moment(name, q) == pytest.approx(backward(q), rel=1e-11)


def test_named_gains_are_the_issues_numbers():
    for name, forward, backward in [
        ("relu", math.sqrt(2), math.sqrt(2)),
        ("gelu", 1.5335304412, 1.4811144127),
        ("silu", 1.6765324703, 1.6233202580),
        ("tanh", 1.5925374197, 1.4674135916),
    ]:
        assert theory.gain(name) == pytest.approx(forward, abs=1e-10)
        assert theory.gain(name, "backward") == pytest.approx(backward, abs=1e-10)
    assert theory.gain("gelu") == pytest.approx((1 / 3 + 1 / (2 * math.sqrt(3) * math.pi)) ** -0.5, rel=1e-14)
    assert theory.gain("gelu", "backward") == pytest.approx(
        (1 / 3 + 2 / (3 * math.sqrt(3) * math.pi)) ** -0.5, rel=1e-14
    )


MPMATH = {
    "tanh": (mpmath.tanh, lambda h: mpmath.sech(h) ** 2),
    "sigmoid": (
        lambda h: 1 / (1 + mpmath.exp(-h)),
        lambda h: mpmath.exp(-abs(h)) / (1 + mpmath.exp(-abs(h))) ** 2,
    ),
    "softsign": (lambda h: h / (1 + abs(h)), lambda h: 1 / (1 + abs(h)) ** 2),
}


@pytest.mark.parametrize("name", list(MPMATH))
@pytest.mark.parametrize("q", [1e-6, 0.25, 256.0, 1e8])
def test_quadrature_resolves_the_functions_own_scale_at_any_q(name, q):
    """At q = 256 and beyond the slope lives on |z| < 1/√q: a grid in z alone would miss it."""
    with mpmath.workdps(30):
        scale = mpmath.sqrt(q)
        ends = sorted({0, 40, *(e for e in (0.01, 0.1, 0.3, 1, 2, 4, 8, 13))} | {
            e / scale for e in (0.5, 1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096) if e / scale < 13
        })  # fmt: skip
        for function, found in zip(
            MPMATH[name], (theory.second_moment(name, q), theory.slope_moment(name, q)), strict=True
        ):
            exact = mpmath.quad(lambda z, f=function: (f(scale * z) ** 2 + f(-scale * z) ** 2) * mpmath.npdf(z), ends)
            assert found == pytest.approx(float(exact), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(q=st.floats(1e-6, 1e6), power=st.sampled_from([0, 2, 4, 6]))
def test_expect_is_exact_for_powers(q, power):
    odd_factorial = math.prod(range(1, power, 2))
    assert theory.expect(lambda h: h**power, q) == pytest.approx(odd_factorial * q ** (power / 2), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(kink=st.floats(-3, 3), q=st.floats(0.05, 30))
@example(kink=0.001953125, q=1.0)  # between a panel's end and its first node
def test_expect_finds_a_kink_it_was_not_told_of(kink, q):
    t = kink / math.sqrt(q)
    exact = math.sqrt(q) * (math.exp(-t * t / 2) / math.sqrt(2 * math.pi) - t * cdf(-t))  # E max(h - kink, 0)
    for kinks in ((), (kink,)):
        assert theory.expect(lambda h: np.maximum(h - kink, 0.0), q, kinks) == pytest.approx(exact, abs=1e-11)


def test_expect_agrees_with_an_independent_quadrature_on_an_awkward_function():
    def wave(h):
        return np.sin(9 * h) ** 2 * np.exp(-np.abs(h - 0.3))

    exact = integrate.quad(
        lambda z: wave(1.5 * z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi),
        -13, 13, points=[0.2], limit=2000, epsabs=1e-14, epsrel=1e-13,
    )[0]  # fmt: skip
    assert theory.expect(wave, 2.25) == pytest.approx(exact, rel=1e-11)


def test_expect_at_variance_zero_is_the_value_at_zero_and_bad_input_is_one_sentence():
    assert theory.expect(np.cos, 0.0) == 1.0
    for q in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="must be a variance"):
            theory.expect(np.cos, q)
    with pytest.raises(ValueError, match="not finite"):
        theory.expect(lambda h: np.where(np.abs(h) > 3, np.inf, h))
    noise = np.random.default_rng(0)
    with pytest.raises(ArithmeticError, match="varies too fast"):
        theory.expect(lambda h: noise.normal(size=h.shape))


def test_gain_refuses_what_has_no_meaning():
    for call in (theory.gain, theory.second_moment, theory.slope_moment):
        with pytest.raises(ValueError, match=r"^activation='softmax' has no elementwise .+$"):
            call("softmax")
    with pytest.raises(ValueError, match="must be 'forward' or 'backward'"):
        theory.gain("relu", "sideways")
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        theory.gain("tanhh")
    flat = Activation("flat", np.zeros_like, np.zeros_like)
    with pytest.raises(ValueError, match="passes nothing forward"):
        theory.gain(flat)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_slopes_of_the_moments_are_their_derivatives_in_q(name):
    step = 1e-4
    for log_q in (-3.0, 0.0, 2.0, 5.5):
        low, here, high = (layer_moments(get(name), log_q + s * step) for s in (-1, 0, 1))
        assert here.f_slope == pytest.approx((high.log_f2 - low.log_f2) / (2 * step), abs=1e-7)
        assert here.d_slope == pytest.approx((high.log_d2 - low.log_d2) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("name", [n for n in ELEMENTWISE if n != "sin"])  # sin(1e16) is not to be resolved
def test_moments_continue_as_power_laws_beyond_the_reach_of_quadrature(name):
    """At |ln q| = 76 the corrections are below 1e-16: ln E[f²] is a straight line from there on."""
    for sign in (-1.0, 1.0):
        inner, edge, outer = (layer_moments(get(name), sign * log_q) for log_q in (74.0, 76.0, 800.0))
        for field in ("log_f2", "log_d2"):
            slope = (getattr(edge, field) - getattr(inner, field)) / (sign * 2.0)
            line = getattr(edge, field) + slope * sign * 724.0
            assert getattr(outer, field) == pytest.approx(line, abs=1e-10)


# --- profiles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ORACLES["profiles"]))
def test_profiles_agree_with_the_oracle_file_layer_by_layer(name):
    oracle = ORACLES["profiles"][name]
    found = theory.propagate(
        oracle["activation"], len(oracle["q"]), weight_variance=oracle["sigma_w2"] / 1000, fan_in=1000
    )
    # Fifty layers of a map that may amplify a rounding error (GELU under He: 9 times).
    np.testing.assert_allclose(10 ** (2 * found.pre), oracle["q"], rtol=1e-11)
    np.testing.assert_allclose(10 ** (2 * found.pre_grad), oracle["g_over_gL"], rtol=1e-11)
    assert found.pre_grad[-1] == 0.0
    assert np.isnan(found.act[-1])
    assert np.isnan(found.act_grad[-1])
    assert found.valid.all()
    assert found.label == "mean field"


def decades_per_layer(log10_rms: np.ndarray) -> float:
    return float(np.polyfit(np.arange(log10_rms.size), log10_rms, 1)[0])


@pytest.mark.parametrize(
    ("name", "sigma_w2", "forward", "backward"),
    [
        ("relu", 2, 0.0, 0.0),
        ("relu", 1, -0.1505, -0.1505),
        ("identity", 2, 0.1505, 0.1505),
        ("selu", 1, 0.0, 0.015),
        ("tanh", 1, -0.013, -0.013),
        ("tanh", 1 / 3, -0.239, -0.239),
        ("relu", 1 / 3, -0.389, -0.389),
        ("sigmoid", 1, -0.001, -0.627),
    ],
)
def test_fifty_layers_lose_the_decades_per_layer_that_are_known(name, sigma_w2, forward, backward):
    found = theory.propagate(name, 50, weight_variance=sigma_w2 / 512, fan_in=512)
    assert decades_per_layer(found.pre) == pytest.approx(forward, abs=6e-4)
    assert decades_per_layer(found.pre_grad[::-1]) == pytest.approx(backward, abs=6e-4)


def test_activations_and_their_gradients_stand_between_the_pre_activations():
    found = theory.propagate(
        "tanh", 6, weight_variance=[0.01, 0.02, 0.03, 0.02, 0.01, 0.04], fan_in=[64, 50, 40, 70, 30, 20],
        fan_out=[50, 40, 70, 30, 20, 10], bias_variance=[0.0, 0.1, 0.0, 0.2, 0.0, 0.3],
    )  # fmt: skip
    q, a = 10 ** (2 * found.pre), 10 ** (2 * found.act[:-1])
    variance, bias = np.array([0.02, 0.03, 0.02, 0.01, 0.04]), np.array([0.1, 0.0, 0.2, 0.0, 0.3])
    np.testing.assert_allclose(q[1:], np.array([50, 40, 70, 30, 20]) * variance * a + bias, rtol=1e-13)
    np.testing.assert_allclose(a, [theory.second_moment("tanh", one) for one in q[:-1]], rtol=1e-13)
    p, e = 10 ** (2 * found.pre_grad), 10 ** (2 * found.act_grad[:-1])
    np.testing.assert_allclose(e, np.array([40, 70, 30, 20, 10]) * variance * p[1:], rtol=1e-13)
    slopes = [theory.slope_moment("tanh", one) for one in q[:-1]]
    np.testing.assert_allclose(p[:-1], e * slopes, rtol=1e-13)


def test_gradient_of_rectangular_layers_follows_the_widths():
    widths = [64, 1000, 300, 1500, 100, 800, 400, 200]
    found = theory.propagate(
        "relu", 7, weight_variance=[2 / n for n in widths[:-1]], fan_in=widths[:-1], fan_out=widths[1:]
    )
    np.testing.assert_allclose(10 ** (2 * found.pre_grad), [0.2, 2 / 3, 2 / 15, 2, 0.25, 0.5, 1], rtol=1e-12)


def test_normal_weights_of_variance_one_neither_overflow_nor_lose_digits():
    # relu: q multiplies by n/2 each layer, 128^200 is beyond float64; sigmoid: q = 256·E σ², close to 128.
    relu = theory.propagate("relu", 200, weight_variance=1.0, fan_in=256)
    np.testing.assert_allclose(relu.pre, 0.5 * np.log10(256) + 0.5 * np.arange(200) * np.log10(128), rtol=1e-13)
    for name in ("sigmoid", "tanh", "elu", "gelu"):
        found = theory.propagate(name, 100, weight_variance=1.0, fan_in=256)
        assert np.isfinite(found.pre).all()
        assert np.isfinite(found.pre_grad).all()
        q = 256.0
        for layer in range(4):
            assert 2 * found.pre[layer] == pytest.approx(math.log10(q), abs=1e-12)
            q = 256.0 * theory.second_moment(name, q)


def test_a_default_sweep_of_ninety_profiles_takes_under_a_second():
    activations = ["identity", "tanh", "sigmoid", "softmax", "relu", "leaky_relu", "elu", "selu", "gelu", "silu"]
    start = time.process_time()
    for name in activations:
        for sigma_w2 in (0.21, 1.1, 2.2, 0.34, 256.5, 1.5, 0.7, 1.9, 3.1):
            theory.propagate(name, 50, weight_variance=sigma_w2 / 256, fan_in=256)
    assert time.process_time() - start < 1.0


def test_networks_at_a_repelling_fixed_point_are_called_unstable_and_others_not():
    def stable(name, sigma_w2, depth=50):
        return theory.propagate(name, depth, weight_variance=sigma_w2 / 256, fan_in=256).stable

    for name in ("gelu", "silu", "mish", "hardswish"):
        assert not stable(name, 2.0)
    for name in ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "elu", "selu", "softplus", "sin"):
        for sigma_w2 in (1 / 3, 1.0, 2.0, 256.0):
            assert stable(name, sigma_w2)
    assert stable("gelu", 2.0, depth=4)  # it has not had the layers to run away


# --- spread at finite width -------------------------------------------------------------------------------

# theory.propagate's own terms, as an independent program found them, and what 300 to 400 networks measured:
# (activation, σ_w², width, depth, forward predicted, measured, backward predicted less 2/width, measured).
SPREADS = [
    ("relu", 2.0, 100, 50, 2.470, 2.561, 2.450, 2.651),
    ("relu", 2.0, 200, 50, 1.235, 1.355, 1.225, 1.310),
    ("tanh", "g_f", 100, 50, 0.0280, 0.0322, 2.412, 2.297),
    ("tanh", 1.0, 100, 50, 0.337, 0.412, 1.323, 1.437),
    ("selu", 1.0, 100, 50, 0.0588, 0.0537, 2.077, 2.453),
    ("sigmoid", 1.0, 100, 30, 0.0222, 0.0240, 0.6033, 0.6245),
    ("elu", "g_f", 100, 50, 0.155, 0.168, 2.083, 2.205),
    ("gelu", 2.0, 1000, 10, 0.179, 0.139, 0.101, 0.094),
    ("silu", 2.0, 400, 10, 0.399, 0.377, 0.280, 0.319),
]


@pytest.mark.parametrize(("name", "sigma_w2", "width", "depth", "f", "f_seen", "b", "b_seen"), SPREADS)
def test_spread_is_the_known_one_and_what_was_measured(name, sigma_w2, width, depth, f, f_seen, b, b_seen):
    sigma_w2 = theory.gain(name) ** 2 if sigma_w2 == "g_f" else sigma_w2
    found = theory.propagate(name, depth, weight_variance=sigma_w2 / width, fan_in=width)
    assert found.forward_var[-1] == pytest.approx(f, rel=3e-3)
    assert found.backward_var[0] - 2 / width == pytest.approx(b, rel=6e-3)
    assert found.forward_var[0] == pytest.approx(2 / width)
    assert found.backward_var[-1] == pytest.approx(2 / width)
    # A variance from 300 networks is known to √(2/300) = 8 %.
    assert found.forward_var[-1] == pytest.approx(f_seen, rel=0.3)
    assert found.backward_var[0] == pytest.approx(b_seen, rel=0.3)


def test_relu_spreads_by_5_over_width_a_layer_and_orthogonal_by_3():
    widths = np.array([100.0, 50, 80, 200, 120])
    free = theory.propagate(
        "relu", 5, weight_variance=2 / np.array([30.0, *widths[:-1]]), fan_in=[30.0, *widths[:-1]], fan_out=widths
    )
    np.testing.assert_allclose(free.forward_var, 2 / widths + 5 * np.cumsum([0, *1 / widths[:-1]]), rtol=1e-12)
    np.testing.assert_allclose(
        free.backward_var, 2 / 120 + np.append(5 * np.cumsum(1 / widths[-2::-1])[::-1], 0), rtol=1e-12
    )
    held = theory.propagate("relu", 50, weight_variance=2 / 100, fan_in=100, weights="orthogonal")
    np.testing.assert_allclose(held.forward_var, 3 / 100 * np.arange(50), atol=1e-12)
    np.testing.assert_allclose(held.backward_var, 2 / 100 + 3 / 100 * np.arange(50)[::-1], rtol=1e-12)
    linear = theory.propagate("identity", 50, weight_variance=2 / 100, fan_in=100, weights="orthogonal")
    np.testing.assert_allclose(linear.forward_var, 0.0, atol=1e-12)  # norms are kept: nothing fluctuates
    np.testing.assert_allclose(linear.backward_var, 2 / 100, rtol=1e-12)


def simulate(name, sigma_w2, widths, nets, kind="independent", bias=0.0, seed=0):
    """(ln mean h², ln mean gradient²), each (nets, depth), of networks with N(0, 1) output gradients."""
    rng = np.random.default_rng(seed)
    a = get(name)
    matrices, pre = [], []
    signal = rng.normal(size=(nets, widths[0], 1))
    signal *= np.sqrt(widths[0] / np.sum(signal**2, axis=1, keepdims=True))
    for inputs, outputs in itertools.pairwise(widths):
        if kind == "orthogonal":
            tall = rng.normal(size=(nets, max(inputs, outputs), min(inputs, outputs)))
            q, r = np.linalg.qr(tall)
            q *= np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
            matrix = (q if outputs >= inputs else q.swapaxes(1, 2)) * math.sqrt(
                sigma_w2 * max(inputs, outputs) / inputs
            )
        else:
            matrix = rng.normal(size=(nets, outputs, inputs)) * math.sqrt(sigma_w2 / inputs)
        matrices.append(matrix)
        pre.append(matrix @ signal + math.sqrt(bias) * rng.normal(size=(nets, outputs, 1)))
        signal = a.function(pre[-1].swapaxes(1, 2)).swapaxes(1, 2)
    gradient = rng.normal(size=pre[-1].shape)
    gradients = [gradient]
    for matrix, h in zip(matrices[:0:-1], pre[-2::-1], strict=True):
        arrived = matrix.swapaxes(1, 2) @ gradient
        if a.elementwise:
            gradient = arrived * a.derivative(h)
        else:
            s = a.function(h.swapaxes(1, 2)).swapaxes(1, 2)
            gradient = s * (arrived - np.sum(s * arrived, axis=1, keepdims=True))
        gradients.append(gradient)
    return (
        np.stack([np.log(np.mean(h**2, axis=(1, 2))) for h in pre], axis=1),
        np.stack([np.log(np.mean(g**2, axis=(1, 2))) for g in gradients[::-1]], axis=1),
    )


def expected_for(name, sigma_w2, widths, **options):
    inputs = np.array(widths[:-1], dtype=float)
    return theory.propagate(
        name, inputs.size, weight_variance=sigma_w2 / inputs, fan_in=inputs, fan_out=widths[1:], **options
    )


NETS = 600
SAME = [64] * 9
MIXED = [24, 128, 48, 96, 40, 64]


@pytest.mark.parametrize(
    ("name", "sigma_w2", "widths", "kind", "bias"),
    [
        ("relu", 2.0, SAME, "independent", 0.0),
        ("relu", 2.0, MIXED, "independent", 0.0),
        ("relu", 1.5, SAME, "independent", 0.3),
        ("tanh", 2.0, MIXED, "independent", 0.1),
        ("selu", 1.0, SAME, "independent", 0.0),
        ("sigmoid", 1.0, SAME, "independent", 0.0),
        ("relu", 2.0, SAME, "orthogonal", 0.0),
        ("relu", 2.0, MIXED, "orthogonal", 0.0),
        ("tanh", 2.0, SAME, "orthogonal", 0.0),
        ("elu", 1.5, MIXED, "orthogonal", 0.2),
        ("sigmoid", 1.0, SAME, "orthogonal", 0.0),
    ],
)
def test_six_hundred_networks_have_the_predicted_mean_and_spread(name, sigma_w2, widths, kind, bias):
    forward, backward = simulate(name, sigma_w2, widths, NETS, kind, bias)
    found = expected_for(name, sigma_w2, widths, weights=kind, bias_variance=bias)
    for seen, curve, var in (
        (forward, found.pre, found.forward_var),
        (backward, found.pre_grad, found.backward_var),
    ):
        # Sampling: √(2/600) = 5.8 %, four times; the next order in 1/width (the least is 24): 10 % more.
        np.testing.assert_allclose(seen.var(0), var, rtol=0.33, atol=1e-12)
        # The mean to 5 standard errors, and 1/width for the next order (nothing else is that small).
        off = np.abs(seen.mean(0) - (2 * LN10 * curve - var / 2))
        assert np.all(off < 5 * np.sqrt(var / NETS) + 1.5 / min(widths))


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("kind", ["independent", "orthogonal", "identity"])
def test_no_variance_is_ever_negative(name, kind):
    for sigma_w2 in (0.1, 1.0):
        found = theory.propagate(name, 50, weight_variance=sigma_w2 / 256, fan_in=256, weights=kind)
        assert np.all(found.forward_var >= 0.0)
        assert np.all(found.backward_var >= 0.0)


def test_a_wrong_covariance_or_a_missing_term_would_be_seen():
    """What tells the terms apart: the gradient's spread through tanh differs by half without them."""
    found = expected_for("tanh", 2.0, SAME)
    moments = layer_moments(get("tanh"), 2 * LN10 * float(found.pre[-2]))
    without = (moments.kappa_b / 64) * 7 + 2 / 64
    assert abs(found.backward_var[0] / without - 1) > 0.1


# --- identity weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["identity", "relu", "leaky_relu", "tanh", "sigmoid", "elu", "softplus", "hardtanh", "relu6", "sin"]
)
def test_identity_weights_iterate_the_activation_in_every_unit(name):
    units, depth, nets = 256, 30, 1500
    rng = np.random.default_rng(1)
    a = get(name)
    h = rng.normal(size=(nets, units))
    h *= 1.0 / np.sqrt(np.mean(h**2, axis=1, keepdims=True))
    pre, slopes = [h], []
    for _ in range(depth - 1):
        slopes.append(a.derivative(h))
        h = a.function(h)
        pre.append(h)
    gradient = rng.normal(size=h.shape)
    gradients = [gradient]
    for slope in slopes[::-1]:
        gradient = gradient * slope
        gradients.append(gradient)
    found = theory.propagate(name, depth, weight_variance=1 / units, fan_in=units, weights="identity")
    assert found.stable
    assert found.label == "identity weights"
    for rows, curve, var in (
        (pre, found.pre, found.forward_var),
        (gradients[::-1], found.pre_grad, found.backward_var),
    ):
        seen = np.stack([np.log(np.mean(row**2, axis=1)) for row in rows], axis=1)
        # √(2/1500) = 3.7 %, four times, and the next order in 1/width.
        np.testing.assert_allclose(seen.var(0), var, rtol=0.2, atol=1e-6)
        off = np.abs(np.log(np.mean(np.exp(seen), axis=0)) - 2 * LN10 * curve)
        assert np.all(off < 5 * np.sqrt(var / nets) + 1 / units)
    np.testing.assert_allclose(found.act[:-1], found.pre[1:], rtol=1e-12)
    np.testing.assert_allclose(found.act_grad[:-1], found.pre_grad[1:], rtol=1e-12)


def test_identity_weights_of_relu_and_identity_are_exact():
    relu = theory.propagate("relu", 9, weight_variance=4 / 100, fan_in=100, weights="identity")  # W = 2·I
    np.testing.assert_allclose(10 ** (2 * relu.pre), 4.0 * np.array([1, *(4.0 ** np.arange(8) * 2)]), rtol=1e-12)
    np.testing.assert_allclose(10 ** (2 * relu.pre_grad), [*(4.0 ** np.arange(8, 0, -1) / 2), 1], rtol=1e-12)
    # F² is q z² on half of the units: relative variance 5, of which -2a² = -2 for the norm that is given.
    np.testing.assert_allclose(relu.forward_var, np.log1p([0.0, *[0.03] * 8]), atol=1e-12)
    np.testing.assert_allclose(relu.backward_var, np.log1p([*[0.05] * 8, 0.02]), atol=1e-12)
    linear = theory.propagate("identity", 9, weight_variance=1 / 100, fan_in=100, weights="identity")
    np.testing.assert_allclose(linear.forward_var, 0.0, atol=1e-12)
    np.testing.assert_allclose(linear.backward_var, math.log1p(0.02), rtol=1e-12)
    np.testing.assert_allclose(linear.pre, 0.0, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "error"), [("gelu", 1e-10), ("silu", 1e-10), ("tanh", 1e-10), ("elu", 1e-7), ("hardswish", 1e-5)]
)
def test_composed_functions_are_resolved_as_by_a_quarter_million_points(name, error):
    """Midpoints: exact for smooth functions, h² where a slope jumps; hardswish's 3 repels, 1.5 times a layer."""
    depth, a = 12, get(name)
    step = 1e-4
    z = (np.arange(-130_000, 130_000) + 0.5) * step
    weights = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * step
    h, slope, q = z, np.ones_like(z), [np.sum(z * z * weights)]
    for _ in range(depth - 1):
        slope = slope * a.derivative(h)
        h = a.function(h)
        q.append(np.sum(h * h * weights))
    found = theory.propagate(name, depth, weight_variance=1.0, fan_in=1, weights="identity")
    np.testing.assert_allclose(10 ** (2 * found.pre), q, rtol=error)
    assert 10 ** (2 * found.pre_grad[0]) == pytest.approx(np.sum(slope**2 * weights), rel=error)


def test_means_that_no_single_network_shows_are_called_unstable():
    """SELU's 0 repels: inputs within 1e-12 of it carry a mean gradient of 1e11, and never occur."""
    for name in ("selu", "gelu", "silu", "mish", "hardswish"):
        assert not theory.propagate(name, 50, weight_variance=1 / 256, fan_in=256, weights="identity").stable
    # With W = 2·I the sine is chaotic after enough layers; that is said, or resolved, but never made up.
    with pytest.raises(ArithmeticError, match="varies too fast"):
        theory.propagate("sin", 200, weight_variance=9.0, fan_in=1, weights="identity")


# --- softmax ----------------------------------------------------------------------------------------------


def exact_softmax_second_moment(q: float, n: int) -> float:
    """E[s²] for n logits N(0, q), from 1/Z² = ∫ t e^{-tZ} dt: two plain sums, no limit taken."""
    h, weights = np.polynomial.hermite_e.hermegauss(200)
    h, weights = h * math.sqrt(q), weights / math.sqrt(2 * math.pi)
    log_t = np.linspace(-40, 30, 4001)
    decay = np.exp(-np.exp(log_t[:, None] + h))
    integrand = np.exp(2 * log_t) * (decay @ (weights * np.exp(2 * h))) * (decay @ weights) ** (n - 1)
    return float(np.sum(integrand) * (log_t[1] - log_t[0]))


@pytest.mark.parametrize(("n", "sigma_w2"), [(256, 1 / 3), (256, 1.0), (256, 2.0), (4096, 2.0)])
def test_softmax_follows_the_wide_limit_with_the_derived_correction(n, sigma_w2):
    found = theory.propagate("softmax", 4, weight_variance=sigma_w2 / n, fan_in=n)
    assert found.valid.all()
    assert found.label == "wide limit of softmax"
    assert 2 * found.act[0] == pytest.approx(math.log10(math.exp(sigma_w2) / n**2), rel=1e-12)
    # The first correction, and beyond it no more than the square of its leading term -2·e^{2q}/n, a few times.
    first = (3 * math.expm1(sigma_w2) - 2 * math.expm1(2 * sigma_w2)) / n
    ratio = exact_softmax_second_moment(sigma_w2, n) / 10 ** (2 * found.act[0])
    assert abs(ratio - 1 - first) < 4 * (2 * math.exp(2 * sigma_w2) / n) ** 2
    # later layers: all units near 1/n
    assert 2 * found.act[2] == pytest.approx(-2 * math.log10(n), abs=1e-2)


@pytest.mark.parametrize("n", [64, 256, 1024])
def test_at_the_edge_of_its_validity_softmax_is_a_quarter_below_the_limit(n):
    edge = 0.5 * math.log(n / 2)
    ratio = exact_softmax_second_moment(edge, n) / (math.exp(edge) / n**2)
    assert 0.7 < ratio < 0.8
    inside, outside = (
        theory.propagate("softmax", 3, weight_variance=factor * edge / n, fan_in=n) for factor in (0.999, 1.001)
    )
    assert inside.valid.all()
    assert not outside.valid.any()
    assert np.isfinite(outside.pre[0])  # the first layer is linear: still known
    assert np.isnan(outside.act).all()
    assert np.isnan(outside.pre[1:]).all()
    assert np.isnan(outside.pre_grad[:-1]).all()
    assert outside.pre_grad[-1] == 0.0


def test_softmax_of_normal_weights_is_beyond_the_limit():
    assert not theory.propagate("softmax", 50, weight_variance=1.0, fan_in=256).valid.any()


@pytest.mark.parametrize("kind", ["independent", "orthogonal"])
def test_softmax_networks_have_the_predicted_spread_while_q_is_small(kind):
    forward, backward = simulate("softmax", 0.15, [128] * 4, 400, kind)
    found = expected_for("softmax", 0.15, [128] * 4, weights=kind)
    # √(2/400) = 7 %, five times; the backward factor is a few e^q/n below.
    np.testing.assert_allclose(forward.var(0), found.forward_var, rtol=0.35, atol=1e-6)
    np.testing.assert_allclose(backward.var(0), found.backward_var, rtol=0.35)
    assert np.all(np.abs(forward.mean(0) - 2 * LN10 * found.pre + found.forward_var / 2) < 0.02)
    assert np.all(np.abs(backward.mean(0) - 2 * LN10 * found.pre_grad + found.backward_var / 2) < 0.06)


def test_softmax_under_identity_weights_ends_at_one_over_width():
    n = 256
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2000, n))
    x /= np.sqrt(np.mean(x**2, axis=1, keepdims=True))
    shares, h = [], x
    for _ in range(49):
        h = get("softmax").function(h)
        shares.append(h)
    gradient = rng.normal(size=x.shape)
    gradients = [gradient]
    for s in shares[::-1]:
        gradient = s * (gradient - np.sum(s * gradient, axis=1, keepdims=True))
        gradients.append(gradient)
    found = theory.propagate("softmax", 50, weight_variance=1 / n, fan_in=n, weights="identity")
    assert found.valid.all()
    assert found.stable
    assert found.pre[-1] == pytest.approx(-math.log10(n), abs=1e-4)
    seen = np.array([np.log(np.mean(s**2)) for s in (x, *shares)])
    np.testing.assert_allclose(seen, 2 * LN10 * found.pre, atol=0.03)
    seen_back = np.array([np.log(np.mean(g**2)) for g in gradients[::-1]])
    np.testing.assert_allclose(seen_back, 2 * LN10 * found.pre_grad, atol=0.06)
    middle = np.log(np.mean(gradients[20] ** 2, axis=1))
    assert middle.var() == pytest.approx(found.backward_var[29], rel=0.15)


# --- the door ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth=0 must be a whole number, at least 1"),
        ({"depth": 2.5}, "depth=2.5 must be a whole number"),
        ({"weight_variance": 0.0}, "weight_variance=0.0 must be finite and above 0"),
        ({"weight_variance": [1.0, 2.0]}, r"weight_variance has shape \(2,\)"),
        ({"fan_in": "wide"}, "fan_in='wide' must be finite"),
        ({"fan_out": -1}, "fan_out=-1 must be finite and above 0"),
        ({"bias_variance": -0.1}, "bias_variance=-0.1 must be finite and at least 0"),
        ({"input_mean_square": math.inf}, "input_mean_square=inf must be finite"),
        ({"weights": "orthogonl"}, "did you mean 'orthogonal'"),
        ({"weights": "identity", "fan_out": 5}, "needs equal fans"),
        ({"weights": "identity", "bias_variance": 1.0}, "bias_variance=0"),
        ({"activation": "rleu"}, "did you mean 'relu'"),
    ],
)
def test_a_wrong_argument_is_one_sentence(change, message):
    arguments = {"activation": "relu", "depth": 3, "weight_variance": 0.1, "fan_in": 10} | change
    with pytest.raises(ValueError, match=message) as caught:
        theory.propagate(arguments.pop("activation"), arguments.pop("depth"), **arguments)
    assert "\n" not in str(caught.value)


def test_an_activation_of_the_users_own_goes_through():
    erf = Activation("erf", special.erf, lambda z: 2 / math.sqrt(math.pi) * np.exp(-z * z))
    assert theory.gain(erf) == pytest.approx((2 / math.pi * math.asin(2 / 3)) ** -0.5, rel=1e-13)
    assert theory.gain(erf, "backward") == pytest.approx((4 / (math.pi * math.sqrt(5))) ** -0.5, rel=1e-13)
    found = theory.propagate(erf, 2, weight_variance=0.1, fan_in=10)
    assert 10 ** (2 * found.pre[1]) == pytest.approx(2 / math.pi * math.asin(2 / 3), rel=1e-13)


def test_one_layer_has_no_activation_and_keeps_the_input():
    found = theory.propagate(None, 1, weight_variance=0.5, fan_in=4, input_mean_square=3.0, bias_variance=2.0)
    assert 10 ** (2 * found.pre[0]) == pytest.approx(8.0)
    assert found.pre_grad.tolist() == [0.0]
    assert np.isnan(found.act).all()


def test_theory_is_computed_without_torch():
    code = "import sys; from gradscope import theory; theory.gain('gelu'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
