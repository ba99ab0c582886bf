"""A recording as its users see it: with a file and without, while it is written, closed and loaded."""

from __future__ import annotations

import csv
import gc
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradscope.recording import (
    HISTOGRAM_EDGES,
    SIGNALS,
    STATISTICS,
    Moments,
    Recording,
    RecordingError,
    Site,
    StepRecord,
    export_csv,
    export_npz,
)
from gradscope.recording._codec import Blob, encode
from gradscope.recording._moments import COLUMNS
from tests.recordings import assert_same, fill, rms, site, tensors, written

Make = Callable[[], Recording]
reproducibly = settings(deadline=None, derandomize=True, max_examples=50)


@pytest.fixture(params=["file", "temporary", "closed", "closed temporary", "loaded", "saved"])
def recording(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Recording]:
    """The same recording in each state in which it can be read."""
    path = tmp_path / "run.gscope"
    made = written(None if "temporary" in request.param or request.param == "saved" else path)
    if "closed" in request.param or request.param == "loaded":
        made.close()
    if request.param == "saved":
        made.save(path)
    yield Recording.load(path) if request.param in ("loaded", "saved") else made
    made.close()


# -- reading ---------------------------------------------------------------------------------------------------


def test_values_are_those_of_the_tensors_in_every_state(recording: Recording) -> None:
    x = tensors(3, 4)
    for k, signal in enumerate(SIGNALS):
        np.testing.assert_allclose(recording.values(signal, "rms"), rms(x[:, k]), rtol=1e-14)
        bad = (~np.isfinite(x[:, k])).sum(axis=-1)
        np.testing.assert_array_equal(recording.values(signal, "nonfinite_count"), bad)
        np.testing.assert_allclose(recording.values(signal, "zero_fraction"), 1 / 30)


def test_every_statistic_is_read_with_shape_steps_by_sites(recording: Recording) -> None:
    for stat in STATISTICS:
        values = recording.values("weight", stat)
        assert values.shape == (3, 4)
        assert values.dtype == np.float64


def test_steps_facts_notes_and_sites_come_back(recording: Recording) -> None:
    np.testing.assert_array_equal(recording.steps, [0, 1, 2])
    np.testing.assert_array_equal(recording.skipped, [False, True, False])
    assert recording.facts == {"seed": 0, "device": "cpu"}
    assert recording.note_names == ("loss", "phase", "ok")
    np.testing.assert_array_equal(recording.notes("loss"), [1.0, 1 / 2, 1 / 3])
    np.testing.assert_array_equal(recording.notes("ok"), [1.0, 1.0, 1.0])
    assert np.isnan(recording.notes("phase")).all()
    assert np.isnan(recording.notes("nothing of the kind")).all()
    assert recording.notes_at(1) == {"loss": 0.5, "phase": "warm", "ok": True}
    assert recording.sites_of("update") == tuple(site("update", i) for i in range(4))


def test_what_is_returned_is_a_copy(recording: Recording) -> None:
    recording.values("weight", "mean")[:] = 7
    recording.steps[:] = 7
    recording.facts["seed"] = 7
    assert recording.facts["seed"] == 0
    assert recording.steps[0] == 0
    assert not (recording.values("weight", "mean") == 7).any()


def test_a_histogram_comes_back_with_its_edges(recording: Recording) -> None:
    edges, counts = recording.histogram("activation", "layers.2", step=1)
    np.testing.assert_array_equal(edges, HISTOGRAM_EDGES)
    np.testing.assert_array_equal(counts, np.arange(128, 192) + 1)
    np.testing.assert_array_equal(recording.histogram("activation", "layers.0")[1], np.arange(64) + 2)
    with pytest.raises(ValueError, match=r"site 'layers.2' of weight has no histogram at step 2"):
        recording.histogram("weight", "layers.2")
    with pytest.raises(ValueError, match=r"site_name='layers' is unknown \(did you mean 'layers.\d'\?\)"):
        recording.histogram("activation", "layers")


def test_a_profile_is_one_row_of_values_with_its_depths(recording: Recording) -> None:
    for step in (0, 1, 2, -1, -3):
        profile = recording.profile("weight_grad", "std", step)
        np.testing.assert_array_equal(profile.values, recording.values("weight_grad", "std")[step])
        np.testing.assert_array_equal(profile.depth, [1, 2, 3, 4])
        assert profile.step == step % 3
        assert profile.sites == recording.sites_of("weight_grad")
    assert len(recording.profile("weight", role="norm").sites) == 0


def test_raw_moments_of_a_step_come_back_exactly(recording: Recording) -> None:
    sites, moments = recording.moments("activation", 0)
    expected = Moments.concat([Moments.from_array(x) for x in tensors(3, 4)[0, 0]])
    assert sites == recording.sites_of("activation")
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(moments, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda r: r.values("activations", "rms"), ValueError, r"signal='activations' is unknown .*'activation'"),
        (lambda r: r.values("weight", "rsm"), ValueError, r"stat='rsm' is unknown \(did you mean 'rms'\?\); allowed"),
        (lambda r: r.sites_of("grad"), ValueError, r"signal='grad' is unknown.*allowed: activation,"),
        (lambda r: r.profile("weight", "mena"), ValueError, r"did you mean 'mean'\?"),
        (lambda r: r.profile("wight"), ValueError, r"did you mean 'weight'\?"),
        (lambda r: r.profile("weight", role="norms"), ValueError, r"role='norms' is unknown .*'norm'"),
        (lambda r: r.profile("weight", step=3), IndexError, "step=3 is out of range: 3 steps are recorded"),
        (lambda r: r.moments("weight", -4), IndexError, "step=-4 is out of range"),
    ],
)
def test_a_wrong_name_or_index_is_answered_with_what_is_allowed(
    recording: Recording, call: Callable[[Recording], object], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        call(recording)


def test_a_signal_that_was_not_recorded_is_empty(tmp_path: Path) -> None:
    with Recording.create(tmp_path / "r", facts={}) as r:
        assert r.sites_of("update") == ()
        assert r.values("update", "rms").shape == (0, 0)
        r.append(StepRecord(5))
        assert r.values("update", "rms").shape == (1, 0)
        assert len(r.profile("update").values) == 0
        with pytest.raises(ValueError, match="allowed: none"):
            r.histogram("update", "x")


def test_sites_are_in_order_of_execution_whatever_the_order_in_which_they_were_added() -> None:
    r = Recording.create()
    depths = [3, 1, 2, 1]
    ids = np.array([r.add_site(Site("activation", f"s{i}", "m", "Linear", depth=d)) for i, d in enumerate(depths)])
    moments = Moments.concat([Moments.from_array([float(i)]) for i in range(4)])
    order = np.array([2, 0, 3, 1])  # rows may come in any order too
    r.append(StepRecord(0, moments={"activation": (ids[order], moments.take(order))}))
    assert [s.name for s in r.sites] == ["s1", "s3", "s2", "s0"]
    np.testing.assert_array_equal(r.values("activation", "mean"), [[1.0, 3.0, 2.0, 0.0]])
    np.testing.assert_array_equal(r.profile("activation", "mean").values, [1.0, 3.0, 2.0, 0.0])


def test_sites_appear_while_the_recording_grows_and_earlier_rows_are_nan(tmp_path: Path) -> None:
    for path in (None, tmp_path / "r"):
        r = Recording.create(path)
        one = Moments.from_array([1.0])
        a = r.add_site(site("weight", 0))
        r.append(StepRecord(0, moments={"weight": (np.array([a]), one)}))
        b = r.add_site(site("weight", 1))
        r.append(StepRecord(1, moments={"weight": (np.array([b]), one)}))
        np.testing.assert_array_equal(r.values("weight", "rms"), [[1.0, np.nan], [np.nan, 1.0]])
        assert [s.name for s in r.profile("weight", step=0).sites] == ["layers.0"]
        r.close()


def test_minus_one_is_the_last_step_with_data_of_the_signal() -> None:
    r = Recording.create()
    ids = {s: np.array([r.add_site(site(s, 0))]) for s in ("activation", "activation_grad")}
    for step, signals in enumerate([("activation", "activation_grad"), ("activation",), ()]):
        r.append(StepRecord(step, moments={s: (ids[s], Moments.from_array([float(step + 1)])) for s in signals}))
    assert r.profile("activation_grad").step == 0
    assert r.profile("activation").step == 1
    assert r.profile("activation", step=2).sites == ()


# -- writing ---------------------------------------------------------------------------------------------------


def test_a_site_can_be_replaced_by_one_that_knows_more(tmp_path: Path) -> None:
    path = tmp_path / "r"
    r = Recording.create(path)
    i = r.add_site(site("activation", 0))
    r.append(StepRecord(0))
    better = site("activation", 0, activation_after="relu", depth=9)
    r.replace_site(i, better)
    r.set_fact("closed_by", "optimizer")
    r.append(StepRecord(1))
    assert Recording.load(path).sites == (better,)
    assert Recording.load(path).facts == {"closed_by": "optimizer"}
    r.close()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda r: r.add_site(site("weight", 0)), "site 'layers.0' of weight is already in the recording"),
        (lambda r: r.add_site(site("weights", 9)), "did you mean 'weight'"),
        (lambda r: r.replace_site(99, site("weight", 0)), "site_id=99 is unknown; allowed: 0 … 19"),
        (lambda r: r.replace_site(0, site("weight", 0)), "site 0 observes activation; its replacement observes weight"),
        (lambda r: r.replace_site(0, site("activation", 1)), "'layers.1' of activation is already"),
        (lambda r: r.append(StepRecord(2)), "step=2 comes after step 2; steps only grow"),
        (lambda r: r.append(row(r, [0, 0])), "must be one-dimensional and distinct"),
        (lambda r: r.append(row(r, [77])), "activation has site id 77; add_site has given 20"),
        (lambda r: r.append(row(r, [-1])), "activation has site id -1"),
        (lambda r: r.append(row(r, [4])), "activation has site id 4, which is a site of activation_grad"),
        (lambda r: r.append(row(r, [1, 2], 1)), "activation has 2 site ids and 1 rows"),
        (lambda r: r.append(StepRecord(9, moments={"grad": (np.array([0]), Moments.empty(1))})), "signal='grad'"),
        (
            lambda r: r.append(StepRecord(9, histograms={"weight": (np.array([8]), np.zeros((1, 5), int))})),
            r"histograms of weight have shape \(1, 5\); they are \(sites, 64\)",
        ),
    ],
)
@pytest.mark.parametrize("place", ["file", "temporary"])
def test_what_does_not_fit_is_refused_in_one_sentence_and_leaves_the_recording_as_it_was(
    call: Callable[[Recording], object], sentence: str, place: str, tmp_path: Path
) -> None:
    r = written(tmp_path / "r" if place == "file" else None)
    with pytest.raises(ValueError, match=sentence):
        call(r)
    fill_more = StepRecord(3, moments={"weight": (np.array([8]), Moments.from_array([1.0]))})
    r.append(fill_more)
    r.save(tmp_path / "copy")
    np.testing.assert_array_equal(Recording.load(tmp_path / "copy").steps, [0, 1, 2, 3])
    assert len(r.sites) == 20
    r.close()


def row(r: Recording, ids: list[int], rows: int | None = None) -> StepRecord:
    moments = Moments.empty(len(ids) if rows is None else rows)
    return StepRecord(9, moments={"activation": (np.array(ids), moments)})


def test_a_loaded_or_closed_recording_says_that_it_is_read_only(tmp_path: Path) -> None:
    r = written(tmp_path / "r")
    loaded = Recording.load(tmp_path / "r")
    for writes in (
        lambda q: q.append(StepRecord(9)),
        lambda q: q.add_site(site("weight", 9)),
        lambda q: q.set_fact("a", 1),
        lambda q: q.replace_site(0, site("activation", 0)),
    ):
        with pytest.raises(RecordingError, match="was loaded, so it is read-only"):
            writes(loaded)
        r.close()
        with pytest.raises(RecordingError, match="is read-only: it was closed"):
            writes(r)


def test_facts_that_json_does_not_know_become_text() -> None:
    class Mute:
        def __str__(self) -> str:
            raise RuntimeError

    loop: list[object] = [1]
    loop.append(loop)
    facts = {
        "device": slice(1),
        "lr": np.float32(0.5),
        "betas": (0.9, np.int64(1)),
        "grid": np.eye(2),
        3: {"path": Path("a/b"), None: {1}},
        "bad": float("nan"),
        "z": 1j,
        "mute": Mute(),
        "loop": loop,
        "extended": np.longdouble(2),
    }
    r = Recording.create(facts=facts)  # type: ignore[arg-type]
    got = r.facts
    assert np.isnan(got.pop("bad"))
    assert got == {
        "device": "slice(None, 1, None)",
        "lr": 0.5,
        "betas": [0.9, 1],
        "grid": [[1.0, 0.0], [0.0, 1.0]],
        "3": {"path": str(Path("a/b")), "None": [1]},
        "z": "1j",
        "mute": "<Mute>",
        "loop": [1, "[1, [...]]"],
        "extended": 2.0,
    }


def test_nonfinite_notes_and_awkward_texts_survive_the_file(tmp_path: Path) -> None:
    notes = {"loss": float("inf"), "drop": float("nan"), "why": "ünï\ud800\n\0", "n": 2**80, "none": None}
    with Recording.create(tmp_path / "r", facts={"日本": "\0"}) as r:
        r.append(StepRecord(0, notes=notes))
    q = Recording.load(tmp_path / "r")
    got = q.notes_at(0)
    assert np.isnan(got.pop("drop"))
    assert got == {k: v for k, v in notes.items() if k != "drop"}
    assert q.facts == {"日本": "\0"}
    np.testing.assert_array_equal(q.notes("loss"), [np.inf])


def test_many_threads_write_one_recording_without_losing_a_step(tmp_path: Path) -> None:
    for path in (None, tmp_path / "r"):
        r = Recording.create(path)
        site_id = np.array([r.add_site(site("weight", 0))])
        steps, lock = iter(range(200)), threading.Lock()
        seen: list[int] = []

        def work(r: Recording, ids: np.ndarray, steps: Iterator[int], lock: threading.Lock, seen: list[int]) -> None:
            while True:
                with lock:  # steps must come in order; what is shared is everything else
                    step = next(steps, None)
                    if step is None:
                        return
                    moments = Moments.from_array([float(step)])
                    r.append(StepRecord(step, moments={"weight": (ids, moments)}))
                seen.append(len(r.values("weight", "mean")))
                r.set_fact(f"thread {threading.get_ident()}", step)

        threads = [threading.Thread(target=work, args=(r, site_id, steps, lock, seen)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        np.testing.assert_array_equal(r.values("weight", "mean")[:, 0], np.arange(200.0))
        assert len(seen) == 200
        r.close()


# -- places ----------------------------------------------------------------------------------------------------


def test_a_copy_can_be_saved_at_any_time_while_the_recording_grows(tmp_path: Path) -> None:
    for path in (None, tmp_path / "run"):
        r = written(path, steps=2)
        r.save(tmp_path / "copy", overwrite=True)
        r.append(StepRecord(2))
        early = Recording.load(tmp_path / "copy")
        assert early.complete
        np.testing.assert_array_equal(early.steps, [0, 1])
        r.save(tmp_path / "copy", overwrite=True)
        assert_same(Recording.load(tmp_path / "copy"), r)
        assert early.values("weight", "rms").shape == (2, 4)  # the same run: what was loaded is still there
        r.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "run"]


def test_a_recording_whose_file_was_replaced_says_so_instead_of_showing_the_other_run(tmp_path: Path) -> None:
    written(tmp_path / "r").close()
    r = Recording.load(tmp_path / "r")
    written(tmp_path / "r2").close()
    (tmp_path / "r2").replace(tmp_path / "r")
    with pytest.raises(RecordingError, match="is no longer the recording that was loaded: load it again"):
        r.values("weight", "rms")


def test_a_recording_without_a_path_can_still_be_read_and_saved_after_close(tmp_path: Path) -> None:
    with Recording.create(facts={"a": 1}) as r:
        fill(r)
    assert r.complete
    r.save(tmp_path / "r")
    assert_same(r, Recording.load(tmp_path / "r"))
    assert repr(r) == "<Recording of 3 steps × 20 sites in a temporary database>"


def test_a_forgotten_recording_leaves_one_whole_file(tmp_path: Path) -> None:
    r = written(tmp_path / "r")
    del r
    gc.collect()
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
    assert Recording.load(tmp_path / "r").complete


def test_it_presents_itself_in_a_line_in_text_and_as_a_table(tmp_path: Path) -> None:
    r = written(tmp_path / "<b>.gscope")
    r.set_fact("model", "<script>")
    assert repr(r) == f"<Recording of 3 steps × 20 sites at {str(tmp_path / '<b>.gscope')!r}>"
    assert "steps        3 (from 0 to 2, 1 skipped)" in str(r)
    assert "state        growing, or its writer was killed" in str(r)
    assert "&lt;script&gt;" in r._repr_html_()
    assert "<script>" not in r._repr_html_()
    r.close()


# -- exports ---------------------------------------------------------------------------------------------------


def test_csv_holds_every_statistic_of_every_row_exactly(recording: Recording, tmp_path: Path) -> None:
    export_csv(recording, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "signal", "site", "depth", "role", *STATISTICS]
    assert len(rows) == 3 * 20
    for stat in STATISTICS:
        for signal in SIGNALS:
            got = [float(r[stat]) for r in rows if r["signal"] == signal]
            np.testing.assert_array_equal(np.reshape(got, (3, 4)), recording.values(signal, stat))
    assert rows[5]["site"] == "layers.1"
    assert (rows[5]["depth"], rows[5]["role"], rows[5]["step"]) == ("2", "pre-activation", "1")


def test_npz_holds_arrays_that_need_no_pickle(recording: Recording, tmp_path: Path) -> None:
    export_npz(recording, tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz", allow_pickle=False) as data:
        assert json.loads(str(data["facts"])) == recording.facts
        np.testing.assert_array_equal(data["steps"], recording.steps)
        np.testing.assert_array_equal(data["skipped"], recording.skipped)
        np.testing.assert_array_equal(data["notes/loss"], recording.notes("loss"))
        for signal in SIGNALS:
            table = json.loads(str(data[f"{signal}/sites"]))
            sites = tuple(Site(**{**s, "shape": tuple(s["shape"])}) for s in table)
            assert sites == recording.sites_of(signal)
            for stat in STATISTICS:
                np.testing.assert_array_equal(data[f"{signal}/{stat}"], recording.values(signal, stat))


@pytest.mark.parametrize("export", [export_csv, export_npz])
def test_an_export_that_cannot_be_written_says_so_and_leaves_nothing(
    export: Callable[[Recording, Path], None], tmp_path: Path
) -> None:
    r = written(None)
    with pytest.raises(RecordingError, match=r"nowhere/t cannot be written: No such file"):
        export(r, tmp_path / "nowhere" / "t")
    assert list(tmp_path.iterdir()) == []


# -- the blobs -------------------------------------------------------------------------------------------------

FLOATS = arrays(np.float64, st.integers(0, 20), elements=st.floats(allow_subnormal=True))
SHORT = arrays(np.float64, st.integers(0, 20), elements=st.floats(width=32))
INTS = arrays(np.int64, st.integers(0, 20), elements=st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300))


@reproducibly
@given(st.lists(FLOATS | SHORT | INTS, max_size=6))
def test_every_value_survives_a_blob_exactly_and_columns_are_independent(columns: list[np.ndarray]) -> None:
    blob = Blob(encode(columns))
    assert len(blob) == len(columns)
    for i in reversed(range(len(columns))):
        want = columns[i]
        got = blob.ints(i) if want.dtype.kind == "i" else blob.floats(i)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
        if want.dtype.kind == "f":
            np.testing.assert_array_equal(np.signbit(got)[want == 0], np.signbit(want)[want == 0])


@pytest.mark.parametrize(
    ("column", "size"),
    [
        (np.zeros(100, np.int64), 0),
        (np.arange(7, 107), 8),
        (np.arange(100) % 7, 100),
        (np.arange(100) * 3, 200),
        (np.arange(100) * 10**6, 400),
        (np.arange(100) - 2**40, 8),
        (-(np.arange(100) ** 2), 800),
        (np.arange(100) / 2, 400),
        (np.full(100, 2.0**-149), 400),  # the smallest float32
        (np.full(100, 2.0**-150), 800),
        (np.full(100, 1e200), 800),
        (np.full(100, 0.1), 800),
    ],
)
def test_a_column_takes_the_smallest_type_that_holds_it(column: np.ndarray, size: int) -> None:
    assert len(encode([column])) - 6 == size


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01\x06\x02\0\0\0abc", b"\x01\x63\x02\0\0\0", encode([]) + b"x"])
def test_bytes_that_are_no_blob_are_refused(data: bytes) -> None:
    import struct

    with pytest.raises((ValueError, KeyError, struct.error)):
        Blob(data)


@reproducibly
@given(
    st.lists(arrays(np.float64, (5, 3), elements=st.floats(allow_nan=True, allow_infinity=True)), max_size=4),
    st.lists(st.integers(1, 2**40), min_size=4, max_size=4),
)
def test_a_round_trip_through_the_file_is_exact(
    tmp_path_factory: pytest.TempPathFactory, columns: list[np.ndarray], gaps: list[int]
) -> None:
    path = tmp_path_factory.mktemp("trip") / "r.gscope"
    steps = np.cumsum(gaps)[: len(columns)]
    with Recording.create(path) as r:
        ids = np.array([r.add_site(site("weight", i)) for i in range(3)])
        for step, (mean, std, low, high, counts) in zip(steps, columns, strict=True):
            n = np.nan_to_num(np.abs(counts), nan=0, posinf=9).clip(0, 2**53).astype(np.int64)
            r.append(StepRecord(int(step), moments={"weight": (ids, Moments(n, mean, std, low, high, n, n, n))}))
    q = Recording.load(path)
    np.testing.assert_array_equal(q.steps, steps)
    for i, (mean, std, low, high, _) in enumerate(columns):
        moments = q.moments("weight", i)[1]
        for name, want in (("mean", mean), ("std", std), ("min", low), ("max", high)):
            np.testing.assert_array_equal(getattr(moments, name), want)


BITS = arrays(np.uint64, 3, elements=st.integers(0, 2**64 - 1)).map(lambda bits: bits.view(np.float64))
COLUMN = (
    BITS  # NaNs with any payload, subnormals, both zeros
    | arrays(np.float64, 3, elements=st.floats(width=32))
    | arrays(np.float64, 3, elements=st.sampled_from([0.0, -0.0, 5e-324, -5e-324, np.nan, -np.nan, np.inf, 2.0**-149]))
)
WHOLE = arrays(np.int64, 3, elements=st.integers(0, 2**63 - 1) | st.integers(0, 300)) | st.just(np.full(3, -1))
NOTES = st.dictionaries(
    st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
)


@reproducibly
@given(st.booleans(), NOTES, st.lists(COLUMN, min_size=4, max_size=4), st.lists(WHOLE, min_size=5, max_size=5), WHOLE)
def test_a_step_record_comes_back_from_the_file_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory,
    skipped: bool,
    notes: dict[str, float | int | str | bool | None],
    floats: list[np.ndarray],
    ints: list[np.ndarray],
    counts: np.ndarray,
) -> None:
    path = tmp_path_factory.mktemp("bits") / "r.gscope"
    moments = Moments(ints[0], *floats, *ints[1:])
    with Recording.create(path) as r:
        ids = np.array([r.add_site(site("weight", i)) for i in range(3)])
        histogram = np.zeros((3, 64), np.int64)
        histogram[:, 5] = counts
        r.append(StepRecord(7, skipped, notes, {"weight": (ids, moments)}, {"weight": (ids, histogram)}))
    q = Recording.load(path)
    assert (q.steps.tolist(), q.skipped.tolist(), q.notes_at(0)) == ([7], [skipped], notes)
    assert [type(value) for value in q.notes_at(0).values()] == [type(value) for value in notes.values()]
    for name in COLUMNS:
        assert getattr(q.moments("weight")[1], name).tobytes() == getattr(moments, name).tobytes()
    for i in range(3):
        np.testing.assert_array_equal(q.histogram("weight", f"layers.{i}")[1], histogram[i])
