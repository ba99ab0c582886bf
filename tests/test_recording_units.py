"""Unit moments in a recording: what is written comes back, only where it was, from files old and new."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from gradscope.recording import (
    STATISTICS,
    UNIT_STATISTICS,
    Moments,
    Recording,
    RecordingError,
    Site,
    StepRecord,
    UnitMoments,
    export_csv,
    export_npz,
    merge_recordings,
)
from gradscope.recording._backlog import Backlog, EncodedStep
from gradscope.recording._unit_moments import UNIT_COLUMNS
from tests.recordings import assert_same, site, unit_moments, written

OLD = Path(__file__).parent / "data" / "schema_2.sqlite"


def assert_units(r: Recording, step: int, expected: UnitMoments, names: list[str]) -> None:
    sites, found = r.unit_moments(step)
    assert [s.name for s in sites] == names
    for column in UNIT_COLUMNS:
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column), err_msg=column)
        assert getattr(found, column).dtype == UNIT_COLUMNS[column]


@pytest.mark.parametrize("form", ["growing", "closed", "saved", "in memory"])
def test_unit_moments_come_back_to_the_bit_at_the_steps_that_have_them(tmp_path: Path, form: str) -> None:
    r = written(None if form == "in memory" else tmp_path / "r", units=True)
    if form == "closed":
        r.close()
    if form == "saved":
        r.save(tmp_path / "copy")
    if form != "in memory":
        r = Recording.load(tmp_path / ("copy" if form == "saved" else "r"))
    names = [f"layers.{i}" for i in range(4)]
    np.testing.assert_array_equal(r.has_unit_moments, [True, False, True])
    assert_units(r, 0, unit_moments(4, 0), names)
    assert_units(r, 2, unit_moments(4, 2), names)
    assert_units(r, -1, unit_moments(4, 2), names)  # the last that has some
    assert r.unit_moments(1)[0] == ()
    assert len(r.unit_moments(1)[1]) == 0
    with pytest.raises(IndexError, match="step=3 is out of range"):
        r.unit_moments(3)
    r.verify()


def test_their_statistics_are_those_of_any_other_and_nan_where_there_are_none() -> None:
    r = written(None, units=True)
    for stat, statistic in UNIT_STATISTICS.items():
        values = r.values("activation", stat)
        for t in (0, 2):
            np.testing.assert_array_equal(values[t], statistic.function(unit_moments(4, t)))
        assert np.isnan(values[1]).all()
        np.testing.assert_array_equal(r.values("activation", stat, [2, 1, 0, 2]), values[[2, 1, 0, 2]])
        profile = r.profile("activation", stat)
        assert (profile.step, profile.stat, len(profile.sites)) == (2, stat, 4)
        np.testing.assert_array_equal(profile.values, values[2])
        assert r.profile("activation", stat, role="norm").values.shape == (0,)
        assert r.profile("activation", stat, step=1).sites == ()
        assert not r.is_sampled(stat)
    with pytest.raises(ValueError, match="stat='dead_fraction' is of activations only, got signal='weight'"):
        r.values("weight", "dead_fraction")
    with pytest.raises(ValueError, match=r"stat='dead_fracton' is unknown \(did you mean 'dead_fraction'\?\)"):
        r.profile("activation", "dead_fracton")
    with pytest.raises(ValueError, match="signal='wieght' is unknown"):
        r.values("wieght", "rms")  # type: ignore[arg-type]


def test_rows_come_in_order_of_execution_whatever_the_order_in_which_they_were_given() -> None:
    r = Recording.create()
    ids = np.array([r.add_site(site("activation", i, depth=9 - i)) for i in range(4)])
    r.append(StepRecord(0, units=(ids[[2, 0, 3]], unit_moments(3))))
    assert_units(r, 0, unit_moments(3).take([2, 0, 1]), ["layers.3", "layers.2", "layers.0"])
    values = r.values("activation", "batch_spread")
    np.testing.assert_array_equal(
        values, [[*unit_moments(3).batch_spread[[2, 0]], np.nan, unit_moments(3).batch_spread[1]]]
    )


def test_fractions_are_of_all_units_and_entries_and_nan_where_they_do_not_apply() -> None:
    rows = [[100, 10, 5, 4, 3, 2, 25, 0.25, 0.75, 0.25, 0.5], [0, 0, 0, 0, 0, 1, -1, np.nan, np.nan, np.nan, np.nan]]
    m = UnitMoments.from_rows(rows)
    expected = {
        "dead_fraction": 0.3,
        "silent_fraction": 0.4,
        "saturated_fraction": 0.25,
        "slope_rms": 0.5,
        "batch_similarity": 0.75,
        "batch_spread": 0.25,
        "unit_spread": 0.5,
    }
    assert set(expected) == set(UNIT_STATISTICS)
    for stat, value in expected.items():
        np.testing.assert_array_equal(UNIT_STATISTICS[stat].function(m), [value, np.nan], err_msg=stat)
    assert not set(UNIT_STATISTICS) & set(STATISTICS)


def test_columns_of_different_lengths_are_refused() -> None:
    columns = [np.ones(2)] * (len(UNIT_COLUMNS) - 1)
    with pytest.raises(ValueError, match="of one length"):
        UnitMoments(*columns, np.ones(3))
    r = Recording.create()
    weight = r.add_site(site("weight", 0))
    with pytest.raises(ValueError, match=f"activation has site id {weight}, which is a site of weight"):
        r.append(StepRecord(0, units=(np.array([weight]), unit_moments(1))))
    with pytest.raises(ValueError, match="activation has 1 site ids and 2 rows"):
        r.append(StepRecord(0, units=(np.array([weight]), unit_moments(2))))
    assert len(r.steps) == 0


def test_exports_have_their_statistics_where_there_are_some(tmp_path: Path) -> None:
    r = written(None, units=True)
    export_csv(r, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[5:] == [*STATISTICS, *UNIT_STATISTICS]
    export_npz(r, tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz", allow_pickle=False) as arrays:
        for stat in UNIT_STATISTICS:
            values = r.values("activation", stat)
            np.testing.assert_array_equal(arrays[f"activation/{stat}"], values)
            table = [float(row[stat]) for row in rows if row["signal"] == "activation"]
            np.testing.assert_array_equal(np.reshape(table, values.shape), values)
            assert all(row[stat] == "nan" for row in rows if row["signal"] != "activation")
        assert "weight/dead_fraction" not in arrays


def test_a_file_of_schema_version_2_reads_as_what_was_written_and_is_copied_as_it_is(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_bytes(OLD.read_bytes())
    q = Recording.load(old)
    assert_same(q, written(None), stats=tuple(STATISTICS))
    np.testing.assert_array_equal(q.histogram("activation", "layers.2", 1)[1], np.arange(128, 192) + 1)
    assert not q.has_unit_moments.any()
    assert np.isnan(q.values("activation", "dead_fraction")).all()
    assert len(q.unit_moments()[1]) == 0
    assert q._source.writer is None  # read as it lies: a long one is not written anew
    q.verify()
    q.save(tmp_path / "copy")
    assert_same(Recording.load(tmp_path / "copy"), q, stats=tuple(STATISTICS))
    Recording.load(tmp_path / "copy").verify()
    assert old.read_bytes() == OLD.read_bytes()


def test_a_damaged_file_of_schema_version_2_is_refused_or_true(tmp_path: Path) -> None:
    whole, old, refused = OLD.read_bytes(), tmp_path / "old", 0
    old.write_bytes(whole)
    truth = Recording.load(old)
    for i in range(0, len(whole), 41):
        data = bytearray(whole)
        data[i] ^= 1 << i % 8
        old.write_bytes(data)
        try:
            q = Recording.load(old)
        except RecordingError:
            refused += 1
        else:
            assert_same(q, truth)
    assert refused > 0.4 * len(whole) / 41


def test_steps_that_wait_keep_their_unit_moments_in_memory_and_beyond_it() -> None:
    for limit in (0, 10**6):
        backlog = Backlog(limit)
        for at in range(3):
            assert backlog.push(EncodedStep(at, at, 0, -1, b"n", b"m", b"h", b"units" * at))
        for at in range(3):
            step = backlog.first()
            assert step is not None
            assert step.units == b"units" * at
            backlog.pop()


def test_of_ranks_the_lowest_one_s_are_taken(tmp_path: Path) -> None:
    paths = []
    for rank in (1, 0):
        paths.append(tmp_path / f"r{rank}")
        with Recording.create(paths[-1], facts={"rank": rank, "ranks": 2}) as r:
            # The sites have other ids on the other rank.
            order = (0, 1, 2) if rank else (2, 0, 1)
            ids = np.array([r.add_site(Site("activation", f"{i}", f"{i}", "Linear", depth=i)) for i in order])
            moments = Moments.concat([Moments.from_array([float(i)]) for i in order])
            for step in range(2):
                units = (ids, unit_moments(3, 5 * rank)) if step == 0 else None
                r.append(StepRecord(step, moments={"activation": (ids, moments)}, units=units))
    merged = merge_recordings(paths, tmp_path / "merged")
    np.testing.assert_array_equal(merged.has_unit_moments, [True, False])
    assert_units(merged, 0, unit_moments(3).take([1, 2, 0]), ["0", "1", "2"])


def test_several_statistics_or_notes_at_once_are_those_that_are_asked_for_one_by_one() -> None:
    recording = written(None, steps=7, units=True)
    stats = ("rms", "dead_fraction", "count", "batch_spread")
    for steps in (None, [4, -1, 0], [], [2]):
        for stat, several in zip(stats, recording.values_of("activation", stats, steps), strict=True):
            np.testing.assert_array_equal(several, recording.values("activation", stat, steps))
    names = ("loss", "ok", "phase", "missing")
    for name, several in zip(names, recording.notes_of(names), strict=True):
        np.testing.assert_array_equal(several, recording.notes(name))
    np.testing.assert_array_equal(recording.notes_of(("loss",), [1, 3])[0], recording.notes("loss")[[1, 3]])
    assert recording.notes_of(names, []).shape == (4, 0)
