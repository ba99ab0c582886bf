"""Length and correlation maps, critical lines, cards: against closed forms, published numbers and simulation."""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from gradscope import theory
from gradscope.activations import get, names
from gradscope.theory._callable import find_kinks
from gradscope.theory._pair import expect_pair

ORACLES = json.loads((pathlib.Path(__file__).parent / "oracles" / "theory.json").read_text(encoding="utf-8"))
ELEMENTWISE = [name for name in names() if name != "softmax"]
CORRELATIONS = (-1.0, -0.9999999, -0.6, 0.0, 1e-9, 0.3, 0.9, 0.999, 1.0 - 1e-9, 1.0)


def relu(z):
    return np.maximum(z, 0.0)


def step(z):
    return np.where(z > 0.0, 1.0, 0.0)


Q_TANH = theory.critical_points("tanh", 0.05)[0].q
"""0.57004788…, Schoenholz's critical point."""

ERF = theory.activation_of(special.erf, lambda z: 2.0 / math.sqrt(math.pi) * np.exp(-z * z), kinks=(), name="erf")


# --- expectations of two correlated Gaussians ------------------------------------------------------------


@pytest.mark.parametrize("c", CORRELATIONS)
@pytest.mark.parametrize(("q1", "q2"), [(1.0, 1.0), (0.3, 7.0), (1e-8, 1e4)])
def test_pairs_of_relu_sin_and_erf_have_their_closed_forms(q1, q2, c):
    s, angle = math.sqrt(q1 * q2), math.acos(c)
    arc = s * (math.sin(angle) + (math.pi - angle) * c) / (2 * math.pi)  # Cho & Saul (2009), order 1
    assert expect_pair(relu, relu, q1, q2, c, (0.0,), (0.0,)) == pytest.approx(arc, rel=1e-11, abs=1e-13 * s)
    half = (math.pi - angle) / (2 * math.pi)  # order 0
    assert expect_pair(step, step, q1, q2, c, (0.0,), (0.0,)) == pytest.approx(half, rel=1e-11, abs=1e-13)
    if max(q1, q2) < 100.0:
        wave = 0.5 * (math.exp(-0.5 * (q1 + q2 - 2 * c * s)) - math.exp(-0.5 * (q1 + q2 + 2 * c * s)))
        assert expect_pair(np.sin, np.sin, q1, q2, c) == pytest.approx(wave, rel=1e-10, abs=1e-13)
    arcsine = 2 / math.pi * math.asin(2 * c * s / math.sqrt((1 + 2 * q1) * (1 + 2 * q2)))  # Williams (1998)
    assert expect_pair(special.erf, special.erf, q1, q2, c) == pytest.approx(arcsine, rel=1e-10, abs=1e-13)


@pytest.mark.parametrize(
    ("name", "q", "c", "products", "slopes"),
    [  # E[f f], E[f' f'] to twelve digits; None where it is not known
        ("gelu", 1.0, 0.0, 0.079577471546, 0.25),
        ("gelu", 1.0, 0.5, 0.227294915022, 0.342267242459),
        ("gelu", 1.0, 0.9, 0.380968870595, 0.429627362249),
        ("selu", 1.0, 0.5, 0.490569128325, None),
        ("selu", 1.0, 0.9, 0.895259309096, None),
        ("tanh", Q_TANH, 0.5, 0.142912946459, 0.511381605816),
        ("tanh", Q_TANH, 0.9, 0.263437765384, 0.551363391159),
    ],
)
def test_pairs_agree_with_reference_values(name, q, c, products, slopes):
    field = theory.MeanField(name, 1.0)
    assert field.second_moment(c, q) == pytest.approx(products, abs=2e-12)
    if slopes is not None:
        assert field.chi(q, c) == pytest.approx(slopes, abs=2e-12)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_pair_at_correlation_one_is_one_expectation_and_at_zero_a_product(name):
    f = get(name)
    both = expect_pair(f.function, f.function, 1.7, 1.7, 1.0, f.kinks, f.kinks)
    assert both == pytest.approx(theory.second_moment(f, 1.7), rel=1e-12)
    near = expect_pair(f.function, f.function, 1.7, 1.7, 1.0 - 1e-13, f.kinks, f.kinks)
    assert near == pytest.approx(both, rel=1e-11)
    apart = expect_pair(f.function, f.function, 1.7, 0.4, 0.0, f.kinks, f.kinks)
    mean = theory.expect(f.function, 1.7, f.kinks) * theory.expect(f.function, 0.4, f.kinks)
    assert apart == pytest.approx(mean, rel=1e-12, abs=1e-15)


@given(
    name=st.sampled_from(ELEMENTWISE),
    q1=st.floats(1e-3, 1e3),
    q2=st.floats(1e-3, 1e3),
    c=st.floats(-1.0, 1.0),
)
@settings(max_examples=40, deadline=None)
def test_a_pair_does_not_depend_on_its_order_and_stays_below_its_ends(name, q1, q2, c):
    f = get(name)
    one = expect_pair(f.function, f.function, q1, q2, c, f.kinks, f.kinks)
    other = expect_pair(f.function, f.function, q2, q1, c, f.kinks, f.kinks)
    most = math.sqrt(theory.second_moment(f, q1) * theory.second_moment(f, q2))
    assert one == pytest.approx(other, rel=1e-10, abs=1e-12 * most)
    assert abs(one) <= most * (1 + 1e-12)


@pytest.mark.parametrize("name", ["tanh", "gelu", "selu"])
def test_the_slope_of_a_pair_in_c_is_the_pair_of_slopes(name):
    """Price's theorem: d/dc E[f(u₁) f(u₂)] = √(q₁q₂)·E[f'(u₁) f'(u₂)]."""
    field, q, h = theory.MeanField(name, 1.0), 1.3, 1e-4
    for c in (0.0, 0.5, 0.9):
        difference = (field.second_moment(c + h, q) - field.second_moment(c - h, q)) / (2 * h)
        assert difference == pytest.approx(q * field.chi(q, c), rel=1e-7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((-1.0, 1.0, 0.5), "q1=-1.0"), ((1.0, math.inf, 0.5), "q2=inf"), ((1.0, 1.0, 1.1), r"c=1.1 .* \[-1, 1\]")],
)
def test_a_wrong_pair_is_one_sentence(arguments, words):
    with pytest.raises(ValueError, match=words):
        expect_pair(np.tanh, np.tanh, *arguments)


# --- maps and fixed points -------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ORACLES["tanh_depth_scales"], ids=lambda row: f"sigma_w2={row['sigma_w2']}")
def test_tanh_has_the_reference_s_fixed_points_and_depth_scales(row):
    field = theory.MeanField("tanh", row["sigma_w2"], row["sigma_b2"])
    found = field.depth_scales()
    assert found.q == pytest.approx(row["q_star"], rel=1e-11)
    assert field.length_slope(found.q) == pytest.approx(row["vprime"], rel=1e-10)
    assert found.xi_q == pytest.approx(row["xi_q"], rel=1e-9)
    assert found.chi == pytest.approx(row["chi1"], rel=1e-11)
    assert found.c == pytest.approx(row["c_star"], abs=1e-7)  # there found by iterating, not to the end
    assert found.xi_c == pytest.approx(row["xi_c"], rel=1e-6)
    assert found.trainable_depth == pytest.approx(6 * row["xi_c"], rel=1e-6)


def test_the_fixed_points_of_named_pairs_are_the_known_ones():
    """From reference/theory.md, B3: SELU's at torch's gain 3/4, tanh's at 5/3, sigmoid's under Glorot."""
    assert theory.MeanField("selu", 0.75**2).settles_at().q == pytest.approx(0.0230338, abs=1e-7)
    assert theory.MeanField("selu", 0.75**2).depth_scales().chi == pytest.approx(1.00367, abs=1e-5)
    tanh = theory.MeanField("tanh", 25 / 9).depth_scales()
    assert (tanh.q, tanh.chi) == (pytest.approx(1.17848, abs=1e-5), pytest.approx(1.20983, abs=1e-5))
    sigmoid = theory.MeanField("sigmoid", 1.0).depth_scales()
    assert (sigmoid.q, sigmoid.chi) == (pytest.approx(0.264687, abs=1e-6), pytest.approx(0.055721, abs=1e-6))


def test_a_fixed_point_is_kept_and_attracts_as_its_slope_says():
    for name, w, b in [("tanh", 2.5, 0.05), ("selu", 1.0, 0.0), ("elu", 1.3, 0.1), ("softplus", 0.7, 0.0)]:
        field = theory.MeanField(name, w, b)
        for point in field.fixed_points():
            if point.q == 0.0:
                continue
            assert field.length(point.q) == pytest.approx(point.q, rel=1e-12)
            beside = point.q * (1 + 1e-6)
            moved = (field.length(beside) - point.q) / (beside - point.q)
            assert moved == pytest.approx(point.slope, rel=1e-4, abs=1e-6)


def test_lengths_settle_where_iterating_the_map_takes_them():
    for name, w, b in [("tanh", 1.0, 0.05), ("tanh", 4.0, 0.0), ("selu", 0.5625, 0.0), ("gelu", 1.9, 0.3)]:
        field = theory.MeanField(name, w, b)
        q = 1.0
        for _ in range(3000):
            q = field.length(q)
        assert field.settles_at().q == pytest.approx(q, rel=1e-9)


def test_lengths_that_vanish_or_explode_are_told():
    assert theory.MeanField("gelu", 2.0).settles_at().q == 0.0
    assert theory.MeanField("relu", 1.0).settles_at().q == 0.0
    assert theory.MeanField("tanh", 1.0).settles_at() == theory.FixedPoint(0.0, pytest.approx(1.0))  # as 1/(2 depth)
    assert theory.MeanField("gelu", 2.5).settles_at().q == math.inf
    assert theory.MeanField("relu", 2.0).settles_at(3.0) == theory.FixedPoint(3.0, 1.0)
    assert theory.MeanField("relu", 2.0).keeps_any_length
    assert theory.MeanField("relu", 2.0).fixed_points() == ()
    with pytest.raises(ValueError, match="vanish"):
        theory.MeanField("gelu", 2.0).depth_scales()
    with pytest.raises(ValueError, match="grow without end"):
        theory.MeanField("relu", 2.1).depth_scales()


def test_unstable_fixed_points_of_gelu_silu_mish_and_hardswish_are_found():
    for name in ("gelu", "silu", "mish", "hardswish"):
        field = theory.MeanField(name, theory.gain(name) ** 2)
        (point,) = [p for p in field.fixed_points() if p.q == pytest.approx(1.0, rel=1e-9)]
        assert point.slope == pytest.approx(ORACLES["gains"][name]["vslope"], rel=1e-9)
        assert not point.attracts


def test_the_correlation_map_fixes_one_and_relu_s_is_the_arc_cosine_kernel():
    for name in ELEMENTWISE:
        assert theory.MeanField(name, 1.4, 0.2).correlation(1.0, 0.8) == pytest.approx(1.0, rel=1e-12)
    he = theory.MeanField("relu", 2.0)
    for c, mapped in ((0.0, 0.318309886184), (0.5, 0.608997781044), (0.9, 0.909538398845)):
        assert he.correlation(c, 5.0) == pytest.approx(mapped, abs=1e-12)


def test_two_inputs_come_to_the_correlation_that_iterating_gives():
    field = theory.MeanField("tanh", 2.5, 0.05)
    q = field.settles_at().q
    c = 0.2
    for _ in range(500):
        c = field.correlation(c, q)
    assert field.settles_at_correlation(q) == pytest.approx(c, abs=1e-9)
    assert theory.MeanField("tanh", 1.3, 0.05).depth_scales().c == 1.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: theory.MeanField("tanh", 0.0), "sigma_w2=0.0"),
        (lambda: theory.MeanField("tanh", 1.0, -0.1), "sigma_b2=-0.1"),
        (lambda: theory.MeanField("softmax", 1.0), "softmax"),
        (lambda: theory.MeanField("tahn", 1.0), "did you mean 'tanh'"),
    ],
)
def test_a_wrong_field_is_one_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# --- the critical line -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tanh", "hardtanh", "softsign", "sin"])
def test_critical_lines_agree_with_the_reference(name):
    for row in ORACLES["critical"][name]:
        (point,) = [p for p in theory.critical_points(name, row["sigma_b2"]) if p.q < 10.0]
        assert point.q == pytest.approx(row["q_star"], rel=1e-9)
        assert point.sigma_w2 == pytest.approx(row["sigma_w2"], rel=1e-9)
        assert point.sigma_b2 == pytest.approx(row["sigma_b2"], rel=1e-9)


def test_the_critical_line_of_a_callable_agrees_with_the_reference():
    for row in ORACLES["critical"]["erf"]:
        (point,) = theory.critical_points(ERF, row["sigma_b2"])
        assert (point.q, point.sigma_w2) == (
            pytest.approx(row["q_star"], rel=1e-9),
            pytest.approx(row["sigma_w2"], rel=1e-9),
        )


@pytest.mark.parametrize(
    ("name", "sigma_w", "sigma_b", "slope"),
    [
        ("tanh", 1.4674135916, 0.3885416701, 0.391),
        ("elu", 1.2234285576, 0.1861726403, 0.860),
        ("selu", 0.9660257770, 0.2584457355, 0.730),
        ("gelu", 1.4811144127, 0.2592135697, 1.067),
        ("silu", 1.6233202580, 0.2499429940, 1.099),
        ("mish", 1.4447552325, 0.2362586370, 1.016),
        ("hardswish", 1.6700763674, 0.2742392634, 1.132),
    ],
)
def test_critical_points_at_length_one(name, sigma_w, sigma_b, slope):
    point = theory.critical_at(name)
    assert math.sqrt(point.sigma_w2) == pytest.approx(sigma_w, abs=1e-10)
    assert math.sqrt(point.sigma_b2) == pytest.approx(sigma_b, abs=1e-10)
    assert point.slope == pytest.approx(slope, abs=6e-4)
    assert point.attracts == (slope < 1.0)


@pytest.mark.parametrize(
    ("name", "q", "sigma_w", "sigma_b"),
    [
        ("gelu", 3.5616, 1.408211, 0.415839),
        ("silu", 14.320, 1.409966, 0.745079),
        ("mish", 1.6702, 1.418987, 0.307444),
        ("hardswish", 4.8039, 1.404738, 0.712142),
    ],
)
def test_the_attracting_part_of_a_critical_line_begins_where_it_is_known_to(name, q, sigma_w, sigma_b):
    point = theory.attracts_from(name)
    assert point.q == pytest.approx(q, rel=2e-5)
    assert math.sqrt(point.sigma_w2) == pytest.approx(sigma_w, abs=2e-6)
    assert math.sqrt(point.sigma_b2) == pytest.approx(sigma_b, abs=2e-6)


def test_softplus_is_never_critical_and_sigmoid_only_far_out():
    assert theory.critical_at("softplus") is None
    assert theory.attracts_from("softplus") is None
    assert theory.critical_at("sigmoid", 45.0) is None
    assert theory.critical_at("sigmoid", 46.0) is not None
    assert theory.critical_points("relu", 0.05) == ()
    assert theory.critical_points("relu", 0.0)[0].sigma_w2 == pytest.approx(2.0)
    assert theory.critical_at("relu", 3.0).sigma_b2 == 0.0


# --- any callable ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_kinks_and_slopes_of_the_table_are_found_from_the_function_alone(name):
    known = get(name)
    bare = theory.activation_of(known.function, name="bare")
    bent = {"elu", "celu", "softsign"}  # whose curvature jumps at 0, their slope does not
    assert bare.kinks == pytest.approx((0.0,) if name in bent else known.kinks, abs=1e-9)
    for q in (0.1, 1.0, 10.0):
        assert theory.second_moment(bare, q) == pytest.approx(theory.second_moment(known, q), rel=1e-12)
        assert theory.slope_moment(bare, q) == pytest.approx(theory.slope_moment(known, q), rel=2e-11)


def test_kinks_at_odd_places_are_found_and_smooth_functions_have_none():
    places = (-7.3, -0.1234567890123, 1 / 3, 11.0)

    def bent(z):
        return sum(k * np.abs(z - place) for k, place in enumerate(places, start=1))

    assert find_kinks(bent) == pytest.approx(places, abs=1e-9)
    assert find_kinks(lambda z: z - np.tanh(z)) == ()
    assert find_kinks(np.arctan) == ()


def test_a_callable_that_is_no_activation_is_one_sentence():
    with pytest.raises(ValueError, match="must map an array to finite values"):
        theory.activation_of(np.sum)
    with pytest.raises(ValueError, match="must map an array to finite values"):
        theory.activation_of(lambda z: np.full_like(z, np.nan), name="nothing")


# --- cards -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chi", "batch_norm", "slope"),
    [
        ("identity", 1.0, 1.0, 1.0),
        ("relu", 1.0, 1.46694, 1.0),
        ("elu", 1.0359047186, 1.07901, 0.89097),
        ("selu", 1.0715749925, 1.07157, 0.78265),
        ("gelu", 1.0720315984, 1.31884, 1.14406),
        ("silu", 1.0666342412, 1.21208, 1.17259),
        ("mish", 1.0591180006, 1.21426, 1.07634),
        ("softplus", 0.3184589837, 1.08053, 0.49205),
        ("tanh", 1.1778072323, 1.17781, 0.46107),
        ("sigmoid", 0.1528270117, 1.03359, 0.10634),
        ("hardtanh", 1.3228915418, 1.32289, 0.38513),
        ("hardswish", 1.0813232666, 1.17962, 1.22392),
        ("softsign", 1.2440103706, 1.24401, 0.47671),
        ("sin", 1.3130352855, 1.31304, 0.31304),
    ],
)
def test_cards_have_the_reference_s_rates(name, chi, batch_norm, slope):
    found = theory.card(name)
    assert found.chi == pytest.approx(chi, rel=1e-9)
    assert found.layer_norm_rate == pytest.approx(chi, rel=1e-9)
    assert found.batch_norm_rate == pytest.approx(batch_norm, abs=6e-6)
    assert found.length_slope == pytest.approx(slope, abs=6e-6)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_batch_norm_never_loses_a_gradient_and_each_card_reads_as_text(name):
    found = theory.card(name)
    assert found.batch_norm_rate >= 1.0 - 1e-12
    assert found.activation.name in str(found)
    assert len(str(found).splitlines()) > 10


@pytest.mark.parametrize(("name", "q"), [("tanh", 0.1), ("tanh", 4.0), ("gelu", 0.25), ("silu", 2.0), ("selu", 0.5)])
def test_gains_at_any_length_agree_with_the_reference(name, q):
    known = {
        ("tanh", 0.1): (1.089703, 1.085159),
        ("tanh", 4.0): (2.509307, 1.976615),
        ("gelu", 0.25): (1.730252, 1.676745),
        ("silu", 2.0): (1.581976, 1.530562),
        ("selu", 0.5): (0.929105, 0.908042),
    }[name, q]
    found = theory.card(name, q)
    assert (found.forward_gain, found.backward_gain) == pytest.approx(known, abs=1e-6)
    assert theory.MeanField(name, found.forward_gain**2).length(q) == pytest.approx(q, rel=1e-12)


def test_cards_explain_the_magic_numbers():
    fates = {fate.title: fate for fate in theory.card("selu").fates}
    ours = fates["torch's calculate_gain"]
    activation_std = math.sqrt(theory.second_moment("selu", ours.settles.q))
    assert activation_std == pytest.approx(0.202358, abs=1e-6)
    assert fates["LeCun, or Glorot of equal fans"].settles.q == pytest.approx(1.0)
    tanh = {fate.title: fate for fate in theory.card("tanh").fates}["torch's calculate_gain"]
    assert tanh.chi == pytest.approx(1.20983, abs=1e-5)
    default = {fate.title: fate for fate in theory.card("relu").fates}["torch's default of Linear"]
    assert default.settles.q == 0.0
    assert default.gain == pytest.approx(1 / math.sqrt(3))


def test_a_card_says_what_helps():
    assert "norm layer" in theory.card("gelu").advice[0]
    assert "sigma_w = 1.408" in theory.card("gelu").advice[0]
    assert "sigma_w = 1.467" in theory.card("tanh").advice[0]
    assert theory.card("identity").advice == ()
    assert "No variances" in theory.card("softplus").advice[0]


def test_a_callable_has_a_card_of_its_own():
    squared = theory.card(theory.activation_of(lambda z: np.maximum(z, 0.0) ** 2, name="relu²"))
    assert (squared.second_moment, squared.slope_moment) == (pytest.approx(1.5), pytest.approx(2.0))
    assert squared.length_slope == pytest.approx(2.0)
    assert not squared.fates[0].settles.attracts or squared.fates[0].settles.q == 0.0
