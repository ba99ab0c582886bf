"""The theory's pictures: what is on their axes, against closed forms, published numbers and drawn networks."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from gradscope import Recording, activations, init, predict, probe, theory
from gradscope.cli import main
from gradscope.recording import Moments, Site, StepRecord
from gradscope.report import save_png, write_activation_report, write_run_report
from gradscope.report._expected_curve import expected_curve, has_common_sites
from gradscope.report._gains_table import gains_markdown
from gradscope.report._run_curves import three_lines
from gradscope.report._theory_pictures import theory_jobs
from gradscope.report.figures import (
    activation_card,
    correlation_map,
    gains,
    phase_diagram,
    profile,
    signal_vs_depth,
    singular_values,
)
from gradscope.theory import ChainLayer, MeanField, chain_spread, spread_band
from gradscope.theory._moment_table import moment_table
from gradscope.theory._moments import layer_moments
from tests.reporting import saved, small_sweep, trained
from tests.test_report_figures import assert_text_is_inside, line, words

Array = NDArray[np.float64]
ROOT = Path(__file__).parents[1]
ELEMENTWISE = [name for name in activations.names() if activations.get(name).elementwise]

# Each is made once: a card takes a second.
plane = functools.cache(theory.phase_diagram)
maps = functools.cache(theory.correlation_curves)
card_curves = functools.cache(theory.card_curves)
spectrum = functools.cache(theory.sampled_spectrum)


# -- moments as functions of ln q ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_the_table_of_moments_is_within_1e_5_of_quadrature_between_its_points(name: str) -> None:
    found = activations.get(name)
    table = moment_table(found)
    middle = table.log_q[:-1:7] + 0.0625  # halfway between two points, where a cubic is worst
    exact = [layer_moments(found, x) for x in middle.tolist()]
    np.testing.assert_allclose(table.second(middle), [one.log_f2 for one in exact], atol=1e-5)
    np.testing.assert_allclose(table.slope(middle), [one.log_d2 for one in exact], atol=1e-5)


# -- phases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "hardtanh", "softplus", "sin"])
def test_the_plane_holds_the_length_and_chi_at_which_a_mean_field_settles(name: str) -> None:
    found = plane(name)
    rng = np.random.default_rng(1)
    seen = set()
    for row, column in zip(
        rng.integers(0, found.sigma_b.size, 25), rng.integers(0, found.sigma_w.size, 25), strict=True
    ):
        field = MeanField(name, float(found.sigma_w[column]) ** 2, float(found.sigma_b[row]) ** 2)
        q, log_q = field.settles_at().q, found.log_q[row, column]
        seen.add(math.isfinite(log_q))
        if q == 0.0 or math.isinf(q):
            assert log_q == (-math.inf if q == 0.0 else math.inf)
        else:
            assert log_q == pytest.approx(math.log(q), abs=1e-3)  # the table's 1e-5 over 1 − V', here above 0.01
            assert found.chi[row, column] == pytest.approx(field.chi(q), rel=1e-3)
    assert True in seen


def test_the_critical_line_of_tanh_passes_schoenholzs_1_76_at_0_05() -> None:
    found = plane("tanh").line
    assert np.interp(math.sqrt(0.05), found.sigma_b, found.sigma_w) == pytest.approx(math.sqrt(1.7609546396), rel=1e-4)
    assert found.attracts.all()


@pytest.mark.parametrize(
    ("name", "q", "sigma_w", "sigma_b"),
    [("gelu", 3.5616, 1.408211, 0.415839), ("silu", 14.320, 1.409966, 0.745079), ("mish", 1.6702, 1.418987, 0.307444)],
)
def test_a_line_is_dotted_up_to_where_lengths_begin_to_attract(
    name: str, q: float, sigma_w: float, sigma_b: float
) -> None:
    found = plane(name).line
    first = int(found.attracts.argmax())
    assert not found.attracts[:first].any()
    step = 1 / 64  # of ln q on the line; beside its own step the weights' and biases' are smaller ones
    assert math.log(found.q[first]) == pytest.approx(math.log(q), abs=step)
    assert (found.sigma_w[first], found.sigma_b[first]) == (
        pytest.approx(sigma_w, rel=step),
        pytest.approx(sigma_b, rel=step),
    )


def test_relu_is_critical_on_an_upright_line_right_of_which_lengths_grow_without_end() -> None:
    found = plane("relu")
    np.testing.assert_allclose(found.line.sigma_w, math.sqrt(2.0), rtol=1e-12)
    right = np.broadcast_to(found.sigma_w > math.sqrt(2.0), found.grows.shape)
    np.testing.assert_array_equal(found.grows, right)
    np.testing.assert_allclose(found.chi, np.broadcast_to(found.sigma_w**2 / 2.0, found.chi.shape), rtol=1e-9)


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "hardsigmoid"])
def test_where_no_variances_are_critical_the_picture_says_that_gradients_vanish(name: str) -> None:
    assert not plane(name).line_in_view.q.size
    assert plane(name).chi[~plane(name).grows].max() < 1.0
    said = words(phase_diagram(plane(name))).replace("\n", " ")
    assert "is below 1 wherever a length is kept: gradients vanish." in said
    assert ("above 1 only where lengths grow without end" in said) == (name == "softplus")


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 9.0), st.floats(0.0, 5.0)), min_size=1, max_size=5))
def test_every_layer_given_lies_in_the_plane_drawn(layers: list[tuple[float, float]]) -> None:
    found = theory.phase_diagram("tanh", layers)
    sigma_w, sigma_b = np.array(layers).T
    assert found.sigma_w[0] < sigma_w.min()
    assert sigma_w.max() < found.sigma_w[-1]
    assert sigma_b.max() < found.sigma_b[-1]
    np.testing.assert_array_equal(found.layers, np.array(layers))


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [([1.0, 2.0], "layers has shape"), ([(0.0, 1.0)], "sigma_w above 0"), ([(1.0, -1.0)], "sigma_b at least 0")],
)
def test_layers_that_are_no_pairs_of_variances_are_one_sentence(layers: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        theory.phase_diagram("tanh", layers)


def test_the_phase_picture_holds_depth_scales_line_usual_gains_and_your_layers() -> None:
    found = theory.phase_diagram("tanh", [(1.0, 0.1), (1.2, 0.3)])
    axes = phase_diagram(found).axes[0]
    image = np.asarray(axes.images[0].get_array())
    inner = (image > -1.5) & (image < 3.5)
    np.testing.assert_allclose(image[inner], np.log10(found.depth_scale)[inner])
    assert inner.mean() > 0.9
    x, y = line(axes, "χ = 1, and lengths are kept")
    np.testing.assert_allclose(x, found.line_in_view.sigma_w)
    np.testing.assert_allclose(y, found.line_in_view.sigma_b)
    for title, gain in (
        ("torch's default of Linear", 1 / math.sqrt(3)),
        ("LeCun, or Glorot of equal fans", 1.0),
        ("He", math.sqrt(2)),
        ("1/√E[f²] at q = 1", theory.gain("tanh")),
        ("torch's calculate_gain", 5 / 3),
    ):
        at = line(axes, f"{title}: {gain:.4g}")
        assert (at[0][0], at[1][0]) == (pytest.approx(gain), 0.0)
    dots = line(axes, "your 2 layers")
    np.testing.assert_array_equal(np.column_stack(dots), found.layers)
    assert "ordered:\ngradients vanish" in words(axes.figure)
    assert "chaotic:\ngradients explode" in words(axes.figure)


def test_where_lengths_grow_without_end_the_phase_picture_is_hatched() -> None:
    def hatched(name: str) -> list[Any]:
        axes = phase_diagram(plane(name)).axes[0]
        return [one for one in axes.collections if one.get_label() == "lengths grow without end"]

    (region,) = hatched("relu")
    left = region.get_paths()[0].vertices[:, 0].min()
    step = plane("relu").sigma_w[1] - plane("relu").sigma_w[0]
    assert math.sqrt(2) < left <= math.sqrt(2) + step
    assert not hatched("tanh")


# -- the correlation map -------------------------------------------------------------------------------------------


def test_relus_correlation_map_is_the_arc_cosine_kernel() -> None:
    (critical,) = [one for one in maps("relu").curves if one.phase == "critical"]
    c = critical.c
    exact = (np.sqrt(1 - c**2) + (math.pi - np.arccos(c)) * c) / math.pi
    np.testing.assert_allclose(critical.after, exact, atol=1e-11)
    assert critical.fixed == 1.0


@pytest.mark.parametrize("name", ["tanh", "softsign", "sin", "hardtanh"])
def test_there_is_a_curve_in_each_phase_and_each_ends_at_1_with_the_slope_chi(name: str) -> None:
    curves = maps(name).curves
    assert [one.phase for one in curves] == ["ordered", "critical", "chaotic"]
    for one in curves:
        field = MeanField(name, one.sigma_w**2, one.sigma_b**2)
        assert field.length(one.q) == pytest.approx(one.q, rel=1e-9)
        # A power series of positive coefficients is convex: the last chord lies between the slopes at its ends.
        chord = (one.after[-1] - one.after[-2]) / (one.c[-1] - one.c[-2])
        assert field.chi(one.q, one.c[-2]) <= chord * (1 + 1e-9)
        assert chord <= one.chi * (1 + 1e-9)
        assert field.correlation(one.fixed, one.q) == pytest.approx(one.fixed, abs=1e-9)
    assert curves[0].fixed == curves[1].fixed == 1.0
    assert curves[2].fixed < 0.9


def test_variances_without_a_length_to_settle_at_have_no_curve_and_the_picture_says_so() -> None:
    (gone,) = maps("gelu").unsettled
    assert gone.fate == "grow without end"
    assert gone.sigma_w == pytest.approx(1.6 * maps("gelu").curves[1].sigma_w)
    said = words(correlation_map(maps("gelu"))).replace("\n", " ")
    assert f"At σ_w = {gone.sigma_w:.3g}, σ_b = {gone.sigma_b:.3g} lengths grow without end" in said


@pytest.mark.parametrize("name", ["sigmoid", "softplus"])
def test_what_is_critical_nowhere_is_ordered_on_every_curve(name: str) -> None:
    assert {one.phase for one in maps(name).curves} == {"ordered"}
    assert "every two inputs become one" in words(correlation_map(maps(name))).replace("\n", " ")


def test_the_correlation_picture_holds_the_curves_the_diagonal_and_each_fixed_point() -> None:
    axes = correlation_map(maps("tanh")).axes[0]
    drawn = {str(artist.get_label()): artist for artist in axes.lines}
    assert drawn["c′ = c: a correlation that stays"].get_xydata().tolist() == [[0, 0], [1, 1]]
    for one in maps("tanh").curves:
        (found,) = [artist for label, artist in drawn.items() if label.startswith(f"{one.phase}: ")]
        np.testing.assert_array_equal(found.get_xydata(), np.column_stack([one.c, one.after]))
        assert line(axes, f"c* of σ_w = {one.sigma_w:.3g}") == ([one.fixed], [one.fixed])


# -- singular values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["independent", "orthogonal"])
@pytest.mark.parametrize("name", ["tanh", "gelu", "relu", "sigmoid"])
def test_the_histogram_of_sampled_networks_is_theorys_density(name: str, weights: Any) -> None:
    """Eight groups of bins: their shares differ by less than 0.06.

    A network's overall scale strays: ln s² by √(8·5/256), over four networks 0.2, which is 0.043 decades of s; the
    densities are at most 1.2 per decade at a group's edge, but for the narrowest.
    """
    found = spectrum(name, weights)
    group = found.edges[::4]
    width = found.edges[1] - found.edges[0]
    shares = found.density.reshape(8, 4).sum(1) * width
    for low, high, share in zip(group[:-1], group[1:], shares, strict=True):
        at = np.linspace(low, high, 33)
        expected = np.trapezoid(np.interp(at, found.log10_s, found.expected), at)
        assert share == pytest.approx(expected, abs=0.06)
    assert found.mean_square == pytest.approx(found.moments.mean, rel=0.4)


def test_a_histogram_holds_all_but_the_zeros_and_the_thin_tail_it_leaves_out() -> None:
    for weights in ("independent", "orthogonal"):
        found = spectrum("relu", weights)
        held = found.density.sum() * (found.edges[1] - found.edges[0])
        assert held == pytest.approx(0.96 * (1.0 - found.zeros), abs=2 / found.singular_values.size)
        # Half the slopes are 0, and the layer with the fewest others decides: 0.5 + 1.4·√(0.25/256) of eight layers.
        assert 0.5 < found.zeros < 0.6
    assert spectrum("tanh", "orthogonal").zeros == 0.0


def test_orthogonal_linear_networks_are_isometries_and_have_no_density() -> None:
    found = spectrum("identity", "orthogonal")
    np.testing.assert_allclose(found.singular_values, 1.0, atol=1e-12)
    assert np.isnan(found.expected).all()
    axes = singular_values((spectrum("identity", "independent"), found)).axes[1]
    assert line(axes, "theory, width → ∞")[0][0] == pytest.approx(0.0, abs=1e-12)


def test_the_picture_of_singular_values_holds_both_histograms_and_both_densities() -> None:
    spectra = (spectrum("tanh", "independent"), spectrum("tanh", "orthogonal"))
    figure = singular_values(spectra)
    for axes, found in zip(figure.axes, spectra, strict=True):
        (steps,) = [one for one in axes.patches if one.get_label() == "sampled networks"]
        np.testing.assert_array_equal(steps.get_data().values, found.density)
        np.testing.assert_array_equal(steps.get_data().edges, found.edges)
        x, y = line(axes, "theory, width → ∞")
        np.testing.assert_array_equal(x, found.log10_s)
        np.testing.assert_array_equal(y, found.expected)
        assert f"(theory {found.moments.relative_variance:.3g})" in words(figure)


@pytest.mark.parametrize(("wrong", "sentence"), [({"width": 1}, "width=1"), ({"networks": 0}, "networks=0")])
def test_a_sample_of_nothing_is_refused(wrong: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"{sentence} must be at least"):
        theory.sampled_spectrum("tanh", "independent", **wrong)


# -- the card ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fate", "q_50", "p_ratio"),
    [
        ("tanh", 1, 1.0430738401e-02, -1.8347760836),
        ("sigmoid", 1, 0.26468687518, -61.5444954306),
        ("selu", 1, 1.0, 1.4711059223),
        ("gelu", 2, 5.1217706475e-12, -11.1374272830),
        ("relu", 2, 2.0, 0.0),
        ("relu", 0, 10 ** (-38.1294112688) / 3.0, -38.1294112688),
    ],
)
def test_the_fates_on_a_card_are_the_reference_profiles_over_50_layers(
    name: str, fate: int, q_50: float, p_ratio: float
) -> None:
    found = card_curves(name).fates[fate]
    assert found.log10_q[-1] == pytest.approx(math.log10(q_50), abs=1e-8)
    assert found.log10_p[0] == pytest.approx(p_ratio, abs=1e-8)
    assert found.log10_p[-1] == 0.0


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "softsign"])
def test_a_cards_curves_pass_through_the_cards_numbers(name: str) -> None:
    curves = card_curves(name)
    at, card = curves.q.size // 2, curves.card
    assert curves.q[at] == pytest.approx(1.0)
    for number in ("forward_gain", "backward_gain", "chi", "length_slope"):
        assert getattr(curves, number)[at] == pytest.approx(getattr(card, number), rel=1e-9)


def test_the_cards_picture_holds_function_gains_slopes_and_fates() -> None:
    curves = card_curves("tanh")
    function, gain, slopes, forward, backward = activation_card(curves).axes[:5]
    z, value = line(function, "f(z)")
    np.testing.assert_array_equal(value, np.tanh(z))
    np.testing.assert_allclose(line(function, "f′(z)")[1], 1 - np.tanh(z) ** 2, atol=1e-15)
    for axes, label, numbers in (
        (gain, "forward", curves.forward_gain),
        (gain, "backward", curves.backward_gain),
        (slopes, "χ, gradient", curves.chi),
        (slopes, "V′, a length's deviation", curves.length_slope),
    ):
        x, y = line(axes, label)
        np.testing.assert_allclose(x, np.log10(curves.q))
        np.testing.assert_allclose(y, np.log10(numbers))
    for fate in curves.fates:
        label = f"{fate.title}: {fate.gain:.4g}"
        np.testing.assert_array_equal(line(forward, label)[1], fate.log10_q)
        np.testing.assert_array_equal(line(backward, label)[1], fate.log10_p)
    said = words(function.figure)
    assert "1.5925" in said  # the forward gain, 1.5925374197
    assert "×1.1778" in said  # behind a norm


# -- all gains -----------------------------------------------------------------------------------------------------


def test_the_table_of_gains_has_every_elementwise_activation_by_its_forward_gain() -> None:
    rows = theory.gain_table().rows
    assert sorted(row.name for row in rows) == sorted(ELEMENTWISE)
    forward = [row.forward_gain for row in rows]
    np.testing.assert_allclose(np.sort(forward), forward, rtol=1e-8)
    known = {row.name: row for row in rows}
    assert known["gelu"].forward_gain == pytest.approx(1.5335304412, abs=1e-10)
    assert known["softsign"].backward_gain == pytest.approx(2.0957806089, abs=1e-10)
    assert known["silu"].batch_norm_rate == pytest.approx(1.21208, abs=1e-5)
    assert known["mish"].length_slope == pytest.approx(1.0763388163613195, rel=1e-9)


def test_torchs_gains_are_those_of_calculate_gain_and_there_are_no_others() -> None:
    theirs = {"identity": "linear"}
    for row in theory.gain_table(["leaky_relu(0.2)"]).rows:
        name, _, slope = row.name.rstrip(")").partition("(")
        try:
            expected = nn.init.calculate_gain(theirs.get(name, name), float(slope) if slope else None)
        except ValueError:
            assert row.torch_gain is None, row.name
        else:
            assert row.torch_gain == pytest.approx(expected, rel=1e-12), row.name


def test_the_picture_of_gains_holds_both_gains_of_each_row_and_those_chosen_are_bold() -> None:
    table = theory.gain_table(["tanh", "leaky_relu(0.2)", "softmax"])
    assert table.chosen == ("tanh", "leaky_relu(0.2)")
    axes = gains(table).axes[0]
    np.testing.assert_allclose(line(axes, "forward, 1/√E[f²]")[0], np.log10([row.forward_gain for row in table.rows]))
    np.testing.assert_allclose(
        line(axes, "backward, 1/√E[f′²]")[0], np.log10([row.backward_gain for row in table.rows])
    )
    names = {label.get_text(): label.get_fontweight() for label in axes.get_yticklabels()}
    assert {name for name, weight in names.items() if weight == "bold"} == set(table.chosen)
    x, at = line(axes, "torch.nn.init.calculate_gain")
    row = table.rows[int(at[list(np.round(x, 9)).index(round(math.log10(5 / 3), 9))])]
    assert row.name == "tanh"


def test_the_committed_table_of_gains_is_what_the_code_gives(tmp_path: Path) -> None:
    assert (ROOT / "docs" / "gains.md").read_text(encoding="utf-8") == gains_markdown()
    command = [sys.executable, "-m", "gradscope.report._gains_table", str(tmp_path / "gains.md")]
    subprocess.run(command, check=True, cwd=ROOT)
    assert (tmp_path / "gains.md").read_text(encoding="utf-8") == gains_markdown()


# -- the spread of networks of finite width --------------------------------------------------------------------------

WIDTHS = [64, 1000, 300, 1500, 100, 800, 400, 200]


@pytest.mark.parametrize(
    ("name", "gain"), [("relu", 2.0), ("tanh", 1.0), ("gelu", 2.0), ("selu", 1.0), ("sigmoid", 1.0)]
)
def test_the_spread_of_a_chain_is_that_of_a_plain_network_of_the_same_widths(name: str, gain: float) -> None:
    fan_in = np.array([64, *WIDTHS[:-1]])
    found = theory.propagate(name, len(WIDTHS), weight_variance=gain / fan_in, fan_in=fan_in, fan_out=WIDTHS)
    log_q = 2.0 * math.log(10.0) * found.pre
    chain = [ChainLayer(n, q, activations.get(name)) for n, q in zip(WIDTHS, log_q.tolist(), strict=True)]
    spread = chain_spread(chain)
    np.testing.assert_allclose(spread.forward, found.forward_var, rtol=1e-12)
    np.testing.assert_allclose(spread.backward, found.backward_var - 2.0 / WIDTHS[-1], atol=1e-12)


def drawn_variances(name: str, depth: int, width: int, networks: int, *, normed: bool) -> tuple[Array, Array, Array]:
    """Variances over networks drawn in numpy of ln mean h², ln mean δ², and ln mean (dL/dW)² over the last layer's."""
    f, rng = activations.get(name), np.random.default_rng(5)
    seen: list[list[list[float]]] = []
    for _ in range(networks):
        weights = [rng.normal(0.0, math.sqrt(2.0 / width), (width, width)) for _ in range(depth)]
        x = rng.normal(size=width)
        act, pre = [x * math.sqrt(width) / np.linalg.norm(x)], list[Array]()
        for w in weights:
            pre.append(w @ act[-1])
            scale = math.sqrt(width) / np.linalg.norm(pre[-1]) if normed else 1.0
            act.append(f.function(scale * pre[-1]))
        delta = rng.normal(size=width)
        delta *= math.sqrt(width) / np.linalg.norm(delta)
        grads = [delta]
        for w, h in zip(weights[:0:-1], pre[-2::-1], strict=True):
            if normed:
                scale = math.sqrt(width) / np.linalg.norm(h)
                back = (w.T @ grads[0]) * f.derivative(scale * h)
                grads.insert(0, scale * (back - scale**2 * h * (h @ back) / width))
            else:
                grads.insert(0, (w.T @ grads[0]) * f.derivative(h))
        seen.append(
            [
                [math.log(np.mean(h * h)) for h in pre],
                [math.log(np.mean(g * g)) for g in grads],
                [math.log(np.mean(g * g) * np.mean(a * a)) for g, a in zip(grads, act, strict=False)],
            ]
        )
    logs = np.array(seen)
    logs[:, 2] -= logs[:, 2, -1:]
    forward, backward, weight_grad = logs.var(0, ddof=1)
    return forward, backward, weight_grad


@pytest.mark.parametrize(("name", "normed"), [("relu", False), ("tanh", False), ("relu", True), ("tanh", True)])
def test_the_spread_of_a_chain_is_that_of_drawn_networks(name: str, normed: bool) -> None:
    """400 networks of width 128: a variance is known to √(2/400) = 7 %, of which 4.2, and 5 % of the order 1/width."""
    depth, width = 7, 128
    log_q = [0.0] * depth
    if not normed:
        found = theory.propagate(name, depth, weight_variance=2.0 / width, fan_in=width)
        log_q = (2.0 * math.log(10.0) * found.pre).tolist()
    spread = chain_spread([ChainLayer(width, q, activations.get(name), normed) for q in log_q])
    forward, backward, weight_grad = drawn_variances(name, depth, width, 400, normed=normed)
    np.testing.assert_allclose(forward, spread.forward, rtol=0.35)
    np.testing.assert_allclose(backward[:-1], spread.backward[:-1], rtol=0.35)
    np.testing.assert_allclose(weight_grad[:-1], spread.weight_grad[:-1], rtol=0.35)


def test_an_unknown_activation_counts_as_relu_and_adds_5_over_n_per_layer() -> None:
    unknown = chain_spread([ChainLayer(50)] * 6)
    known = chain_spread([ChainLayer(50, 0.3, activations.get("relu"))] * 6)
    np.testing.assert_allclose(unknown.forward, known.forward, rtol=1e-10)
    np.testing.assert_allclose(unknown.backward, known.backward, rtol=1e-10)
    np.testing.assert_allclose(unknown.backward, 0.1 * np.arange(5, -1, -1), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-4, 3.0), st.floats(-20.0, 20.0))
def test_the_band_leaves_one_network_in_forty_on_either_side(variance: float, log10_rms: float) -> None:
    low, high = spread_band(log10_rms, variance)
    logs = NormalDist(2.0 * math.log(10.0) * log10_rms - variance / 2.0, math.sqrt(variance))
    assert logs.cdf(2.0 * math.log(10.0) * float(low)) == pytest.approx(0.025, abs=1e-9)
    assert logs.cdf(2.0 * math.log(10.0) * float(high)) == pytest.approx(0.975, abs=1e-9)


@pytest.mark.parametrize("layers", [[], [ChainLayer(0.0)], [ChainLayer(math.nan)]])
def test_a_chain_without_layers_or_widths_is_refused(layers: list[ChainLayer]) -> None:
    with pytest.raises(ValueError, match="layers"):
        chain_spread(layers)


# -- theory beside a recorded run ------------------------------------------------------------------------------------


@functools.cache
def pair(scheme: str = "he_normal", kind: type[nn.Module] = nn.ReLU, seed: int = 0) -> tuple[Recording, Recording]:
    """A probe of a plain network under a loss, and its prediction."""
    generator = torch.Generator().manual_seed(seed)
    hidden = [module for _ in range(19) for module in (nn.Linear(96, 96), kind())]
    model = nn.Sequential(*hidden, nn.Linear(96, 10))
    init.initialize(model, scheme, generator=generator)
    x, y = torch.randn(64, 96, generator=generator), torch.randint(0, 10, (64,), generator=generator)
    return probe(model, x, y, nn.functional.cross_entropy), predict(model, x)


def test_a_profile_holds_the_predicted_curve_at_the_measured_layers_dashed() -> None:
    measured, expected = pair()
    axes = profile(measured, "activation", expected).axes[0]
    p = expected.profile("activation")
    layers = [i for i, site in enumerate(p.sites) if site.role == "pre-activation"]
    x, y = line(axes, "theory")
    np.testing.assert_array_equal(x, line(axes, "step 0")[0])
    np.testing.assert_allclose(y, np.log10(p.values[layers]), atol=1e-12)
    (dashed,) = [artist for artist in axes.lines if artist.get_label() == "theory"]
    assert dashed.is_dashed()
    assert "theory" not in [artist.get_label() for artist in profile(measured, "activation").axes[0].lines]


def test_a_predicted_gradient_meets_the_measured_one_at_the_last_layer() -> None:
    measured, expected = pair()
    for signal in ("activation_grad", "weight_grad"):
        axes = profile(measured, signal, expected).axes[0]
        theirs, ours = line(axes, "theory")[1], line(axes, "step 0")[1]
        p = expected.profile(signal)
        known = np.log10(p.values[p.layers])
        np.testing.assert_allclose(theirs - theirs[-1], known - known[-1], atol=1e-12)
        assert theirs[-1] == pytest.approx(ours[-1], abs=1e-12)
        assert "theory, scaled to the last layer" in words(axes.figure)


def test_the_band_of_a_profile_is_hanins_5_over_n_per_relu_layer() -> None:
    measured, expected = pair()
    for signal, variance in (
        ("activation", 0.0),
        ("activation_grad", 5 / 96 * np.arange(19, -1, -1)),
    ):
        axes = profile(measured, signal, expected).axes[0]
        (fill,) = [one for one in axes.collections if one.get_label() == "band of the theory"]
        x, y = fill.get_paths()[0].vertices.T
        theirs = line(axes, "theory")
        if signal == "activation":
            variance = 5 / 96 * np.arange(20) + 2 / np.array([*[96] * 19, 10])
        low, high = spread_band(theirs[1], variance)
        for at, a, b in zip(theirs[0], low, high, strict=True):
            assert (y[x == at].min(), y[x == at].max()) == (pytest.approx(a, abs=1e-9), pytest.approx(b, abs=1e-9))
        assert "95 % of plain chains of these widths, by theory" in words(axes.figure)


@pytest.mark.parametrize(("scheme", "kind"), [("he_normal", nn.ReLU), ("glorot_normal", nn.Tanh)])
def test_a_healthy_network_lies_within_the_band_and_one_with_other_weights_does_not(
    scheme: str, kind: type[nn.Module]
) -> None:
    """Six networks: the band is one input's, so that a batch lies outside less often than in one layer of twenty."""

    def outside(measured: Recording, expected: Recording, signal: Any) -> float:
        (only,) = three_lines(measured, signal)
        found = expected_curve(expected, only)
        assert found is not None
        ours = np.log10(only.profile.values[only.profile.layers])
        return float(np.mean((ours < found.low - 1e-9) | (ours > found.high + 1e-9)))

    pairs = [pair(scheme, kind, seed) for seed in range(6)]
    for signal in ("activation", "activation_grad", "weight_grad"):
        assert np.mean([outside(*one, signal) for one in pairs]) <= 0.05
    assert outside(pair("naive_normal", kind)[0], pairs[0][1], "activation") > 0.9


def test_the_width_of_a_convolution_is_its_channels_and_a_norm_takes_the_length_away() -> None:
    from gradscope.report._expected_curve import _chain

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 48, 3, stride=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(48 * 9, 32), nn.LayerNorm(32), nn.Linear(32, 5),
    )  # fmt: skip
    sites, chain = _chain(predict(model, torch.randn(8, 3, 8, 8)))
    assert [site.name for site in sites] == ["0", "3", "6", "8"]
    assert [layer.width for layer in chain] == [24, 48, 32, 5]
    assert [layer.normed for layer in chain] == [True, False, True, False]
    names = [None if layer.activation is None else layer.activation.name for layer in chain]
    assert names == ["relu", "tanh", "identity", None]
    assert chain[0].log_q == pytest.approx(0.0, abs=1e-3)  # behind batch norm


def test_a_run_is_compared_at_its_first_step_and_reported_with_the_theory(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = [module for _ in range(5) for module in (nn.Linear(32, 32), nn.Sigmoid())]
    model = nn.Sequential(*hidden, nn.Linear(32, 4))
    init.initialize(model, "glorot_normal", generator=generator)  # as `trained()` begins
    expected, run = predict(model, torch.randn(16, 32, generator=generator)), trained()
    report = write_run_report(run, tmp_path, expected=expected)
    document = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))
    assert document == report.document
    by_file = {p["file"]: p["data"] for p in document["pictures"]}
    first = by_file["profile__activation_grad.png"]["lines"][0]
    theirs = by_file["profile__activation_grad.png"]["expected"]
    layers = [value for value, layer in zip(first["log10_rms"], first["is_layer"], strict=True) if layer]
    assert theirs["log10_rms"][-1] == pytest.approx(layers[-1], abs=1e-9)
    assert theirs["decades_per_layer"] == pytest.approx(first["decades_per_layer"], abs=0.05)
    assert by_file["profile__weight.png"]["expected"]["log10_low"] == [None] * 6  # given, not expected: no band
    assert "expected" not in by_file["profile__update.png"]
    assert all("expected" not in p["data"] for p in write_run_report(run, tmp_path).document["pictures"])


def test_a_prediction_of_another_model_has_nothing_in_common_and_draws_no_theory() -> None:
    other = predict(nn.Linear(4, 4), torch.ones(2, 4))
    assert not has_common_sites(trained(), other)
    (*_, last) = three_lines(trained(), "activation")
    assert expected_curve(other, last) is None
    assert has_common_sites(*pair())


def test_a_gradient_that_is_nowhere_finite_has_no_theory_beside_it() -> None:
    _, expected = pair()
    run = Recording.create()
    ids = [
        run.add_site(Site("activation_grad", n, n, "Linear", role="pre-activation", depth=d))
        for n, d in (("0", 1), ("2", 2))
    ]
    moments = Moments.concat([Moments.from_array([math.nan]), Moments.from_array([math.inf])])
    run.append(StepRecord(0, moments={"activation_grad": (np.array(ids), moments)}))
    (only,) = three_lines(run, "activation_grad")
    assert expected_curve(expected, only) is None


def test_a_sweeps_panels_have_the_theorys_band_where_its_curve_is_a_forecast() -> None:
    found = small_sweep().cell("he_normal", "relu")
    assert found.expected is not None
    for axes, curve, variance in zip(
        signal_vs_depth(found).axes,
        (found.expected.pre, found.expected.pre_grad),
        (found.expected.forward_var, found.expected.backward_var),
        strict=True,
    ):
        (fill,) = [one for one in axes.collections if one.get_label() == "theory's band"]
        low, high = spread_band(curve, variance)
        y = fill.get_paths()[0].vertices[:, 1]
        assert (y.min(), y.max()) == (pytest.approx(low.min(), abs=1e-9), pytest.approx(high.max(), abs=1e-9))


# -- from the command line -------------------------------------------------------------------------------------------

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def printed(capsys: Capture) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_activation_draws_the_theory_and_prints_the_card(folder: Path, capsys: Capture) -> None:
    assert main(["activation", "tanh", "softmax"]) == 0
    said = printed(capsys)
    assert "chi where lengths are kept 1.17781" in said
    assert "torch's calculate_gain, gain 1.667 length settles at q = 1.17848, gradient ×1.20983 per layer there" in said
    assert {p.name for p in Path("reports").glob("*.png")} == {
        "activation__tanh.png",
        "card__tanh.png",
        "phase__tanh.png",
        "cmap__tanh.png",
        "spectrum__tanh.png",
        "activation__softmax.png",
        "gains.png",
    }


def test_softmax_alone_has_no_gains_and_no_card(folder: Path, capsys: Capture) -> None:
    assert main(["activation", "softmax"]) == 0
    assert "chi where lengths are kept" not in printed(capsys)
    assert [p.name for p in Path("reports").glob("*.png")] == ["activation__softmax.png"]


def _module(folder: Path, name: str, code: str) -> str:
    (folder / f"{name}.py").write_text(f"import torch\nfrom torch import nn\n\n{code}", encoding="utf-8")
    return name


def test_probe_draws_the_prediction_of_the_model_beside_it(folder: Path, capsys: Capture) -> None:
    name = _module(
        folder,
        "chain_for_theory",
        "def make():\n    return nn.Sequential(*[nn.Linear(16, 16)] * 3), torch.ones(4, 16)\n",
    )
    assert main(["probe", f"{name}:make"]) == 0
    assert "No theory is drawn" not in printed(capsys)
    by_file = {p["file"]: p["data"] for p in json.loads(Path("reports/index.json").read_text())["pictures"]}
    assert by_file["profile__activation.png"]["expected"]["sites"] == ["0", "0#1", "0#2"]


def test_probe_says_in_one_sentence_why_no_theory_is_drawn(folder: Path, capsys: Capture) -> None:
    code = (
        "CALLS = []\n\n\nclass Once(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(4, 4)\n\n"
        "    def forward(self, x):\n        CALLS.append(x)\n"
        "        if len(CALLS) > 1:\n            raise RuntimeError('only once.')\n        return self.a(x)\n\n\n"
        "def make():\n    return Once(), torch.ones(2, 4)\n"
    )
    name = _module(folder, "once_for_theory", code)
    assert main(["probe", f"{name}:make"]) == 0
    assert f"No theory is drawn: {name}:make cannot be predicted: RuntimeError: only once." in printed(capsys)
    assert all("expected" not in p["data"] for p in json.loads(Path("reports/index.json").read_text())["pictures"])


def test_show_takes_a_saved_prediction_and_refuses_what_is_none(folder: Path, capsys: Capture) -> None:
    measured, expected = pair()
    run, forecast = str(saved(measured, folder / "run.gscope")), str(saved(expected, folder / "theory.gscope"))
    assert main(["show", run, "--expected", forecast]) == 0
    assert "No theory" not in printed(capsys)
    by_file = {p["file"]: p["data"] for p in json.loads(Path("reports/index.json").read_text())["pictures"]}
    assert len(by_file["profile__activation.png"]["expected"]["log10_high"]) == 20
    assert main(["show", run, "--expected", run]) == 2
    assert "is no prediction; gradscope.predict(model, inputs).save(path) makes one" in capsys.readouterr().err
    other = str(
        saved(predict(nn.Sequential(nn.Sequential(nn.Linear(4, 4))), torch.ones(2, 4)), folder / "other.gscope")
    )
    assert main(["show", run, "--expected", other]) == 0
    assert "No theory is drawn: the prediction has no site of this recording." in printed(capsys)


# -- all pictures ----------------------------------------------------------------------------------------------------

FIGURES: dict[str, Callable[[], Figure]] = {
    "phase with layers": lambda: phase_diagram(plane_of_thirty()),
    "gains": lambda: gains(theory.gain_table(["gelu"])),
    "forward": lambda: profile(pair()[0], "activation", pair()[1]),
    "backward": lambda: profile(pair()[0], "activation_grad", pair()[1]),
    "weights": lambda: profile(pair()[0], "weight", pair()[1]),
    **{
        f"{kind} {name}": functools.partial(draw, name)
        for kind, draw, names in (
            ("card", lambda name: activation_card(card_curves(name)), ("gelu", "sigmoid", "relu", "sin")),
            ("phase", lambda name: phase_diagram(plane(name)), ("gelu", "sigmoid", "relu")),
            ("cmap", lambda name: correlation_map(maps(name)), ("gelu", "softplus", "relu")),
            ("spectrum", lambda name: singular_values(both(name)), ("tanh", "identity", "sigmoid")),
        )
        for name in names
    },
}


def both(name: str) -> tuple[theory.SampledSpectrum, theory.SampledSpectrum]:
    return spectrum(name, "independent"), spectrum(name, "orthogonal")


def plane_of_thirty() -> theory.PhaseDiagram:
    return theory.phase_diagram("selu", [(0.6 + 0.02 * i, 0.1) for i in range(30)])


@functools.cache
def figure(name: str) -> Figure:
    return FIGURES[name]()


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_of_the_theorys_pictures_is_cut_off_at_the_edge(name: str) -> None:
    assert_text_is_inside(figure(name))


@pytest.mark.parametrize("name", ["card gelu", "phase relu", "cmap gelu", "spectrum tanh", "gains", "backward"])
def test_the_theorys_pictures_have_the_same_bytes_whatever_the_users_style(name: str, tmp_path: Path) -> None:
    save_png(figure(name), tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 25, "axes.facecolor": "red", "savefig.dpi": 30, "hatch.color": "green"}):
        save_png(FIGURES[name](), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_every_key_of_the_theorys_pictures_is_documented(tmp_path: Path) -> None:
    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    report = write_activation_report(["gelu"], tmp_path, theory=True, layers=[(1.0, 0.1)])
    assert json.loads((tmp_path / "index.json").read_text(encoding="utf-8")) == report.document
    assert [p["kind"] for p in report.document["pictures"]] == [
        "activation_curve", "activation_card", "phase_diagram", "correlation_map", "singular_values", "gains"
    ]  # fmt: skip
    measured, expected = pair()
    run = write_run_report(measured, tmp_path / "run", expected=expected)
    text = (ROOT / "docs" / "report_json.md").read_text(encoding="utf-8")
    found = keys(report.document) | keys([p["data"] for p in run.document["pictures"]])
    assert not {key for key in found if f"`{key}`" not in text}


def test_an_activation_of_your_own_has_all_four_pictures() -> None:
    bent = theory.activation_of(lambda z: np.where(z > 0.0, z, 0.3 * np.tanh(z)), name="bent")
    assert [job.file for job, _ in theory_jobs(bent)] == [
        "card__bent.png", "phase__bent.png", "cmap__bent.png", "spectrum__bent.png"
    ]  # fmt: skip
    for job, _ in theory_jobs(bent):
        assert_text_is_inside(job.figure(job.argument))


def test_drawing_the_theory_needs_no_torch() -> None:
    code = (
        "import sys; from gradscope.report._theory_pictures import theory_jobs; from gradscope.activations import get\n"
        "import gradscope.report._gains_table\n"
        "[job.figure(job.argument) for job, _ in theory_jobs(get('relu'))]\n"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
