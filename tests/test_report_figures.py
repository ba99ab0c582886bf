"""The pictures: what lies on their axes, and that nothing else decides their bytes."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

from gradscope import activations
from gradscope.diagnosis import Finding, Findings, diagnose
from gradscope.recording import Moments, Recording, Site, StepRecord
from gradscope.report import save_png
from gradscope.report._style import diverging
from gradscope.report.figures import (
    activation_curve,
    depth_step_heatmap,
    overview,
    profile,
    signal_vs_depth,
    update_to_weight,
)
from tests.reporting import cell, small_sweep, trained

ROOT = Path(__file__).parents[1]


def line(axes: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    found = [artist for artist in axes.lines if artist.get_label() == label]
    assert len(found) == 1, [artist.get_label() for artist in axes.lines]
    x, y = found[0].get_data()
    return np.asarray(x), np.asarray(y)


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def band(axes: Axes) -> tuple[float, float]:
    (patch,) = [artist for artist in axes.patches if artist.get_label() == "healthy band"]
    box = patch.get_extents().transformed(axes.transData.inverted())
    return box.y0, box.y1


# -- signal against depth ------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["glorot_normal", "he_normal"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "gelu"])
def test_each_panel_holds_the_median_over_seeds_of_the_measured_rms(init: str, activation: str) -> None:
    found = small_sweep().cell(init, activation)
    forward, backward = signal_vs_depth(found).axes
    for axes, rms, after in ((forward, found.pre, found.act), (backward, found.pre_grad, found.act_grad)):
        x, y = line(axes, "median")
        np.testing.assert_array_equal(x, np.arange(1, found.depth + 1))
        np.testing.assert_allclose(y, np.log10(np.median(rms, axis=0)), atol=1e-12)
        np.testing.assert_allclose(line(axes, "after")[1][:-1], np.log10(np.median(after, axis=0))[:-1], atol=1e-12)
        assert np.isnan(line(axes, "after")[1][-1])


def test_the_theory_is_dashed_and_the_measurement_is_not() -> None:
    found = small_sweep().cell("glorot_normal", "relu")
    forward, backward = signal_vs_depth(found).axes
    assert found.expected is not None
    for axes, theory in ((forward, found.expected.pre), (backward, found.expected.pre_grad)):
        np.testing.assert_array_equal(line(axes, "theory")[1], theory)
        styles = {artist.get_label(): artist.is_dashed() for artist in axes.lines if artist.get_label() == "median"}
        assert styles == {"median": False}
        (dashed,) = [artist for artist in axes.lines if artist.get_label() == "theory"]
        assert dashed.is_dashed()


def test_the_band_of_seeds_runs_from_the_10th_to_the_90th_percentile() -> None:
    found = cell(-0.1, -0.2, depth=6)
    axes = signal_vs_depth(found).axes[0]
    (fill,) = [artist for artist in axes.collections if artist.get_label() == "seeds"]
    y = fill.get_paths()[0].vertices[:, 1]
    # Five seeds at 2^-2 … 2^2 of the median: by linear interpolation the quantiles are 0.4 from the ends.
    assert y.max() == pytest.approx(1.6 * np.log10(2), abs=1e-6)
    assert y.min() == pytest.approx(-0.5 - 1.6 * np.log10(2), abs=1e-6)


def test_the_healthy_band_is_one_decade_around_where_the_signal_enters() -> None:
    found = small_sweep().cell("glorot_normal", "sigmoid")
    forward, backward = signal_vs_depth(found).axes
    for axes, enters in ((forward, np.median(found.pre[:, 0])), (backward, np.median(found.pre_grad[:, -1]))):
        assert band(axes) == pytest.approx((np.log10(enters) - 1, np.log10(enters) + 1), abs=1e-9)


@pytest.mark.parametrize(("forward", "backward"), [(-0.15, 0.02), (0.0, -0.627), (0.3, 0.3)])
def test_the_slope_is_printed_in_decades_per_layer_beside_the_theorys(forward: float, backward: float) -> None:
    figure = signal_vs_depth(cell(forward, backward))
    for axes, slope in zip(figure.axes, (forward, backward), strict=True):
        text = f"{slope:+.3f}".replace("-", "−") if slope else "0.000"
        said = [t.get_text() for t in axes.texts]
        assert f"{text} decades per layer" in said
        assert f"theory: {text}" in said


def test_a_panel_says_in_words_what_becomes_of_the_gradient_and_where() -> None:
    # 0.5 decades a layer over 49 layers passed: 10^24.5 = 3.2e24; the third layer passed is 1.5 decades away.
    said = words(signal_vs_depth(cell(0.0, -0.5))).replace("\n", " ")
    assert "The gradient shrinks 3.2×10²⁴ over 50 layers, out of the healthy band from layer 47." in said
    assert "The signal keeps its size (×1 over 50 layers)." in said


def test_the_first_layer_outside_the_healthy_band_is_crossed() -> None:
    forward, backward = signal_vs_depth(cell(0.0, -0.5)).axes
    assert line(backward, "frontier")[0].tolist() == [47]
    assert "frontier" not in [artist.get_label() for artist in forward.lines]


def test_layers_that_left_float32_are_not_drawn_and_the_end_is_marked() -> None:
    forward = signal_vs_depth(cell(1.2, 0.0)).axes[0]
    backward = signal_vs_depth(cell(0.0, -1.0)).axes[1]
    y = line(forward, "median")[1]
    # The largest seed, 4 times the median, passes 3.4e38 at 10^(1.2·l) > 8.5e37: l = 32, which is layer 33.
    assert np.isfinite(y[:32]).all()
    assert np.isnan(y[32:]).all()
    assert line(forward, "float32 ends")[0][0] == 33
    # Backward the smallest seed, a quarter of the median, passes 1e-36 at 36 layers from the output: layer 14.
    assert line(backward, "float32 ends")[0][0] == 14
    assert "overflows float32 from layer 33 up" in words(forward.figure)


def test_a_gradient_that_passed_a_dead_forward_signal_is_neither_drawn_nor_measured() -> None:
    found = cell(1.2, 0.0)
    figure = signal_vs_depth(found)
    y = line(figure.axes[1], "median")[1]
    assert np.isfinite(y).tolist() == [False] * 49 + [True]  # only where it enters: layer 49's passed all that is inf
    assert np.isnan(found.backward_decades)
    assert "No gradient: the forward signal overflows float32 at layer 33" in words(figure).replace("\n", " ")


def test_an_unstable_theory_is_called_no_forecast_and_a_stable_one_is_not() -> None:
    assert "no forecast" in words(signal_vs_depth(cell(0, 0, stable=False)))
    assert "no forecast" not in words(signal_vs_depth(cell(0, 0)))


def test_one_seed_has_no_median_and_no_band_in_the_legend() -> None:
    said = words(signal_vs_depth(cell(0, 0, seeds=1)))
    assert "of seeds" not in said
    assert "1 seed" in said


def test_labels_are_powers_of_ten_of_the_log10_values_on_the_axis() -> None:
    axes = signal_vs_depth(cell(0.0, -0.5)).axes[1]
    labels = {tick: label.get_text() for tick, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}
    assert labels[-10] == "10⁻¹⁰"
    assert labels[0] == "1"


def test_the_axis_says_which_way_each_signal_flows() -> None:
    forward, backward = signal_vs_depth(cell(0, 0)).axes
    assert "signal flows →" in forward.get_xlabel()
    assert "← the gradient flows" in backward.get_xlabel()


# -- the overview ---------------------------------------------------------------------------------------------


def test_the_overview_holds_the_decades_of_every_pair_and_prints_each_number() -> None:
    cells = small_sweep().cells
    figure = overview(cells)
    inits, names = list(dict.fromkeys(c.init for c in cells)), list(dict.fromkeys(c.activation for c in cells))
    for axes, direction in zip(figure.axes[:2], ("forward", "backward"), strict=True):
        image = np.ma.filled(axes.images[0].get_array(), np.nan)
        printed = {text.get_position()[0]: text.get_text() for text in axes.texts}
        assert printed
        for found in cells:
            slope = found.forward_decades if direction == "forward" else found.backward_decades
            at = image[inits.index(found.init), names.index(found.activation)]
            np.testing.assert_equal(at, slope)
        numbers = [t.get_text() for t in axes.texts if t.get_text()[0] in "+−0–" and t.get_text()[:1] != "✕"]
        assert len(numbers) == len(cells)


def test_the_overview_clips_its_colours_but_not_its_numbers() -> None:
    figure = overview((cell(1.2, 0.0, depth=20),))
    image = figure.axes[0].images[0]
    assert image.norm.vmax == 0.5
    assert "+1.20" in words(figure)


def test_the_overview_frames_the_recommended_scheme_of_each_activation() -> None:
    cells = small_sweep().cells
    inits, names = list(dict.fromkeys(c.init for c in cells)), list(dict.fromkeys(c.activation for c in cells))
    for axes in overview(cells).axes[:2]:
        frames = [p for p in axes.patches if p.get_gid() == "recommended"]
        at = {(names[round(p.get_x() + 0.5)], inits[round(p.get_y() + 0.5)]) for p in frames}
        assert at == {(name, activations.get(name).scheme) for name in names}


def test_the_overview_says_at_which_layer_float32_dies() -> None:
    assert "✕ 33" in words(overview((cell(1.2, 0.0),)))


# -- activations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu", "gelu", "hardtanh", "leaky_relu(0.2)"])
def test_the_activation_picture_holds_function_and_slope(name: str) -> None:
    row = activations.get(name)
    top, bottom = activation_curve(name).axes
    z, value = line(top, "output f(z)")
    np.testing.assert_array_equal(value, row.function(z))
    np.testing.assert_array_equal(line(bottom, "slope f′(z)")[1], row.derivative(z))
    assert z[0] < -4 < 4 < z[-1]


def test_a_logistic_unit_is_hatched_where_its_slope_is_under_1_percent_of_its_largest() -> None:
    # s(1 - s) = 0.0025 at z = ±ln((1 + √0.99)/(1 - √0.99)) = ±5.9864
    edge = np.log((1 + np.sqrt(0.99)) / (1 - np.sqrt(0.99)))
    for axes in activation_curve("sigmoid").axes:
        boxes = [p.get_extents().transformed(axes.transData.inverted()) for p in axes.patches if p.get_hatch()]
        assert sorted(round(x, 6) for box in boxes for x in (box.x0, box.x1))[1:3] == pytest.approx([-edge, edge])


def test_the_sigmoid_picture_says_why_there_is_no_gradient_at_large_inputs() -> None:
    said = words(activation_curve("sigmoid")).replace("\n", " ")
    assert "The slope is at most 0.25; for z below −6 or above 6 it is less than 1 % of that" in said
    assert "when the input is large, s is almost 1 (or almost 0), one factor is almost 0" in said


def test_an_activation_that_does_not_saturate_is_not_hatched() -> None:
    assert not [p for axes in activation_curve("identity").axes for p in axes.patches if p.get_hatch()]


def test_the_density_of_pre_activations_peaks_at_zero_for_a_unit_and_far_left_for_softmax() -> None:
    def peak(name: str) -> float:
        axes = activation_curve(name).axes[0]
        (fill,) = [artist for artist in axes.collections if artist.get_label() == "density"]
        x, y = fill.get_paths()[0].vertices.T
        return float(x[np.argmax(y)])

    assert abs(peak("tanh")) < 0.05
    # One of 256 logits N(0, 1) less the log-sum-exp of the others: ln 255 + 1/2 = 6.04 (seeded sample as oracle).
    z = np.random.default_rng(0).normal(size=(4000, 256))
    assert peak("softmax") == pytest.approx(np.mean(z[:, 0] - np.log(np.exp(z[:, 1:]).sum(axis=1))), abs=0.1)


# -- recorded runs --------------------------------------------------------------------------------------------


def test_the_profile_holds_the_layers_at_first_middle_and_last_step() -> None:
    recording = trained()
    axes = profile(recording, "activation_grad").axes[0]
    sites = recording.sites_of("activation_grad")
    layers = [i for i, site in enumerate(sites) if site.role == "pre-activation"]
    rms = recording.values("activation_grad", "rms")
    for step in (0, 2, 4):
        x, y = line(axes, f"step {step}")
        np.testing.assert_array_equal(x, [sites[i].depth for i in layers])
        np.testing.assert_allclose(y, np.log10(rms[step, layers]), atol=1e-12)
    lines = [artist for artist in axes.lines if artist.get_label().startswith("step ")]
    assert len({artist.get_marker() for artist in lines}) == 3
    assert [artist.is_dashed() for artist in lines] == [True, True, False]


def test_the_profile_crosses_and_names_the_first_sick_site_of_a_finding() -> None:
    recording = trained()
    found = diagnose(recording)
    figure = profile(recording, "activation_grad", findings=found)
    sick, rms = found[0].frontier, recording.values("activation_grad", "rms")
    label = f"first sick site: {sick.name} (vanishing-gradient)"
    assert f"F{label[1:]}, depth {sick.depth}." in words(figure)
    assert label in [text.get_text() for text in figure.axes[0].texts]
    x, y = line(figure.axes[0], label)
    place = recording.sites_of("activation_grad").index(sick)
    assert (x.tolist(), y.tolist()) == ([sick.depth], [pytest.approx(np.log10(rms[0, place]))])  # so from the start
    last = np.log10(rms[-1, -1])
    assert band(figure.axes[0]) == pytest.approx((last - 1, last + 1))


def test_a_sound_profile_is_not_marked_and_has_no_band_to_leave() -> None:
    recording = trained()
    for findings, said in ((Findings(()), "No fault found here: −"), (None, "−")):
        figure = profile(recording, "activation_grad", findings=findings)
        assert words(figure).splitlines().count("first sick site") == 0
        assert not [one for one in figure.axes[0].lines if one.get_label().startswith("first sick")]
        assert not [one for one in figure.axes[0].patches if one.get_label() == "healthy band"]
        assert any(text.get_text().startswith(said) for text in figure.texts)


def test_a_finding_that_begins_later_is_marked_on_the_line_of_its_step() -> None:
    recording = trained("he_normal", layers=3)
    site = recording.sites_of("activation")[2]
    found = Findings([Finding("collapsed-batch", "error", "", direction="forward", sites=(site.name,), steps=(2,))])
    axes = profile(recording, "activation", findings=found).axes[0]
    _, (height,) = line(axes, f"first sick site: {site.name} (collapsed-batch)")
    assert height == pytest.approx(np.log10(recording.values("activation", "rms")[2, 2]))
    heat = depth_step_heatmap(recording, "activation", findings=found)
    (step,), (row,) = line(heat.axes[0], f"first sick site: {site.name} (collapsed-batch)")
    assert (step, row) == (2, 2)
    assert f"First sick site: {site.name} (collapsed-batch), depth {site.depth}, since step 2." in words(heat)


def test_the_words_at_a_mark_cross_no_line_where_one_side_is_free() -> None:
    recording = trained("naive_normal", layers=16)
    for signal in ("activation", "activation_grad"):
        figure = profile(recording, signal, findings=diagnose(recording))
        figure.canvas.draw()  # type: ignore[no-untyped-call]
        axes = figure.axes[0]
        boxes = [t.get_window_extent() for t in axes.texts if t.get_text().startswith("first sick")]
        assert boxes or signal == "activation_grad"
        for box in boxes:
            for drawn_line in axes.lines:
                path = drawn_line.get_transform().transform_path(drawn_line.get_path())
                assert drawn_line.get_linestyle() == "None" or not path.intersects_bbox(box, filled=False)


def test_weights_do_not_flow_and_have_no_healthy_band() -> None:
    axes = profile(trained(), "weight").axes[0]
    assert not [artist for artist in axes.patches if artist.get_label() == "healthy band"]


def test_the_heat_map_holds_depth_by_step_and_hatches_what_is_not_finite() -> None:
    recording = trained("naive_normal", layers=16)
    figure = depth_step_heatmap(recording, "activation")
    axes = figure.axes[0]
    sick = recording.values("activation", "nonfinite_count") > 0
    assert sick.any()
    assert not sick.all()
    shape = axes.images[0].get_array().shape
    assert shape[:2] == (len(recording.sites_of("activation")), len(recording.steps))
    np.testing.assert_array_equal(line(axes, "non-finite")[0], recording.steps[sick.any(axis=1)])
    # The hatched rectangles cover exactly the cells that are not finite.
    (hatched,) = axes.collections
    covered = sum(np.prod(np.ptp(path.vertices[:4], axis=0)) for path in hatched.get_paths())
    assert covered == pytest.approx(sick.sum())
    row, column = np.argwhere(sick)[0]
    name = recording.sites_of("activation")[column].name
    assert f"The first NaN or infinity is at step {recording.steps[row]}, at {name} " in words(figure)


def test_the_update_ratio_is_that_of_numpy_on_weights_of_two_dimensions() -> None:
    recording = trained()
    figure = update_to_weight(recording)
    (lines,) = [artist for artist in figure.axes[0].collections if artist.get_label() == "ratio"]
    sites = [site for site in recording.sites_of("update") if len(site.shape) >= 2]
    assert len(lines.get_segments()) == len(sites) == 6
    change, size = recording.values("update", "rms"), recording.values("weight", "rms")
    for segment, site in zip(lines.get_segments(), sites, strict=True):
        i = recording.sites_of("update").index(site)
        j = [s.name for s in recording.sites_of("weight")].index(site.name)
        np.testing.assert_allclose(segment[:, 1], np.log10(change[:, i] / size[:, j]), atol=1e-12)
    assert len(figure.axes) == 2  # a colour bar for depth, not a legend of every layer
    assert "fastest\n10.weight\ndepth 11" in words(figure)


def many_sites(sites: int = 600, steps: int = 150) -> Recording:
    recording = Recording.create()
    name = "encoder.layers.{}.attention.self.output.dense.projection"
    ids = np.array(
        [
            recording.add_site(
                Site("activation", name.format(i), name.format(i), "Linear", role="pre-activation", depth=i)
            )
            for i in range(sites)
        ]
    )
    rng = np.random.default_rng(0)
    for t in range(steps):
        std = 10 ** (-0.02 * ids + 0.1 * rng.normal(size=sites))
        nothing, count = np.zeros(sites, dtype=np.int64), np.full(sites, 100)
        moments = Moments(
            count=count, mean=0 * std, std=std, min=-std, max=std, zeros=nothing, nans=nothing, infs=nothing
        )
        recording.append(StepRecord(t if t < 100 else 10 * t, False, {}, {"activation": (ids, moments)}))
    return recording


def test_a_run_of_hundreds_of_sites_with_long_names_stays_legible() -> None:
    recording = many_sites()
    for figure in (profile(recording, "activation"), depth_step_heatmap(recording, "activation")):
        assert_text_is_inside(figure)
        assert len(figure.axes[0].get_yticklabels()) <= 12
        assert "projection" not in " ".join(t.get_text() for t in figure.axes[0].get_yticklabels())


# -- all of them ----------------------------------------------------------------------------------------------

FIGURES: dict[str, Callable[[], Figure]] = {
    "signal_vs_depth": lambda: signal_vs_depth(cell(1.2, -1.0)),
    "unstable": lambda: signal_vs_depth(cell(-0.3, -0.627, stable=False)),
    "real": lambda: signal_vs_depth(small_sweep().cell("naive_normal", "softmax")),
    "overview": lambda: overview(small_sweep().cells),
    "one cell": lambda: overview((cell(0, 0),)),
    "profile": lambda: profile(trained(), "activation_grad"),
    "exploded profile": lambda: profile(trained("naive_normal", layers=16), "activation_grad"),
    "sick profile": lambda: profile(trained(), "activation_grad", findings=diagnose(trained())),
    "sick heat map": lambda: depth_step_heatmap(trained(), "activation_grad", findings=diagnose(trained())),
    "heat map": lambda: depth_step_heatmap(trained("naive_normal", layers=16), "activation"),
    "weights": lambda: depth_step_heatmap(trained(), "weight"),
    "update ratio": lambda: update_to_weight(trained()),
    **{name: functools.partial(activation_curve, name) for name in ("sigmoid", "softmax", "softsign", "sin")},
}


@functools.cache
def drawn(name: str) -> Figure:
    return FIGURES[name]()


def _out_of_view(axis: Axis) -> Iterator[Text]:
    """Labels of ticks beyond the axis' limits, which matplotlib makes but does not draw."""
    low, high = sorted(axis.get_view_interval())
    for tick, at in zip(axis.get_major_ticks(), axis.get_majorticklocs(), strict=True):
        if not low <= at <= high:
            yield from (tick.label1, tick.label2)


def assert_text_is_inside(figure: Figure) -> None:
    figure.canvas.draw()  # type: ignore[no-untyped-call]
    width, height = figure.canvas.get_width_height()
    hidden = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in _out_of_view(axis)}
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible() and text not in hidden:
            box = text.get_window_extent()
            inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
            assert inside, f"{text.get_text()!r} at {box} in {width} × {height}"


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_cut_off_at_the_edge(name: str) -> None:
    assert_text_is_inside(drawn(name))


@pytest.mark.parametrize("name", FIGURES)
def test_two_drawings_have_the_same_bytes_whatever_the_users_style(name: str, tmp_path: Path) -> None:
    save_png(drawn(name), tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 25, "axes.facecolor": "red", "savefig.dpi": 30, "lines.linewidth": 9}):
        save_png(FIGURES[name](), tmp_path / "b.png")
    a = (tmp_path / "a.png").read_bytes()
    assert a == (tmp_path / "b.png").read_bytes()
    assert a.startswith(b"\x89PNG")
    assert b"Software" not in a
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_drawing_leaves_the_users_style_alone() -> None:
    before = dict(matplotlib.rcParams)  # type: ignore[arg-type]
    signal_vs_depth(cell(0, 0))
    assert dict(matplotlib.rcParams) == before  # type: ignore[arg-type]


def test_the_diverging_map_darkens_evenly_to_both_sides_and_says_the_sign_by_hue() -> None:
    rgb = diverging()(np.arange(diverging().N))[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    lightness = 116 * np.cbrt(y) - 16  # CIE 1976 L*, independent of Oklab
    middle = len(rgb) // 2
    assert np.argmax(lightness) == middle
    for arm in (lightness[: middle + 1], lightness[middle:][::-1]):
        steps = np.diff(arm)
        assert (steps > 0).all()
        assert steps.max() < 1.6 * steps.mean()
    assert rgb[0, 2] > rgb[0, 0]  # blue shrinks
    assert rgb[-1, 0] > rgb[-1, 2]  # orange grows


def test_nothing_is_drawn_through_pyplot() -> None:
    code = (
        "from gradscope.report.figures import activation_curve; activation_curve('relu');"
        "import sys; assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
