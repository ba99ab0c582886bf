"""Long recordings: what is read of them, how their steps lie, how much room they take; and files of schema 1."""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.recording import SIGNALS, Moments, Recording, RecordingError, StepRecord
from gradscope.recording import _plan as planning
from gradscope.recording import _reading as reading
from gradscope.recording import _schema_1 as schema_1
from gradscope.recording._moments import COLUMNS
from gradscope.recording._pages import best_size, growth
from tests.recordings import assert_same, rms, site, tensors, written

reproducibly = settings(deadline=None, derandomize=True, max_examples=30)

OLD = Path(__file__).parent / "data" / "schema_1.sqlite"
"""`written(path)`, as the last version that wrote schema 1 wrote it, in pages of 512 bytes."""


# -- some steps of many ----------------------------------------------------------------------------------------


def test_chosen_steps_come_in_the_order_asked_for_and_are_those_of_the_whole(tmp_path: Path) -> None:
    for r in (written(tmp_path / "r", steps=9), written(None, steps=9)):
        whole = r.values("weight", "std")
        for steps in ([0], [8, 0, 3], [-1, 2, 2, -9], [], np.arange(9), np.array([5, 6], dtype=np.uint8)):
            chosen = r.values("weight", "std", steps)
            np.testing.assert_array_equal(chosen, whole[np.asarray(steps, dtype=int)])
        r.close()


@pytest.mark.parametrize(
    ("steps", "error", "sentence"),
    [
        ([9], IndexError, "steps has 9, which is out of range: 9 steps are recorded"),
        ([0, -10], IndexError, "steps has -10, which is out of range"),
        ([0.5], ValueError, "steps are whole numbers, indices into `steps`, got float64 of shape"),
        ([True], ValueError, "steps are whole numbers"),
        (3, ValueError, r"got int64 of shape \(\)"),
    ],
)
def test_a_wrong_choice_of_steps_is_one_sentence(steps: object, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        written(None, steps=9).values("weight", "std", steps)  # type: ignore[arg-type]


def test_what_a_step_has_is_known_without_reading_it(tmp_path: Path) -> None:
    r, rng = Recording.create(tmp_path / "r"), np.random.default_rng(0)
    ids = {s: np.array([r.add_site(site(s, i)) for i in range(3)]) for s in SIGNALS}
    has, sick, skipped, noted = (rng.random(shape) < 0.5 for shape in ((40, 5), (40, 5), 40, 40))
    for t in range(40):
        x = np.where(sick[t, :, None, None] & (np.arange(4) == 2), [np.nan, np.inf][t % 2], rng.normal(size=(5, 3, 4)))
        moments = {
            s: (ids[s], Moments.concat([Moments.from_array(row) for row in x[k]]))
            for k, s in enumerate(SIGNALS)
            if has[t, k]
        }
        notes = {["nonfinite", "overflow_site"][t % 2]: "somewhere"} if noted[t] else {"loss": 1.0}
        r.append(StepRecord(t, bool(skipped[t]), notes, moments))
    r.close()
    for q in (r, Recording.load(tmp_path / "r")):
        for k, signal in enumerate(SIGNALS):
            np.testing.assert_array_equal(q.recorded(signal), has[:, k])
            np.testing.assert_array_equal(q.recorded(signal), ~np.isnan(q.values(signal, "count")).all(axis=1))
            np.testing.assert_array_equal(q.nonfinite(signal), (has & sick)[:, k])
        np.testing.assert_array_equal(q.findings, skipped | noted | (has & sick).any(axis=1))
        assert q.profile("update").step == np.flatnonzero(has[:, 4])[-1]


# -- how steps lie ---------------------------------------------------------------------------------------------


@reproducibly
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 1000]), st.sampled_from([1, 7, 256]))
def test_steps_that_each_have_other_sites_and_types_come_back_exactly(seed: int, frames: int, rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "MOST_FRAMES", frames)  # beyond which a step carries its frame itself
        patch.setattr(reading, "MOST_ROWS", rows)
        rng, r = np.random.default_rng(seed), Recording.create()
        ids = {s: np.array([r.add_site(site(s, i)) for i in range(6)]) for s in SIGNALS}
        expected = {s: np.full((len(COLUMNS), 12, 6), np.nan) for s in SIGNALS}
        for t in range(12):
            moments = {}
            for s in rng.permutation(SIGNALS)[: rng.integers(6)].tolist():
                chosen = rng.permutation(6)[: rng.integers(7)]
                columns = [column(rng, len(chosen), dtype) for dtype in COLUMNS.values()]
                moments[s] = (ids[s][chosen], Moments(*columns))
                expected[s][:, t, chosen] = columns
            r.append(StepRecord(t, moments=moments))
        assert len(r._source.contents.frames) <= frames
        for s in SIGNALS:
            for name, values in zip(COLUMNS, expected[s], strict=True):
                if name in ("count", "mean", "std", "min", "max"):
                    np.testing.assert_array_equal(r.values(s, name), values)
            for t in range(12):
                sites, found = r.moments(s, t)
                places = [r.sites_of(s).index(each) for each in sites]
                assert places == np.flatnonzero(~np.isnan(expected[s][0, t])).tolist()
                np.testing.assert_array_equal([getattr(found, name) for name in COLUMNS], expected[s][:, t, places])
        r.close()


def column(rng: np.random.Generator, rows: int, dtype: type) -> np.ndarray:
    if dtype is np.int64:
        return rng.integers(0, rng.choice([1, 2, 200, 60_000, 2**20, 2**40]), rows)
    values = rng.normal(size=rows)
    return values.astype(np.float32).astype(np.float64) if rng.random() < 0.5 else values


def test_steps_that_lie_alike_share_one_frame() -> None:
    r = written(None, steps=20)
    frames = len(r._source.contents.frames)
    assert frames <= 4  # one of nothing, and few of what is in a step: its zeros and NaNs vary
    for step in range(20, 40):
        r.append(
            StepRecord(step, moments={"weight": (np.arange(8, 12), Moments.concat([Moments.from_array([1.5])] * 4))})
        )
    assert len(r._source.contents.frames) == frames + 1


def test_a_histogram_keeps_every_bin_though_empty_ends_are_not_stored(tmp_path: Path) -> None:
    r = Recording.create(tmp_path / "r")
    ids = {s: np.array([r.add_site(site(s, i)) for i in range(2)]) for s in ("weight", "update")}
    one = Moments.concat([Moments.from_array([1.0])] * 2)
    tables = [np.zeros((2, 64), int) for _ in range(4)]
    tables[0][0, 20], tables[0][1, 30], tables[1][:, [0, 63]] = 7, 2**40, 5
    tables[3][0, 63] = 1
    for t, table in enumerate(tables):
        moments = {s: (ids[s], one) for s in ids}
        r.append(StepRecord(t, moments=moments, histograms={"weight": (ids["weight"][::-1], table[::-1])}))
    r.close()
    for q in (r, Recording.load(tmp_path / "r")):
        for t, table in enumerate(tables):
            for i in range(2):
                np.testing.assert_array_equal(q.histogram("weight", f"layers.{i}", t)[1], table[i])
        with pytest.raises(ValueError, match="of update has no histogram at step 3"):
            q.histogram("update", "layers.0")


# -- room ------------------------------------------------------------------------------------------------------


def steps_of(sites: int, seed: int = 0) -> dict[str, Moments]:
    """As of a network in float32: min and max are float32, the update's are not; a ReLU has zeros."""
    rng, out, none = np.random.default_rng(seed), {}, np.zeros(sites, np.int64)
    for signal in SIGNALS:
        low, high = np.sort(rng.normal(size=(2, sites)).astype(np.float32), axis=0).astype(np.float64)
        spread = 1 + 1e-12 * (signal == "update")
        zeros = rng.integers(0, 40_000, sites) if signal == "activation" else none
        mean, std = rng.normal(size=sites), rng.random(sites)
        out[signal] = Moments(none + 2**16, mean, std, low * spread, high * spread, zeros, none, none, none)
    return out


def own_bytes(moments: Moments) -> int:
    """What the columns take each in the smallest type that holds it."""
    total = 0
    for name, dtype in COLUMNS.items():
        values = getattr(moments, name)
        if dtype is np.float64:
            total += values.size * (4 if (values.astype(np.float32) == values).all() else 8)
        else:
            total += values.size * (0, 1, 2, 4)[int(np.searchsorted([0, 255, 65_535], values.max()))]
    return total


@pytest.mark.parametrize(
    ("sites", "most"), [(1, 1.6), (5, 1.2), (10, 1.1), (20, 1.1), (35, 1.1), (100, 1.1), (300, 1.1)]
)
def test_a_file_grows_by_little_more_than_its_columns_own_bytes(tmp_path: Path, sites: int, most: float) -> None:
    r = Recording.create(tmp_path / "r")
    assert r._source.writer is not None
    connection = r._source.writer.connection
    ids = {s: np.array([r.add_site(site(s, i)) for i in range(sites)]) for s in SIGNALS}
    step, notes, steps = steps_of(sites), {"loss": 0.51234567, "grad_norm": 1.2345678}, 12_000 // (10 + sites)
    sizes = []
    for t in range(steps):
        r.append(StepRecord(t, notes=notes, moments={s: (ids[s], m) for s, m in step.items()}))
        if t in (0, steps - 1):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            sizes.append((tmp_path / "r").stat().st_size)
    grown = (sizes[1] - sizes[0]) / (steps - 1)
    assert grown <= most * sum(own_bytes(m) for m in step.values())
    r.close()


@pytest.mark.parametrize("page", [1024, 2048, 4096, 8192, 16384])
@pytest.mark.parametrize("rows", [[120], [700], [2100], [3600], [5000], [15_100], [700, 9000]])
def test_what_pages_waste_is_foretold(tmp_path: Path, page: int, rows: list[int]) -> None:
    with closing(sqlite3.connect(tmp_path / "r", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={page}")
        for table in ("a", "b"):
            connection.execute(f"CREATE TABLE {table}(n INTEGER PRIMARY KEY, frame INTEGER, value BLOB, crc INTEGER)")
        connection.execute("BEGIN")
        pages = []
        for n in range(4000):
            crc = zlib.crc32(b"%d" % n)
            for table, size in zip("ab", rows, strict=False):
                connection.execute(f"INSERT INTO {table} VALUES(?, 1, zeroblob(?), ?)", (n, size, crc))
            if n in (999, 3999):
                pages += connection.execute("PRAGMA page_count").fetchone()
        connection.execute("COMMIT")
    grown = (pages[1] - pages[0]) * page / 3000
    assert grown / (sum(rows) + 20 * len(rows)) == pytest.approx(growth(rows, page), rel=0.08)


def test_the_page_size_is_chosen_by_the_first_step_and_wastes_little_for_most_sizes() -> None:
    waste = np.array([growth([n], best_size([n])) for n in range(200, 30_000, 7)])
    assert (waste > 1.1).mean() < 0.02
    assert waste.max() < 1.3


def test_a_reader_in_the_way_of_the_choice_costs_nothing_but_room(tmp_path: Path) -> None:
    r = Recording.create(tmp_path / "r")
    ids = {s: np.array([r.add_site(site(s, i)) for i in range(60)]) for s in SIGNALS}
    assert r._source.writer is not None
    connection = r._source.writer.connection
    with r._source.connection():
        r.append(StepRecord(0, moments={s: (ids[s], m) for s, m in steps_of(60).items()}))
    assert connection.execute("PRAGMA page_size").fetchone() == (4096,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    r.append(StepRecord(1))
    r.close()
    np.testing.assert_array_equal(Recording.load(tmp_path / "r").steps, [0, 1])


# -- schema version 1 ------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old"
    path.write_bytes(OLD.read_bytes())
    return path


def test_a_file_of_schema_version_1_reads_as_what_was_written(old: Path, tmp_path: Path) -> None:
    q, x = Recording.load(old), tensors(3, 4)
    assert_same(q, written(None), stats=("mean", "std", "min", "max", "count", "zero_fraction", "nonfinite_count"))
    np.testing.assert_allclose(q.values("weight", "rms"), rms(x[:, 2]), rtol=1e-14)
    np.testing.assert_array_equal(q.histogram("activation", "layers.2", 1)[1], np.arange(128, 192) + 1)
    assert q.notes_at(1) == {"loss": 0.5, "phase": "warm", "ok": True}
    assert np.isnan(q.values("weight", "subnormal_fraction")).all()  # nobody counted them: not 0
    assert (q.path, q.complete) == (old, True)
    q.verify()
    q.save(tmp_path / "new")
    new = Recording.load(tmp_path / "new")
    assert_same(new, q)
    assert new._source.writer is None  # of the present version: read as it lies
    assert old.read_bytes() == OLD.read_bytes()
    with pytest.raises(RecordingError, match="is read-only"):
        q.append(StepRecord(9))


def test_a_killed_run_of_schema_version_1_is_not_taken_for_complete(old: Path) -> None:
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        (header,) = connection.execute("SELECT value FROM header WHERE n = 0").fetchone()
        identity = zlib.crc32(header.split(b'"run":"')[1].split(b'"')[0])
        (seal,) = connection.execute("SELECT value FROM seal").fetchone()
        growing = b"\0" + seal[1:]
        crc = schema_1.TABLES.checksum("seal", 0, (), growing, identity)
        connection.execute("UPDATE seal SET value = ?, crc = ?", (growing, crc))
    q = Recording.load(old)
    assert not q.complete
    assert len(q.steps) == 3


def test_a_damaged_file_of_schema_version_1_is_refused_or_true(old: Path) -> None:
    whole, truth, refused = OLD.read_bytes(), Recording.load(old), 0
    for i in range(0, len(whole), 23):
        data = bytearray(whole)
        data[i] ^= 1 << i % 8
        old.write_bytes(data)
        try:
            q = Recording.load(old)
        except RecordingError:
            refused += 1
        else:
            assert_same(q, truth)
    assert refused > 0.4 * len(whole) / 23


def test_the_columns_that_schema_version_1_must_have_are_its_own() -> None:
    assert set(COLUMNS) - set(schema_1._COLUMNS) == {"subnormals"}
