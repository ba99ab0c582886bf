"""Histograms by the power of two, and what they say about a type of reduced precision, against torch's own casts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gradscope.hooks._histogram import log2_histogram
from gradscope.recording import HISTOGRAM_EDGES, STATISTICS, Moments, PrecisionShare, Recording, Site, StepRecord
from gradscope.recording._source import Source
from gradscope.recording._writing import Writer

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
FLOATING = [torch.float64, torch.float32, *DTYPES.values()]
LARGEST = {name: torch.finfo(dtype).max for name, dtype in DTYPES.items()}


def ids(value: object) -> str:
    return str(value).removeprefix("torch.")


def over_many_scales(dtype: torch.dtype, entries: int = 5000, seed: int = 0) -> Tensor:
    """Numbers of either sign over all powers of two that float32 has, as the dtype holds them, and the special ones."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(entries, generator=generator, dtype=torch.float64) * 279 - 151  # 2^-151 … 2^128
    sign = torch.randint(0, 2, (entries,), generator=generator) * 2 - 1
    special = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf], dtype=torch.float64)
    return torch.cat([sign * 2.0**size, special]).float().to(dtype)


def oracle(x: Tensor) -> np.ndarray:
    """Counts by comparison of the sizes with the edges, both exact in float64."""
    size = np.abs(x.double().numpy().ravel())
    size = size[np.isfinite(size) & (size > 0)]
    edges = np.ldexp(1.0, HISTOGRAM_EDGES.astype(int))
    inside = np.clip(np.searchsorted(edges, size, side="right") - 1, 0, 63)
    return np.bincount(inside, minlength=64)


def recorded(*tensors: Tensor, own: str = "float32", moments: Moments | None = None) -> Recording:
    """A recording of one step of these activations, whose sites have this dtype of their own."""
    r = Recording.create()
    ids = np.array([r.add_site(Site("activation", str(i), str(i), "Linear", dtype=own)) for i in range(len(tensors))])
    rows = moments or Moments.concat([Moments.from_array(x.double().numpy()) for x in tensors])
    counts = np.stack([log2_histogram(x).numpy() for x in tensors])
    r.append(StepRecord(0, moments={"activation": (ids, rows)}, histograms={"activation": (ids, counts)}))
    return r


def share(x: Tensor, dtype: str, **more: object) -> PrecisionShare:
    (found,) = recorded(x, **more).precision("activation", dtype)  # type: ignore[arg-type]
    return found


# -- histograms ------------------------------------------------------------------------------------------------


def test_64_bins_have_octaves_in_the_middle_and_an_edge_wherever_a_type_loses_entries() -> None:
    assert HISTOGRAM_EDGES.shape == (65,)
    assert (np.diff(HISTOGRAM_EDGES) > 0).all()
    middle = HISTOGRAM_EDGES[(HISTOGRAM_EDGES >= -38) & (HISTOGRAM_EDGES <= 17)]
    np.testing.assert_array_equal(middle, np.arange(-38.0, 18.0))
    for dtype in DTYPES.values():
        info = torch.finfo(dtype)
        assert np.log2(info.smallest_normal) in HISTOGRAM_EDGES
        assert np.log2(info.smallest_normal * info.eps / 2) in HISTOGRAM_EDGES  # half the smallest number
    assert set(HISTOGRAM_EDGES[[0, 2, -1]]) == {-149.0, np.log2(torch.finfo(torch.float32).smallest_normal), 128.0}


@pytest.mark.parametrize("dtype", FLOATING, ids=ids)
def test_a_histogram_counts_every_entry_of_every_type_where_its_size_lies(dtype: torch.dtype) -> None:
    x = over_many_scales(dtype)
    counts = log2_histogram(x)
    assert (counts.dtype, counts.shape, counts.device) == (torch.int64, (64,), x.device)
    np.testing.assert_array_equal(counts.numpy(), oracle(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=ids)
def test_a_power_of_two_counts_in_the_bin_that_begins_with_it_subnormal_or_not(dtype: torch.dtype) -> None:
    lowest = {torch.float64: -1074, torch.float32: -149, torch.bfloat16: -133}[dtype]
    for log2 in range(lowest, 128):
        x = torch.tensor([-(2.0**log2)], dtype=torch.float64).to(dtype)
        counts = log2_histogram(x).numpy()
        at = max(int(np.searchsorted(HISTOGRAM_EDGES, log2, side="right")) - 1, 0)
        assert counts[at] == counts.sum() == 1
    (below,) = log2_histogram(torch.nextafter(torch.tensor([1.0]), torch.tensor([0.0]))).nonzero()
    assert HISTOGRAM_EDGES[int(below) + 1] == 0.0


def test_what_lies_beyond_an_end_counts_at_that_end_and_zeros_nans_and_infs_nowhere() -> None:
    x = torch.tensor([5e-324, 1e-300, 1e300, -1e308, 0.0, -0.0, torch.nan, torch.inf], dtype=torch.float64)
    counts = log2_histogram(x)
    assert (int(counts[0]), int(counts[63]), int(counts.sum())) == (2, 2, 4)


def test_any_shape_and_any_strides_count_alike_also_none_and_under_deterministic_algorithms() -> None:
    x = over_many_scales(torch.float32, entries=1195).reshape(30, 40)
    want = oracle(x)
    torch.use_deterministic_algorithms(True)
    try:
        for same in (x, x.t(), x.reshape(2, 3, 200).permute(2, 0, 1), x.clone().requires_grad_()):
            np.testing.assert_array_equal(log2_histogram(same).numpy(), want)
    finally:
        torch.use_deterministic_algorithms(False)
    assert int(log2_histogram(x[:, ::2]).sum() + log2_histogram(x[:, 1::2]).sum()) == want.sum()
    assert int(log2_histogram(torch.empty(0, 3)).sum()) == 0
    assert int(log2_histogram(torch.tensor(2.0)).sum()) == 1
    assert int(log2_histogram(torch.ones(1).expand(7)).sum()) == 7


def test_a_histogram_made_in_inference_mode_serves_the_training_after_it() -> None:
    with torch.inference_mode():
        inside = log2_histogram(torch.ones(3))
    assert int(inside.sum()) == int(log2_histogram(torch.ones(3, requires_grad=True)).sum()) == 3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", FLOATING, ids=ids)
def test_a_histogram_on_a_gpu_is_that_on_the_cpu_and_waits_for_nothing(dtype: torch.dtype, deterministic: bool) -> None:
    x = over_many_scales(dtype)
    on_gpu = x.cuda()
    torch.use_deterministic_algorithms(deterministic)
    torch.cuda.set_sync_debug_mode("error")
    try:
        counts = log2_histogram(on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)
    np.testing.assert_array_equal(counts.cpu().numpy(), oracle(x))


# -- reduced precision -----------------------------------------------------------------------------------------


def without_ties(x: Tensor, dtype: str) -> Tensor:
    """The same, less the entries of exactly half the type's smallest number, which become 0 and are not counted."""
    info = torch.finfo(DTYPES[dtype])
    return x[x.double().abs() != info.smallest_normal * info.eps / 2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, -30.0, -20.0, -10.0, 14.0, 30.0, -125.0])
def test_flushed_and_subnormal_entries_are_those_of_torch_s_cast(dtype: str, scale: float) -> None:
    x = torch.cat([over_many_scales(torch.float32), torch.randn(3000, generator=torch.Generator().manual_seed(1))])
    x = without_ties(x * 2.0**scale, dtype)
    cast, info = x.to(DTYPES[dtype]).double(), torch.finfo(DTYPES[dtype])
    found = share(x, dtype)
    assert found.flushed == int(((cast == 0) & (x != 0)).sum()) / len(x)
    assert found.zero == int((x == 0).sum()) / len(x)
    below = (cast != 0) & (x.double().abs() < info.smallest_normal)
    assert found.subnormal == int(below.sum()) / len(x)
    # Of these, a cast leaves subnormal all but those that round up to the smallest normal number.
    subnormal = (cast != 0) & (cast.abs() < info.smallest_normal)
    assert torch.equal(subnormal, below & (cast.abs() != info.smallest_normal))


@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_lies_between_its_bounds_which_meet_where_no_entry_is_in_the_bin_of_the_limit(dtype: str) -> None:
    generator, met = torch.Generator().manual_seed(0), 0
    for scale in np.arange(-6, 8) + float(np.log2(LARGEST[dtype])):
        x = (torch.randn(300, generator=generator, dtype=torch.float64) * 2.0**scale).float()
        finite = x.isfinite()
        # torch's cast says NaN or inf, or (float8_e4m3fn, since 2.12) saturates: then all beyond 464 = 448 + 32/2
        cast = x.to(DTYPES[dtype]).double()
        over = ~cast.isfinite() | (x.abs() > 464) if dtype == "float8_e4m3fn" else ~cast.isfinite()
        count, found = int((over & finite).sum()) / len(x), share(x, dtype)
        assert found.overflowed <= count <= found.overflowed_at_most
        met += found.overflowed == found.overflowed_at_most
    assert met >= 4


@pytest.mark.parametrize(
    ("dtype", "limit"), [("float16", 65520.0), ("float8_e4m3fn", 464.5), ("float8_e5m2", 61440.0), ("bfloat16", 3.4e38)]
)
def test_the_extremes_tell_what_the_bin_of_the_limit_leaves_in_doubt(dtype: str, limit: float) -> None:
    below = torch.tensor([1.0, 0.99 * limit, -0.99 * limit])
    over = torch.tensor([1.0, 0.99 * limit, -limit])
    both = torch.tensor([limit, 0.99 * limit, -limit])
    bounds = [(s.overflowed, s.overflowed_at_most) for s in (share(x, dtype) for x in (below, over, both))]
    assert bounds == [(0.0, 0.0), (1 / 3, 2 / 3), (2 / 3, 1.0)]


def test_extremes_of_another_scale_than_the_histogram_s_resolve_nothing() -> None:
    x = torch.tensor([60000.0, 50000.0, 1.0])  # as a loss scale leaves them: divided out of the moments only
    unscaled = Moments.from_array(x.double().numpy() / 2**16)
    found = share(x, "float16", moments=unscaled)
    assert (found.overflowed, found.overflowed_at_most) == (0.0, 2 / 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_site_of_that_very_type_holds_is_neither_flushed_nor_overflowed(dtype: str) -> None:
    x = over_many_scales(DTYPES[dtype])
    found = share(x, dtype, own=dtype)
    assert (found.flushed, found.overflowed, found.overflowed_at_most) == (0.0, 0.0, 0.0)
    subnormal = (x.double() != 0) & (x.double().abs() < torch.finfo(DTYPES[dtype]).smallest_normal)
    assert found.subnormal == found.subnormal_already == int(subnormal.sum()) / len(x) > 0


def test_entries_that_are_subnormal_already_are_those_of_the_site_s_own_type() -> None:
    x = torch.tensor([1e-40, 1e-39, 1.0, 0.0])
    assert share(x, "float16").subnormal_already == 0.5
    assert share(x[1:], "float16", own="float64").subnormal_already == 0.0
    assert np.isnan(share(x.double() * 1e-10, "float16", own="float64").subnormal_already)
    assert np.isnan(share(x, "float16", own="float8_e8m0fnu").subnormal_already)


def test_a_tensor_without_entries_or_with_none_finite_has_no_share_to_lose() -> None:
    assert np.isnan(share(torch.empty(0), "float16").flushed)
    found = share(torch.tensor([torch.nan, torch.inf]), "float16")
    assert (found.flushed, found.subnormal, found.overflowed_at_most) == (0.0, 0.0, 0.0)


def test_shares_come_in_order_of_execution_for_the_last_step_that_has_histograms(tmp_path: Path) -> None:
    r = Recording.create(tmp_path / "r")
    depths = [2, 1]
    ids = np.array([r.add_site(Site("weight", f"d{d}", "m", "Linear", depth=d)) for d in depths])
    for step in range(3):
        x = [torch.full((4,), 2.0 ** -(20 * d + step)) for d in depths]
        moments = {"weight": (ids, Moments.concat([Moments.from_array(t.numpy()) for t in x]))}
        counts = {"weight": (ids[::-1], np.stack([log2_histogram(t).numpy() for t in x[::-1]]))}
        r.append(StepRecord(step, moments=moments, histograms=counts if step < 2 else {}))
    r.close()
    for q in (r, Recording.load(tmp_path / "r")):
        assert [(s.site.name, s.flushed) for s in q.precision("weight", "float16")] == [("d1", 0.0), ("d2", 1.0)]
        assert q.precision("weight", "torch.float16", step=0) != q.precision("weight", "bfloat16", step=0)
        with pytest.raises(ValueError, match="weight has no histograms at step 2: record with GradScope"):
            q.precision("weight", "float16", step=2)


def test_a_wrong_name_or_index_is_answered_with_what_is_allowed() -> None:
    r = recorded(torch.ones(3))
    with pytest.raises(ValueError, match=r"dtype='float61' is unknown \(did you mean 'float16'\?\); allowed: float16"):
        r.precision("activation", "float61")
    with pytest.raises(ValueError, match="did you mean 'activation'"):
        r.precision("activations", "float16")  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="step=3 is out of range: 1 steps are recorded"):
        r.precision("activation", "float16", step=3)
    with pytest.raises(ValueError, match="update has no histograms at step 0"):
        r.precision("update", "float16")


def test_a_file_with_other_edges_is_read_and_says_that_they_are_too_coarse(tmp_path: Path) -> None:
    coarse = np.linspace(-127.0, 129.0, 65)
    writer = Writer(None, {}, edges=coarse.tolist())
    r = Recording(Source(writer.contents, None, writer))
    i = np.array([r.add_site(Site("weight", "w", "m", "Linear"))])
    counts = np.arange(64)[None]
    r.append(StepRecord(0, moments={"weight": (i, Moments.from_array([1.0]))}, histograms={"weight": (i, counts)}))
    r.save(tmp_path / "r")
    for q in (r, Recording.load(tmp_path / "r")):
        edges, found = q.histogram("weight", "w")
        np.testing.assert_array_equal(edges, coarse)
        np.testing.assert_array_equal(found, counts[0])
        with pytest.raises(ValueError, match=r"no edges at 2\^-25 and 2\^-14, so they cannot tell what float16 loses"):
            q.precision("weight", "float16")


# -- sampled ---------------------------------------------------------------------------------------------------

OF = ["mean", "std", "zeros", "subnormals", "histogram"]


def sampled(x: Tensor, part: Tensor, **more: object) -> Recording:
    """A recording of one step of x, whose histogram and zeros are those of a part of it."""
    whole, some = (Moments.from_array(t.double().numpy()) for t in (x, part))
    zeros = np.round(some.zeros / some.count * whole.count).astype(np.int64)
    r = Recording.create(facts={"sampled": {"entries": len(part), "of": OF}})
    i = np.array([r.add_site(Site("activation", "0", "0", "Linear", **more))])  # type: ignore[arg-type]
    rows = Moments(whole.count, some.mean, some.std, whole.min, whole.max, zeros, whole.nans, whole.infs)
    counts = log2_histogram(part).numpy()[None]
    r.append(StepRecord(0, moments={"activation": (i, rows)}, histograms={"activation": (i, counts)}))
    return r


def test_shares_of_a_sample_are_those_of_the_sample_and_not_of_the_tensor_s_entries() -> None:
    part = over_many_scales(torch.float32, entries=995)  # with its two zeros and three that are not finite: 1,000
    x = part.repeat(64)
    for dtype in DTYPES:
        whole, estimate = share(x, dtype), sampled(x, part).precision("activation", dtype)[0]
        for name in ("zero", "flushed", "subnormal", "overflowed", "overflowed_at_most", "subnormal_already"):
            assert getattr(estimate, name) == pytest.approx(getattr(whole, name), rel=1e-12, nan_ok=True), name


def test_a_tensor_that_is_small_enough_to_be_read_whole_has_exact_shares_in_a_sampled_recording() -> None:
    x = over_many_scales(torch.float32, entries=500)
    assert sampled(x, x).precision("activation", "float16") == recorded(x).precision("activation", "float16")


def test_the_extremes_tell_of_an_overflow_that_a_sample_missed_and_of_one_that_is_none() -> None:
    inside = torch.full((1000,), 40_000.0)
    missed = torch.cat([inside, torch.tensor([1e6, -1e6])])
    (found,) = sampled(missed, inside[:100]).precision("activation", "float16")
    assert found.overflowed == 2 / 1002
    assert found.overflowed_at_most == 1.0  # all of the sample are in the limit's bin
    (found,) = sampled(inside, inside[:100]).precision("activation", "float16")
    assert (found.overflowed, found.overflowed_at_most) == (0.0, 0.0)


def test_a_recording_says_what_of_it_is_sampled_and_which_statistics_that_makes_estimates() -> None:
    r = sampled(torch.ones(100), torch.ones(10))
    assert r.sampling is not None
    assert (r.sampling.entries, r.sampling.of) == (10, tuple(OF))
    estimates = {stat for stat in STATISTICS if r.is_sampled(stat)}
    assert estimates == {"mean", "var", "std", "rms", "zero_fraction", "subnormal_fraction"}
    assert r.is_sampled("histogram")
    (line,) = [line for line in str(r).splitlines() if "sampled" in line]
    assert line.split(maxsplit=1) == ["sampled", f"{r.sampling.sentence}"]
    assert "mean, std, zeros, subnormals, histogram of tensors over 10 entries are estimates" in line
    assert "estimates from about that many" in r._repr_html_()
    with pytest.raises(ValueError, match="did you mean 'rms'"):
        r.is_sampled("rsm")
    whole = recorded(torch.ones(100))
    assert whole.sampling is None
    assert not any(whole.is_sampled(stat) for stat in (*STATISTICS, "histogram"))
    assert "sampled" not in str(whole)
