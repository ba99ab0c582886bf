"""Moments, the statistics derived from them, and what is read off a profile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.recording import (
    STATISTICS,
    Expected,
    Moments,
    Profile,
    Site,
    SweepCell,
    SweepResult,
    decades_per_layer,
    flow_sentence,
    frontier,
    healthy_band,
    layer_ratio,
)
from gradscope.recording._moments import COLUMNS
from gradscope.recording._statistics import statistic

reproducibly = settings(deadline=None, derandomize=True)

SCALES = st.sampled_from([1e-200, 1e-37, 1.0, 1e37, 1e200])
ENTRIES = st.lists(
    st.floats(-1000, 1000, allow_subnormal=False) | st.sampled_from([0.0, np.nan, np.inf, -np.inf]), max_size=40
)


def assert_close(a: Moments, b: Moments) -> None:
    """Counts and ends exactly; mean and std to 1e-12 of the largest entry, the scale on which they are sums."""
    for name in ("count", "min", "max", "zeros", "nans", "infs", "subnormals"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    scale = float(np.nanmax([0.0, *np.abs(a.min), *np.abs(a.max)]))
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(a.std, b.std, rtol=1e-12, atol=1e-12 * scale)


def value(stat: str, x: object) -> float:
    return float(STATISTICS[stat].function(Moments.from_array(x))[0])  # type: ignore[arg-type]


# -- moments ---------------------------------------------------------------------------------------------------


@reproducibly
@given(ENTRIES, SCALES)
def test_moments_of_an_array_are_those_of_numpy_on_its_finite_entries(entries: list[float], scale: float) -> None:
    x = np.array(entries) * scale
    finite = x[np.isfinite(x)]
    m = Moments.from_array(x)
    assert (m.count[0], m.nans[0], m.infs[0]) == (len(x), np.isnan(x).sum(), np.isinf(x).sum())
    assert m.zeros[0] == (x == 0).sum()
    if finite.size:
        unit = finite / scale  # numpy's own squares would leave float64 at 1e200
        np.testing.assert_allclose(m.mean[0] / scale, unit.mean(), rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(m.std[0] / scale, unit.std(), rtol=1e-9, atol=1e-10)
        assert (m.min[0], m.max[0]) == (finite.min(), finite.max())
    else:
        assert np.isnan([m.mean[0], m.std[0], m.min[0], m.max[0]]).all()


@reproducibly
@given(ENTRIES, SCALES, st.lists(st.integers(0, 40), max_size=4))
def test_merging_is_invariant_to_how_a_tensor_is_split(entries: list[float], scale: float, cuts: list[int]) -> None:
    x = np.array(entries) * scale
    merged = Moments.empty(1)
    for piece in np.split(x, sorted(min(c, len(x)) for c in cuts)):
        merged = Moments.merge(merged, Moments.from_array(piece))
    assert_close(merged, Moments.from_array(x))


@reproducibly
@given(ENTRIES, ENTRIES, ENTRIES, SCALES)
def test_merging_is_associative_and_commutative(a: list[float], b: list[float], c: list[float], scale: float) -> None:
    x, y, z = (Moments.from_array(np.array(v) * scale) for v in (a, b, c))
    assert_close(Moments.merge(Moments.merge(x, y), z), Moments.merge(x, Moments.merge(y, z)))
    assert_close(Moments.merge(x, y), Moments.merge(y, x))


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-37, 1.0, 1e37, 1e200, 1e307])
def test_merged_std_keeps_every_digit_at_any_scale(scale: float) -> None:
    a, b = np.array([1.0, 2.0, 3.0]), np.array([10.0, -4.0])
    merged = Moments.merge(Moments.from_array(a * scale), Moments.from_array(b * scale))
    assert merged.std[0] / scale == pytest.approx(np.concatenate([a, b]).std(), rel=1e-13)
    assert merged.mean[0] / scale == pytest.approx(2.4, rel=1e-13)


def test_merging_the_largest_doubles_of_both_signs_does_not_overflow() -> None:
    big = np.finfo(np.float64).max
    merged = Moments.merge(Moments.from_array([big]), Moments.from_array([-big]))
    assert merged.mean[0] == 0
    assert merged.std[0] == big


def test_std_far_from_zero_is_exact_to_1e_10_after_many_merges() -> None:
    # mean = 1e6·std: each mean is right to 1e-16 of itself, hence the std to 1e-10
    x = 1e6 + np.random.default_rng(0).normal(size=(50, 64))
    merged = Moments.empty(1)
    for row in x:
        merged = Moments.merge(merged, Moments.from_array(row))
    assert merged.std[0] == pytest.approx(np.float64(x.astype(np.longdouble).std()), rel=1e-10)


def test_merging_a_constant_with_itself_has_no_spread() -> None:
    part = Moments.from_array(np.full(7, 0.1))
    merged = Moments.merge(part, Moments.merge(part, part))
    assert (merged.mean[0], merged.std[0]) == (0.1, 0.0)


def test_a_row_of_nonfinite_entries_merges_as_counts_only() -> None:
    merged = Moments.merge(Moments.from_array([np.nan, np.inf]), Moments.from_array([2.0, 4.0]))
    assert (merged.mean[0], merged.std[0], merged.min[0], merged.max[0]) == (3.0, 1.0, 2.0, 4.0)
    assert (merged.count[0], merged.nans[0], merged.infs[0]) == (4, 1, 1)


def test_rows_merge_side_by_side_and_concat_keeps_their_order() -> None:
    a = Moments.concat([Moments.from_array([1.0]), Moments.from_array([]), Moments.from_array([5.0, 7.0])])
    b = Moments.concat([Moments.from_array([3.0]), Moments.from_array([9.0]), Moments.from_array([])])
    np.testing.assert_array_equal(Moments.merge(a, b).mean, [2.0, 9.0, 6.0])
    np.testing.assert_array_equal(a.take([2, 0]).mean, [6.0, 1.0])
    assert len(Moments.concat([])) == 0
    with pytest.raises(ValueError, match="a has 3 rows and b has 1"):
        Moments.merge(a, Moments.from_array([1.0]))


def test_columns_of_different_length_and_complex_numbers_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="one length"):
        Moments(*[np.zeros(2)] * 7, np.zeros(3))
    with pytest.raises(TypeError, match="complex128"):
        Moments.from_array([1j])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_subnormals_are_those_of_the_array_s_own_type(dtype: type[np.floating]) -> None:
    tiny = np.finfo(dtype).smallest_normal
    x = np.array([0.0, -0.0, tiny, -tiny, tiny / 2, -tiny / 4, np.finfo(dtype).smallest_subnormal, 1, np.nan, np.inf])
    assert Moments.from_array(x.astype(dtype)).subnormals[0] == 3
    assert Moments.from_array(x.astype(np.float64)).subnormals[0] == (3 if dtype is np.float64 else 0)
    assert STATISTICS["subnormal_fraction"].function(Moments.from_array(x.astype(dtype)))[0] == 0.3


def test_integers_have_no_subnormals() -> None:
    assert Moments.from_array(np.array([0, 1, 3])).subnormals.tolist() == [0]
    assert Moments.from_array([True]).subnormals.tolist() == [0]


def test_subnormals_that_nobody_counted_are_no_0_and_stay_so_in_a_merge() -> None:
    one = Moments.from_array(np.array([1.0, 5e-324]))
    uncounted = Moments(*(getattr(one, name) for name in COLUMNS if name != "subnormals"))
    nothing = Moments.empty(1)
    assert np.isnan(STATISTICS["subnormal_fraction"].function(uncounted)).all()
    for a, b, subnormals in (
        (one, one, 2),
        (one, nothing, 1),
        (uncounted, one, -1),
        (one, uncounted, -1),
        (uncounted, nothing, -1),
        (nothing, nothing, 0),
    ):
        assert Moments.merge(a, b).subnormals.tolist() == [subnormals]
    assert Moments.concat([one, uncounted, one]).take([1, 0]).subnormals.tolist() == [-1, 1]


# -- statistics ------------------------------------------------------------------------------------------------


def test_the_registry_holds_the_documented_statistics_each_with_its_unit() -> None:
    units = {name: s.unit for name, s in STATISTICS.items()}
    assert units == {
        "count": "entries",
        "mean": "value",
        "var": "value²",
        "std": "value",
        "rms": "value",
        "min": "value",
        "max": "value",
        "abs_max": "value",
        "zero_fraction": "fraction in [0, 1]",
        "subnormal_fraction": "fraction in [0, 1]",
        "nonfinite_count": "entries",
    }


def test_a_new_statistic_is_one_registered_function() -> None:
    @statistic("value")
    def spread(m: Moments) -> np.ndarray:
        return m.max - m.min

    try:
        assert value("spread", [1.0, 4.0]) == 3.0
    finally:
        del STATISTICS["spread"]


@reproducibly
@given(ENTRIES)
def test_statistics_are_those_of_numpy(entries: list[float]) -> None:
    x = np.array(entries)
    finite = x[np.isfinite(x)]
    assert value("count", x) == len(x)
    assert value("nonfinite_count", x) == len(x) - len(finite)
    if len(x):
        assert value("zero_fraction", x) == pytest.approx((x == 0).mean())
    else:
        assert np.isnan(value("zero_fraction", x))
    if finite.size:
        scale = np.abs(finite).max()
        unit = finite / (scale or 1.0)  # numpy's own squares underflow
        assert value("rms", x) == pytest.approx(np.sqrt((unit**2).mean()) * scale, rel=1e-12)
        assert value("var", x) == pytest.approx(unit.var() * scale**2, rel=1e-9, abs=1e-13 * scale**2)
        assert value("abs_max", x) == scale


@pytest.mark.parametrize("scale", [1e-300, 1e-37, 1e37, 1e300])
def test_rms_is_right_where_squares_leave_float64_or_float32(scale: float) -> None:
    assert value("rms", [3 * scale, 4 * scale]) == pytest.approx(np.sqrt(12.5) * scale, rel=1e-14)


# -- profiles --------------------------------------------------------------------------------------------------


@reproducibly
@given(st.floats(-0.9, 0.9), st.floats(-3, 3), st.integers(2, 60), st.booleans())
def test_a_geometric_profile_has_its_exponent_as_slope_in_the_direction_of_flow(
    slope: float, start: float, layers: int, backward: bool
) -> None:
    passed = np.arange(layers)
    rms = 10.0 ** (start + slope * passed)
    alive = rms > 1e-36
    expected = slope if alive.sum() >= 2 else np.nan
    direction = "backward" if backward else "forward"
    got = decades_per_layer(rms[::-1] if backward else rms, direction)
    assert got == pytest.approx(expected, abs=1e-12, nan_ok=True)


@reproducibly
@given(st.sets(st.integers(0, 19), max_size=18), st.sampled_from([0.0, np.inf, np.nan, 1e-37]))
def test_what_is_not_representable_is_passed_over_and_still_counts_as_a_layer(dead: set[int], mark: float) -> None:
    rms = 10.0 ** (-0.3 * np.arange(20))
    rms[sorted(dead)] = mark
    assert decades_per_layer(rms) == pytest.approx(-0.3, abs=1e-12)


def test_a_slope_needs_two_layers() -> None:
    assert np.isnan(decades_per_layer([1.0]))
    assert np.isnan(decades_per_layer([]))
    assert np.isnan(decades_per_layer([1.0, 0.0, np.inf]))


def test_an_unknown_direction_and_a_table_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"direction='backwards' is unknown \(did you mean 'backward'\?\)"):
        decades_per_layer([1.0], "backwards")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one-dimensional"):
        decades_per_layer([[1.0, 2.0]])


def test_layer_ratio_is_after_over_before_as_the_signal_passes() -> None:
    np.testing.assert_allclose(layer_ratio([1.0, 2.0, 8.0]), [2.0, 4.0])
    np.testing.assert_allclose(layer_ratio([1.0, 2.0, 8.0], "backward"), [0.25, 0.5])
    np.testing.assert_array_equal(layer_ratio([0.0, 2.0, np.inf]), [np.nan, np.nan])


def test_the_healthy_band_is_one_decade_around_where_the_signal_enters() -> None:
    assert healthy_band([2.0, 5.0]) == (0.2, 20.0)
    assert healthy_band([2.0, 5.0], "backward") == (0.5, 50.0)
    assert np.isnan(healthy_band([0.0, 5.0])).all()
    assert np.isnan(healthy_band([])).all()


def profile(signal: str, values: list[float], roles: tuple[str, ...] = ()) -> Profile:
    roles = roles or ("pre-activation",) * len(values)
    sites = tuple(
        Site(signal, str(i), str(i), "Linear", role=r, depth=i + 1)  # type: ignore[arg-type]
        for i, r in enumerate(roles)
    )
    depth = np.arange(1, len(values) + 1)
    return Profile(signal, "rms", 0, sites, depth, np.array(values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("signal", "values", "name"),
    [
        ("activation", [1.0, 0.5, 0.05, 0.5], "2"),
        ("activation", [1.0, 11.0, 0.05], "1"),
        ("activation", [1.0, 9.0, 0.11], None),
        ("activation", [1.0, np.nan, 1.0], "1"),  # recorded, and nothing finite in it
        ("activation", [0.0, 1.0], "0"),
        ("activation_grad", [1e-3, 0.05, 0.5, 1.0], "1"),
        ("activation_grad", [0.2, 0.5, 1.0], None),
        ("activation_grad", [1.0, 1.0, np.inf], "2"),
        ("activation", [], None),
    ],
)
def test_the_frontier_is_the_first_site_outside_the_band_in_the_direction_of_flow(
    signal: str, values: list[float], name: str | None
) -> None:
    found = frontier(profile(signal, values))
    assert (found and found.name) == name


def test_a_profile_takes_its_slope_over_pre_activations_where_it_has_other_sites_too() -> None:
    roles = ("input", "pre-activation", "activation", "pre-activation", "activation")
    assert profile("activation", [1.0, 1.0, 0.5, 0.1, 0.05], roles).decades_per_layer == pytest.approx(-1.0)
    assert profile("activation_grad", [0.01, 0.1, 1.0]).decades_per_layer == pytest.approx(-1.0)


# -- in words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "direction", "sentence"),
    [
        (np.geomspace(10**-30.67, 1, 50), "backward", "gradient shrinks 4.7×10³⁰ over 50 layers"),
        (np.geomspace(1, 1.02, 50), "forward", "signal keeps its size (×1.02 over 50 layers)"),
        (np.geomspace(1, 0.51, 50), "forward", "signal keeps its size (×0.51 over 50 layers)"),
        (np.geomspace(1, 12, 10), "forward", "signal grows 12-fold over 10 layers"),
        (np.geomspace(1, 9.96e9, 10), "forward", "signal grows 1×10¹⁰ over 10 layers"),
        ([*[0.0] * 34, *[1.0] * 16], "backward", "gradient is gone (0 in float32) from layer 34 down"),
        ([1e-38, 1e-30, 1.0], "backward", "gradient is gone (under 10⁻³⁶) from layer 1 down"),
        ([1.0, 1e30, np.inf], "forward", "signal overflows float32 from layer 3 up"),
        ([np.nan, 1.0], "forward", "signal overflows float32 where it enters"),
        ([1.0], "forward", "signal keeps its size (×1 over 1 layer)"),
        ([], "forward", "signal was not measured"),
    ],
)
def test_a_profile_is_said_in_one_sentence(values: list[float], direction: str, sentence: str) -> None:
    assert flow_sentence(values, direction) == sentence  # type: ignore[arg-type]


# -- a sweep's cell --------------------------------------------------------------------------------------------


def cell(pre: list[list[float]], pre_grad: list[list[float]], expected: Expected | None = None) -> SweepCell:
    forward, backward = np.array(pre), np.array(pre_grad)
    act = np.c_[forward[:, :-1], np.full(len(forward), np.nan)]
    return SweepCell("he_normal", "relu", "mlp", forward.shape[1], 8, forward, act, backward, act, expected=expected)


def test_a_cell_takes_the_median_of_its_seeds_slopes() -> None:
    seeds = [list(10.0 ** (s * np.arange(5))) for s in (-0.5, -0.1, 0.2)]
    c = cell(seeds, [list(reversed(s)) for s in seeds])
    assert c.forward_decades == pytest.approx(-0.1)
    assert c.backward_decades == pytest.approx(-0.1)
    assert np.isnan(cell([[0.0, 0.0]], [[0.0, 1.0]]).forward_decades)


def test_a_cell_says_how_many_layers_live_in_every_seed_and_where_float32_dies() -> None:
    forward = [[1.0, 1e20, np.inf, np.inf], [1.0, 1e19, 1e38, np.nan]]
    backward = [[0.0, 1e-37, 1e-20, 1.0], [0.0, 1e-30, 1e-20, 1.0]]
    dying, living = cell(forward, backward), cell([[1.0] * 4] * 2, backward)
    ahead, back = dying.layers_alive("forward"), living.layers_alive("backward")
    assert (ahead.alive, ahead.layers, ahead.dies_at, ahead.passed) == (2, 4, 3, 3)
    assert (back.alive, back.layers, back.dies_at, back.passed) == (2, 4, 2, 3)
    assert dying.decades_lost("forward") == pytest.approx(-np.log10((1e20 + 1e19) / 2))
    assert living.decades_lost("backward") == pytest.approx(20.0)
    assert dying.sentence("forward") == "signal overflows float32 from layer 3 up"
    assert living.sentence("backward") == "gradient is gone (under 10⁻³⁶) from layer 2 down"
    # Where the forward signal died the gradient is no measurement: only the last layer, where it enters, is left.
    assert dying.layers_alive("backward").alive == 1
    assert dying.sentence("backward") == "no gradient: the forward signal overflows float32 at layer 3"


def test_a_cell_where_all_live_says_so() -> None:
    c = cell([[1.0, 1.0, 0.5]], [[0.001, 0.1, 1.0]])
    assert c.layers_alive("forward").dies_at is None
    assert c.decades_lost("backward") == pytest.approx(3.0)
    assert np.isnan(cell([[0.0, 1.0]], [[1.0, 1.0]]).decades_lost("forward"))


def test_a_sweep_comes_back_exactly_from_strict_json() -> None:
    import json

    row = np.array([0.0, -1 / 3])
    expected = Expected(row, row, row, row, row, row, "mean field", True, np.array([True, False]))
    measured = [[1 / 3, np.inf], [np.nan, 5e-324]]
    sweep = SweepResult({"depth": [2], "rate": np.float32(0.5)}, (cell(measured, measured, expected),), {"torch": "2"})
    sweep = SweepResult(sweep.config, (*sweep.cells, cell([[1.0, 2.0]], [[3.0, 4.0]])), sweep.facts)
    text = json.dumps(sweep.to_json(), allow_nan=False)
    again = SweepResult.from_json(text)
    assert again.config == {"depth": [2], "rate": 0.5}
    assert again.facts == {"torch": "2"}
    assert again.cells[1].expected is None
    for name in ("pre", "act", "pre_grad", "act_grad"):
        np.testing.assert_array_equal(getattr(again.cells[0], name), getattr(sweep.cells[0], name))
    assert again.cells[0].expected is not None
    np.testing.assert_array_equal(again.cells[0].expected.valid, [True, False])
    np.testing.assert_array_equal(again.cells[0].expected.pre, row)
    assert json.loads(text)["cells"][0]["forward"]["sentence"] == "signal overflows float32 where it enters"
    assert SweepResult.from_json(json.loads(text)).to_json() == sweep.to_json()


@pytest.mark.parametrize("data", [{}, [], {"kind": "sweep", "schema": 2}, '{"kind": "audit"}'])
def test_json_that_is_no_sweep_is_refused_in_one_sentence(data: object) -> None:
    with pytest.raises(ValueError, match=r"no sweep|schema=2 of the sweep is unknown"):
        SweepResult.from_json(data)  # type: ignore[arg-type]
