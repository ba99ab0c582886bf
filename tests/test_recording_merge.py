"""Moments that merge exactly, and the recordings of a run's ranks merged to that of the global batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradscope.cli import main
from gradscope.recording import (
    HISTOGRAM_EDGES,
    Moments,
    Recording,
    RecordingError,
    Site,
    StepRecord,
    merge_recordings,
)
from gradscope.recording._source import Source
from gradscope.recording._writing import Writer

reproducibly = settings(deadline=None, derandomize=True)
Array = NDArray[np.float64]
EXACT = ("count", "min", "max", "zeros", "nans", "infs", "subnormals")


def assert_merged(got: Moments, whole: Moments, merges: int) -> None:
    """Counts and ends exactly; mean and std to what rounding can do in so many merges."""
    for name in EXACT:
        np.testing.assert_array_equal(getattr(got, name), getattr(whole, name))
    # Of the largest entry a: a mean and a difference of means are right to 2·eps·a, each merge rounds the mean
    # thrice and the std five times more, and a subnormal is right to its last digit only.
    size = np.fmax(np.abs(whole.min), np.abs(whole.max))
    for name in ("mean", "std"):
        a, b = getattr(got, name), getattr(whole, name)
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        with np.errstate(invalid="ignore"):
            allowed = 8 * (merges + 1) * (2.0**-52 * size + 2.0**-1074)
            assert (np.isnan(a) | (np.abs(a - b) <= allowed)).all(), (name, a, b)


# -- moments ---------------------------------------------------------------------------------------------------

# Every size that float64 has side by side, which a common scale does not give: subnormals, the largest, both zeros.
# Half the range, so that the difference of two numbers is one too.
ANY_SIZE = st.builds(
    lambda sign, mantissa, exponent: sign * float(np.ldexp(mantissa, exponent)),
    st.sampled_from([-1.0, 1.0]),
    st.floats(0.5, 1.0, exclude_max=True),
    st.integers(-1074, 1023),
)
SPECIAL = st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, 2.0**-1022])
ENTRIES = st.lists(ANY_SIZE | SPECIAL | st.floats(-1.0, 1.0), max_size=30)


@st.composite
def parts(draw: st.DrawFn) -> list[Array]:
    x = np.array(draw(ENTRIES), dtype=np.float64)
    cuts = draw(st.lists(st.integers(0, len(x)), max_size=6))
    return np.split(x, sorted(cuts))


@reproducibly
@given(parts(), st.randoms(use_true_random=False))
def test_any_split_merged_in_any_order_gives_the_moments_of_the_whole(
    pieces: list[Array],
    random: object,
) -> None:
    heap = [Moments.from_array(piece) for piece in pieces]
    while len(heap) > 1:  # a random tree of merges: associative and commutative
        a = heap.pop(random.randrange(len(heap)))  # type: ignore[attr-defined]
        b = heap.pop(random.randrange(len(heap)))  # type: ignore[attr-defined]
        heap.append(Moments.merge(a, b))
    assert_merged(heap[0], Moments.from_array(np.concatenate(pieces)), merges=len(pieces) - 1)


@reproducibly
@given(ENTRIES)
def test_merging_with_what_has_no_entry_changes_no_bit(entries: list[float]) -> None:
    whole, nothing = Moments.from_array(entries), Moments.empty(1)
    for merged in (Moments.merge(whole, nothing), Moments.merge(nothing, whole)):
        for name in (*EXACT, "mean", "std"):
            np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))


# -- recordings ------------------------------------------------------------------------------------------------

RANKS = 3
STEPS = 4


def batches(step: int, site: int) -> list[Array]:
    """Each rank's part of a global batch: of different sizes and scales, with a NaN, an inf and zeros."""
    rng = np.random.default_rng([step, site])
    pieces = [rng.normal(size=(7 + 3 * rank, 5)) * 10.0 ** (rank - step) for rank in range(RANKS)]
    pieces[0][0, 0], pieces[1][0, :2], pieces[2][1, 1] = np.nan, np.inf, 0.0
    return pieces


def histogram(x: Array) -> NDArray[np.int64]:
    size = np.abs(x[np.isfinite(x) & (x != 0)])
    return np.histogram(np.log2(size), HISTOGRAM_EDGES)[0].astype(np.int64)


def of_rank(rank: int, step: int, ids: Sequence[int], ranks_merged: int | None = 1) -> StepRecord:
    """The rank's own row: two activations and their gradients, a weight, its gradient and its update."""
    x = [batches(step, site)[rank] for site in range(len(ids))]
    signals = ("activation", "activation", "activation_grad", "weight", "weight_grad", "update")
    moments, histograms = {}, {}
    for signal in dict.fromkeys(signals):
        rows = [i for i, s in enumerate(signals) if s == signal]
        at = np.array([ids[i] for i in rows])
        moments[signal] = (at, Moments.concat([Moments.from_array(x[i]) for i in rows]))
        histograms[signal] = (at, np.stack([histogram(x[i]) for i in rows]))
    notes = {"loss": rank + step / 10} | ({} if ranks_merged is None else {"ranks_merged": ranks_merged})
    return StepRecord(step, rank == 1 and step == 2, notes, moments, histograms)  # type: ignore[arg-type]


SITES = (
    Site("activation", "a", "a", "Linear", depth=1),
    Site("activation", "b", "b", "Linear", depth=2),
    Site("activation_grad", "b", "b", "Linear", depth=2),
    Site("weight", "b.weight", "b", "Linear", param="weight", depth=2),
    Site("weight_grad", "b.weight", "b", "Linear", param="weight", depth=2),
    Site("update", "b.weight", "b", "Linear", param="weight", depth=2),
)


def begun(path: Path, rank: int, **facts: object) -> tuple[Recording, list[int]]:
    known = {"rank": rank, "ranks": RANKS, "sharded": False, "host": f"node{rank}"} | facts
    r = Recording.create(path, facts=known)
    order = [(i + rank) % len(SITES) for i in range(len(SITES))]  # ids differ from rank to rank
    ids = {i: r.add_site(SITES[i]) for i in order}
    return r, [ids[i] for i in range(len(SITES))]


def file_of(folder: Path, rank: int, steps: Sequence[int] = range(STEPS), close: bool = True, **facts: object) -> Path:
    path = folder / ("run.gscope" if rank == 0 else f"run.rank{rank}.gscope")
    r, ids = begun(path, rank, **facts)
    for step in steps:
        r.append(of_rank(rank, step, ids))
    if close:
        r.close()
    return path


def files_of(folder: Path, **facts: object) -> list[Path]:
    return [file_of(folder, rank, **facts) for rank in range(RANKS)]


def assert_is_global(r: Recording, step: int, ranks: Sequence[int], adds: Sequence[str], own: int = 0) -> None:
    """At this index the signals that add up are those of the ranks' tensors together, others those of one rank."""
    for site, (signal, name) in enumerate((s.signal, s.name) for s in SITES):
        number = int(r.steps[step])
        pieces = [batches(number, site)[rank].ravel() for rank in ranks]
        x = np.concatenate(pieces) if signal in adds else batches(number, site)[own].ravel()
        sites, moments = r.moments(signal, step)
        row = moments.take([[s.name for s in sites].index(name)])
        assert_merged(row, Moments.from_array(x), merges=len(ranks))
        np.testing.assert_array_equal(r.histogram(signal, name, step)[1], histogram(x))


BATCH = ("activation", "activation_grad")
ALL = (*BATCH, "weight", "weight_grad", "update")


@pytest.mark.parametrize("sharded", [False, True])
def test_ranks_merge_to_the_global_batch_and_parameters_only_where_they_are_sharded(
    tmp_path: Path, sharded: bool
) -> None:
    paths = files_of(tmp_path, sharded=sharded)
    merged = merge_recordings(paths[::-1], tmp_path / "merged.gscope")  # in any order
    np.testing.assert_array_equal(merged.steps, np.arange(STEPS))
    for step in range(STEPS):
        assert_is_global(merged, step, range(RANKS), ALL if sharded else BATCH)
    np.testing.assert_array_equal(merged.notes("ranks_merged"), np.full(STEPS, RANKS))
    np.testing.assert_array_equal(merged.notes("loss"), np.arange(STEPS) / 10)  # the lowest rank's
    np.testing.assert_array_equal(merged.skipped, [False, False, True, False])  # skipped where any rank did
    assert merged.complete
    assert set(merged.sites) == set(SITES)
    names = ["run.gscope", "run.rank1.gscope", "run.rank2.gscope"]
    assert merged.facts == Recording.load(paths[0]).facts | {"merged_from": names}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merged.gscope", *names]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([None, None, None], None),
        ([{"entries": 1024, "of": ["mean", "std"]}] * 3, {"entries": 1024, "of": ["mean", "std"]}),
        (
            [None, {"entries": 4096, "of": ["histogram"]}, {"entries": 1024, "of": ["mean", "histogram"]}],
            {"entries": 1024, "of": ["histogram", "mean"]},
        ),
    ],
)
def test_what_is_sampled_in_any_rank_s_file_is_sampled_in_the_merged_one(
    tmp_path: Path, facts: list[dict[str, object] | None], expected: dict[str, object] | None
) -> None:
    paths = [file_of(tmp_path, rank, **({} if fact is None else {"sampled": fact})) for rank, fact in enumerate(facts)]
    merged = merge_recordings(paths, tmp_path / "merged")
    assert merged.facts.get("sampled") == expected
    assert merged.is_sampled("mean") == (expected is not None)


def test_a_step_that_was_merged_over_all_ranks_is_taken_as_it_is(tmp_path: Path) -> None:
    r, ids = begun(tmp_path / "run.gscope", 0)
    for step in range(STEPS):  # merged until the other ranks went their own ways
        r.append(of_rank(0, step, ids, ranks_merged=RANKS if step < 2 else 1))
    r.close()
    others = [file_of(tmp_path, rank, steps=range(1, STEPS + 1)) for rank in (1, 2)]
    merged = merge_recordings([r.path, *others], tmp_path / "merged")  # type: ignore[list-item]
    for step in (0, 1):
        assert merged.notes_at(step) == r.notes_at(step)
        for signal in ALL:
            for name in (*EXACT, "mean", "std"):
                got, want = (getattr(q.moments(signal, step)[1], name) for q in (merged, r))  # type: ignore[arg-type]
                np.testing.assert_array_equal(got, want)
    for step in (2, 3):
        assert_is_global(merged, step, range(RANKS), BATCH)
    assert_is_global(merged, 4, [1, 2], BATCH, own=1)  # of the ranks that have it
    np.testing.assert_array_equal(merged.steps, np.arange(5))
    np.testing.assert_array_equal(merged.notes("ranks_merged"), [3, 3, 3, 3, 2])
    assert merged.notes("loss")[4] == 1.4


def test_a_step_merged_over_some_ranks_is_taken_whole_unless_more_have_their_own(tmp_path: Path) -> None:
    r, ids = begun(tmp_path / "run.gscope", 0, ranks=5)
    r.append(of_rank(0, 0, ids, ranks_merged=2))
    r.append(of_rank(0, 1, ids, ranks_merged=3))
    r.close()
    rest = [file_of(tmp_path, rank, steps=range(2), ranks=5) for rank in (1, 2)]
    q, ids = begun(tmp_path / "run.rank3.gscope", 3, ranks=5)
    q.append(StepRecord(0, notes={"ranks_merged": 1}))
    q.close()
    merged = merge_recordings([tmp_path / "run.gscope", *rest, tmp_path / "run.rank3.gscope"], tmp_path / "merged")
    np.testing.assert_array_equal(merged.notes("ranks_merged"), [3, 3])
    assert_is_global(merged, 0, [1, 2], BATCH, own=1)  # two with data and one without, against two merged
    assert_is_global(merged, 1, [0], BATCH)


def test_a_merged_recording_can_be_merged_with_the_rank_that_was_late(tmp_path: Path) -> None:
    paths = files_of(tmp_path)
    merge_recordings(paths[:2], tmp_path / "two")
    merged = merge_recordings([tmp_path / "two", paths[2]], tmp_path / "again")
    np.testing.assert_array_equal(merged.notes("ranks_merged"), np.full(STEPS, 2))  # two are more than one
    assert_is_global(merged, 0, [0, 1], BATCH)


def test_sites_that_only_some_ranks_have_are_kept_by_name(tmp_path: Path) -> None:
    paths = []
    for rank in range(RANKS):  # as in a pipeline: its stage, and what all have
        path = tmp_path / f"{rank}"
        with Recording.create(path, facts={"rank": rank, "ranks": RANKS}) as r:
            sites = [Site("activation", n, n, "Linear", depth=d + 3 * rank) for d, n in enumerate((f"s{rank}", "all"))]
            ids = np.array([r.add_site(s) for s in sites])
            moments = Moments.concat([Moments.from_array([rank + 1.0]), Moments.from_array([10.0 * rank])])
            r.append(StepRecord(0, moments={"activation": (ids, moments)}))
        paths.append(path)
    merged = merge_recordings(paths, tmp_path / "merged")
    assert [s.name for s in merged.sites] == ["s0", "all", "s1", "s2"]
    assert merged.sites[1].depth == 1  # the lowest rank's
    np.testing.assert_array_equal(merged.values("activation", "mean"), [[1.0, 10.0, 2.0, 3.0]])
    np.testing.assert_array_equal(merged.values("activation", "count"), [[1.0, 3.0, 1.0, 1.0]])


def test_the_file_of_a_rank_that_was_killed_merges_as_far_as_it_goes(tmp_path: Path) -> None:
    paths = [file_of(tmp_path, 0), file_of(tmp_path, 1, steps=range(2), close=False)]
    merged = merge_recordings(paths, tmp_path / "merged")
    np.testing.assert_array_equal(merged.notes("ranks_merged"), [2, 2, 1, 1])
    assert_is_global(merged, 1, [0, 1], BATCH)
    assert_is_global(merged, 3, [0], BATCH)


def test_histograms_with_edges_of_their_own_keep_them(tmp_path: Path) -> None:
    edges, paths = list(np.linspace(-127.0, 129.0, 65)), []
    for rank in range(2):
        writer = Writer(None, {"rank": rank, "ranks": 2}, edges=edges)
        r = Recording(Source(writer.contents, None, writer))
        i = np.array([r.add_site(SITES[0])])
        r.append(StepRecord(0, histograms={"activation": (i, np.full((1, 64), rank + 1))}))
        r.save(tmp_path / str(rank))
        paths.append(tmp_path / str(rank))
    got, counts = merge_recordings(paths, tmp_path / "merged").histogram("activation", "a", 0)
    np.testing.assert_array_equal(got, edges)
    np.testing.assert_array_equal(counts, np.full(64, 3))


def test_files_that_are_not_of_one_run_s_ranks_are_refused_in_one_sentence(tmp_path: Path) -> None:
    a, b, _ = files_of(tmp_path)

    def other(name: str, **facts: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rank = facts.pop("rank", 2)
        return file_of(folder, rank, steps=[], **facts)  # type: ignore[arg-type]

    with Recording.create(tmp_path / "alone", facts={}) as alone:
        alone.append(StepRecord(0))
    refused = [
        ([a, other("more", ranks=4)], "is of a run of 4 ranks, and .*run.gscope of one of 3"),
        ([a, b, other("twice", rank=1)], "are both of rank 1"),
        ([a, tmp_path / "alone"], "alone has no whole number as the fact 'rank': only the recordings of the ranks"),
        ([a, other("text", ranks="3")], "no whole number as the fact 'ranks'"),
        ([a, other("beyond", rank=3)], "is of rank 3 of 3: there is no such rank"),
        ([a, other("shards", sharded=True)], "only one has sharded parameters"),
        ([a, tmp_path / "missing"], "there is no recording at"),
    ]
    for paths, sentence in refused:
        with pytest.raises(RecordingError, match=sentence):
            merge_recordings(paths, tmp_path / "merged")
    with pytest.raises(ValueError, match="paths is empty"):
        merge_recordings([], tmp_path / "merged")
    with pytest.raises(ValueError, match=r"out='.*run.gscope' is one of the recordings to merge"):
        merge_recordings([a, b], a, overwrite=True)
    with pytest.raises(RecordingError, match="alone exists: choose another path"):
        merge_recordings([a, b], tmp_path / "alone")
    assert not (tmp_path / "merged").exists()
    assert len(merge_recordings([a, b], tmp_path / "alone", overwrite=True).steps) == STEPS


def test_damage_is_a_sentence_about_the_file_that_has_it_and_leaves_nothing(tmp_path: Path) -> None:
    paths = files_of(tmp_path)
    data = bytearray(paths[1].read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    paths[1].write_bytes(data)
    with pytest.raises(RecordingError, match=r"run\.rank1\.gscope is damaged"):
        merge_recordings(paths, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# -- the command -----------------------------------------------------------------------------------------------


def test_the_command_merges_and_says_over_how_many_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(p) for p in files_of(tmp_path)]
    out = tmp_path / "new" / "merged.gscope"
    assert main(["merge", *paths, "--out", str(out)]) == 0
    said, err = capsys.readouterr()
    assert said == f"4 steps of 6 sites in {out}: 4 of them merged over all 3 ranks\n"
    assert err == ""
    assert_is_global(Recording.load(out), 0, range(RANKS), BATCH)
    assert main(["merge", *paths[:2], "--out", str(out)]) == 2
    assert "exists: choose another path" in capsys.readouterr().err
    assert main(["merge", *paths[:2], "--out", str(out), "--overwrite", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "schema": 1,
        "kind": "merge",
        "file": str(out),
        "ranks": 3,
        "steps": 4,
        "steps_of_all": 0,
    }
    assert main(["merge", *paths, "--out", str(out), "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_the_command_answers_a_mistake_with_one_sentence_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(file_of(tmp_path, 0))
    merged = str(tmp_path / "merged")
    for argv, sentence in (
        ([path, path, "--out", merged], "are both of rank 0"),
        ([path, "--out", path, "--overwrite"], "is one of the recordings to merge"),
        ([str(tmp_path / "none"), "--out", merged], "there is no recording at"),
        ([path], "--out"),
        (["--out", merged], "RUN.gscope"),
        ([path, "--out", str(tmp_path)], "is a directory"),
    ):
        assert main(["merge", *argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert sentence in err
