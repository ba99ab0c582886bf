"""The file under fire: damage, cuts, foreign files, kills, readers and writers side by side."""

from __future__ import annotations

import gzip
import os
import signal as signals
import sqlite3
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradscope.recording import SIGNALS, GradScopeWarning, Moments, Recording, RecordingError, StepRecord
from gradscope.recording import _loading as loading
from gradscope.recording import _verifying as verifying
from gradscope.recording._codec import encode
from gradscope.recording._schema import SCHEMA, TABLES
from tests.recordings import assert_same, fill, rms, site, tensors, unit_moments, written

ROOT = Path(__file__).parent.parent
reproducibly = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["verified whole", "verified as it is read"])
def regime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file as small ones are loaded, and as large ones are."""
    if request.param == "verified as it is read":
        monkeypatch.setattr(loading, "WHOLE_BYTES", 0)
    return str(request.param)


def read_all(path: Path) -> None:
    """Load a recording and ask for everything in it."""
    r = Recording.load(path)
    for signal in SIGNALS:
        r.values(signal, "rms")
        for i in np.flatnonzero(r.recorded(signal)):
            r.moments(signal, int(i))
    for i in range(len(r.steps)):
        r.notes_at(i)
        if r._source.have("histograms", "activation")[i]:
            r.histogram("activation", "layers.0", i)
        r.unit_moments(i)


def verify_all(path: Path) -> None:
    """Load a recording and verify it."""
    Recording.load(path).verify()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A closed recording in pages of 512 bytes, so small that every byte of it can be damaged."""
    path = tmp_path_factory.mktemp("whole") / "r.gscope"
    written(path, steps=2, sites=2, units=True).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA page_size=512")
        connection.execute("VACUUM")
    return path.read_bytes()


@pytest.fixture
def survives(whole: bytes, tmp_path: Path, regime: str) -> Callable[[bytes], bool]:
    """Whether bytes load as the true recording; False where they are refused, and nothing else may happen.

    A small file is refused when it is loaded, a large one then or when a row is read.
    """
    path = tmp_path / "r.gscope"
    path.write_bytes(whole)
    truth = Recording.load(path)
    expected = {(s, stat): truth.values(s, stat) for s, stat in (("activation", "rms"), ("update", "count"))}
    truth_of = [truth.values("weight", "mean", [i]) for i in range(2)]

    def check(data: bytes) -> bool:
        for side in tmp_path.iterdir():
            side.unlink()
        path.write_bytes(data)
        try:
            r = Recording.load(path)
        except RecordingError as e:
            return refuse(e)
        try:
            r.verify()
            sound = True
        except RecordingError as e:
            assert regime == "verified as it is read"
            sound = refuse(e)
        # What is known of it now is true, and what is read is, or is refused.
        assert r.sites == truth.sites
        assert r.facts == truth.facts
        np.testing.assert_array_equal(r.steps, truth.steps)
        np.testing.assert_array_equal(r.skipped, truth.skipped)
        answers: list[tuple[Callable[[], object], object]] = [
            (lambda s=s, stat=stat: r.values(s, stat), values) for (s, stat), values in expected.items()
        ]
        answers += [(lambda i=i: r.values("weight", "mean", [i]), truth_of[i]) for i in range(2)]
        answers.append((lambda: r.notes("loss"), [1.0, 0.5]))
        answers.append((lambda: r.values("activation", "batch_spread")[0], unit_moments(2).batch_spread))
        answers.append((lambda: r.histogram("activation", "layers.0", 0)[1], np.arange(64)))
        for ask, answer in answers:
            try:
                np.testing.assert_array_equal(ask(), answer)
            except RecordingError as e:
                assert not sound
                refuse(e)
        return sound

    def refuse(e: RecordingError) -> bool:
        assert str(path) in str(e)
        assert str(e).isprintable()
        return False

    return check


# -- damage ----------------------------------------------------------------------------------------------------


def test_one_flipped_bit_anywhere_gives_the_true_numbers_or_one_error(
    whole: bytes, survives: Callable[[bytes], bool]
) -> None:
    assert survives(whole)
    refused = 0
    for i in range(0, len(whole), 5):
        data = bytearray(whole)
        data[i] ^= 1 << (i // 5) % 8
        refused += not survives(bytes(data))
    assert refused > 0.4 * len(whole) / 5  # the others hit unused space


def test_a_file_cut_at_any_length_is_refused(whole: bytes, survives: Callable[[bytes], bool]) -> None:
    for length in range(0, len(whole), 3):
        assert not survives(whole[:length])


@reproducibly
@given(st.data())
def test_overwritten_swapped_and_zeroed_stretches_give_the_true_numbers_or_one_error(
    whole: bytes, survives: Callable[[bytes], bool], data: st.DataObject
) -> None:
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        length = data.draw(st.sampled_from([1, 2, 4, 8, 64, 512]))
        source = data.draw(st.none() | st.integers(0, len(whole) - 1) | st.binary(min_size=1, max_size=64))
        piece = bytes(length) if source is None else source if isinstance(source, bytes) else whole[source:][:length]
        damaged[at : at + len(piece)] = piece[: len(whole) - at]
    survives(bytes(damaged))


@pytest.mark.usefixtures("regime")
@pytest.mark.parametrize("ask", [read_all, verify_all])
def test_a_missing_row_an_old_row_and_a_doubled_row_are_noticed(tmp_path: Path, ask: Callable[[Path], None]) -> None:
    path = tmp_path / "r"
    written(path, units=True).close()
    good = path.read_bytes()
    for change in (
        "DELETE FROM steps WHERE n = 2",  # a tail that was cut off with care
        "DELETE FROM moments WHERE n = (SELECT MAX(n) FROM moments)",
        "DELETE FROM moments WHERE n = 0",
        "DELETE FROM moments WHERE n = 1",
        "DELETE FROM moments",
        "DELETE FROM histograms WHERE n = 1",
        "DELETE FROM histograms",
        "DELETE FROM units WHERE n = 2",
        "DELETE FROM units",
        "UPDATE units SET n = 1 WHERE n = 2",
        "INSERT INTO units SELECT n + 3, value, crc FROM units WHERE n = 0",
        "UPDATE units SET value = (SELECT value FROM units WHERE n = 0), "
        "crc = (SELECT crc FROM units WHERE n = 0) WHERE n = 2",
        "DELETE FROM seal",
        "DELETE FROM header WHERE n = 0",
        "UPDATE header SET value = (SELECT value FROM header WHERE n = 0) WHERE n = 1",
        "UPDATE steps SET step = 7 WHERE n = 1",
        "UPDATE steps SET flags = flags | 1 WHERE n = 0",
        "UPDATE steps SET flags = 0",
        "UPDATE moments SET frame = 1 - frame WHERE n = 0",
        "UPDATE moments SET frame = -1 WHERE n = 0",
        "UPDATE moments SET value = (SELECT value FROM moments WHERE n = 1), "
        "crc = (SELECT crc FROM moments WHERE n = 1) WHERE n = 2",
        "UPDATE moments SET value = CAST(value AS TEXT) WHERE n = 0",
        "UPDATE moments SET crc = 'x' WHERE n = 0",
        "INSERT INTO sites SELECT n + 20, value, crc FROM sites WHERE n = 1",
        "UPDATE frames SET value = zeroblob(length(value)) WHERE n = 1",
        "DELETE FROM frames WHERE n = (SELECT MAX(n) FROM frames)",
        "INSERT INTO frames SELECT n + 1, value, crc FROM frames ORDER BY n DESC LIMIT 1",
        "INSERT INTO moments SELECT n + 3, frame, value, crc FROM moments WHERE n = 0",
        "INSERT INTO moments SELECT -1, frame, value, crc FROM moments WHERE n = 0",
        "INSERT INTO histograms SELECT n + 3, value, crc FROM histograms WHERE n = 0",
        "INSERT INTO seal SELECT 1, value, crc FROM seal",
        "UPDATE sites SET value = (SELECT value FROM sites WHERE n = 1), crc = (SELECT crc FROM sites WHERE n = 1)",
    ):
        path.write_bytes(good)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(change)
        with pytest.raises(RecordingError, match=r"is damaged: .*; restore it from a copy"):
            ask(path)


Change = Callable[[tuple[tuple[int, ...], bytes]], tuple[object, ...]]


def forge(path: Path, table: str, n: int, change: Change) -> None:
    """Change keys and value of a row and mend every checksum, as only a program could."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        contents = verifying.contents_of(connection, whole=True)
        identity = 0 if table == "header" else contents.identity
        (row,) = [row for row, _ in verifying.verified(connection, table, identity, "WHERE n = ?", (n,))]
        (old,) = connection.execute(f"SELECT crc FROM {table} WHERE n = ?", (n,)).fetchone()
        keys, value = change(row[1:])
        crc = TABLES.checksum(table, n, keys, value, identity)  # type: ignore[arg-type]
        connection.execute(TABLES.put[table], (n, *keys, value, crc))  # type: ignore[misc]
        contents.tally.exchange(table, old, crc)
        seal = TABLES.seal(contents.complete, contents.tally)
        connection.execute(TABLES.put["seal"], (0, seal, TABLES.checksum("seal", 0, (), seal, contents.identity)))


@pytest.mark.usefixtures("regime")
@pytest.mark.parametrize(
    ("table", "n", "change"),
    [
        ("steps", 0, lambda row: ((row[0][0], 1 << 40), row[1])),
        ("steps", 0, lambda row: ((row[0][0], 1), row[1])),  # no histograms, where there are some
        ("steps", 1, lambda row: (row[0], b"{")),
        ("moments", 1, lambda row: ((0,), row[1])),  # the frame of nothing
        ("moments", 1, lambda row: ((0,), b"")),
        ("moments", 1, lambda row: ((-1,), row[1])),
        ("moments", 1, lambda row: ((99,), row[1])),
        ("moments", 1, lambda row: (row[0], row[1][:-1])),
        ("frames", 1, lambda row: ((), row[1] + b"x")),
        ("frames", 1, lambda row: ((), row[1].replace(b"\x04\x00\x00\x00", b"\xff\x00\x00\x00"))),  # ids, and rows
        ("frames", 1, lambda row: ((), row[1][:6] + b"\x63\x00\x00\x00" + row[1][10:])),  # a site that is none
        ("frames", 1, lambda row: ((), row[1][:1] + b"\x07" + row[1][2:])),  # a signal that is none
        ("frames", 1, lambda row: ((), row[1][:1] + b"\x01" + row[1][2:])),  # a signal twice
        ("histograms", 1, lambda row: ((), row[1][:-3])),
        ("histograms", 1, lambda row: ((), encode([np.array([1, 0, 64]), np.arange(4), np.ones((4, 64), int)]))),
        ("histograms", 1, lambda row: ((), encode([np.array([0, 9, 3]), np.arange(4), np.ones((4, 64), int)]))),
        ("histograms", 1, lambda row: ((), encode([np.array([0, 0, 64]), np.arange(4) + 90, np.ones((4, 64), int)]))),
        ("units", 2, lambda row: ((), row[1][:-3])),
        ("units", 2, lambda row: ((), encode([np.arange(4)] * 11))),  # a column too few
        ("units", 2, lambda row: ((), encode([np.arange(4) + 90] + [np.arange(4)] * 11))),  # sites that are none
        ("units", 2, lambda row: ((), encode([np.arange(3)] + [np.arange(4)] * 11))),
        ("sites", 3, lambda row: ((), row[1].replace(b"activation", b"activities"))),
        ("header", 1, lambda row: ((), b"3")),
    ],
)
def test_nonsense_under_right_checksums_is_one_error(tmp_path: Path, table: str, n: int, change: Change) -> None:
    path = tmp_path / "r"
    written(path, units=True).close()
    forge(path, table, n, lambda row: row)
    read_all(path)
    forge(path, table, n, change)
    with pytest.raises(RecordingError, match=r"is damaged: .*; restore it from a copy"):
        read_all(path)


def test_a_second_seal_is_none(tmp_path: Path) -> None:
    path = tmp_path / "r"
    written(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        contents = verifying.contents_of(connection, whole=True)
        seal = TABLES.seal(True, contents.tally)
        connection.execute(TABLES.put["seal"], (1, seal, TABLES.checksum("seal", 1, (), seal, contents.identity)))
    with pytest.raises(RecordingError, match="its seal is missing"):
        Recording.load(path)


@pytest.mark.usefixtures("regime")
@pytest.mark.parametrize("table", ["steps", "moments", "histograms", "units", "sites", "frames"])
def test_rows_of_another_run_do_not_pass_for_its_own(tmp_path: Path, table: str) -> None:
    for name in ("a", "b"):
        written(tmp_path / name, units=True).close()
    n = 2 if table == "units" else 1
    with closing(sqlite3.connect(tmp_path / "a", isolation_level=None)) as connection:
        connection.execute("ATTACH ? AS other", (str(tmp_path / "b"),))
        connection.execute(f"REPLACE INTO {table} SELECT * FROM other.{table} WHERE n = {n}")
    with pytest.raises(RecordingError, match=f"row {n} of table {table} does not match its checksum"):
        read_all(tmp_path / "a")


@pytest.mark.usefixtures("regime")
def test_damage_after_loading_is_noticed_when_the_row_is_read_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "r"
    written(path).close()
    r = Recording.load(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE moments SET value = zeroblob(length(value)) WHERE n = 1")
        connection.execute("DELETE FROM histograms WHERE n = 1")
    for ask in (lambda: r.values("activation", "rms"), lambda: r.profile("weight", step=1), r.verify):
        with pytest.raises(RecordingError, match="row 1 of table moments does not match its checksum"):
            ask()
    with pytest.raises(RecordingError, match="row 1 of table histograms is missing"):
        r.histogram("activation", "layers.0", 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM moments WHERE n = 1")
    for ask in (lambda: r.values("activation", "rms"), lambda: r.values("activation", "rms", [0, 1]), r.verify):
        with pytest.raises(RecordingError, match="row 1 of table moments is missing"):
            ask()
    assert r.values("weight", "rms", [2, 0]).shape == (2, 4)
    assert r.profile("weight", step=2).step == 2
    assert len(r.notes("loss")) == 3


@pytest.mark.usefixtures("regime")
def test_what_is_not_asked_for_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r"
    written(path, steps=40).close()
    r, read = Recording.load(path), []
    real = verifying.TABLES.checksum

    def spy(table: str, n: int, *rest: object) -> int:
        read.append((table, n))
        return real(table, n, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(verifying.TABLES, "checksum", spy)
    r.profile("weight", "rms", 7)
    assert read == [("moments", 7)]
    read.clear()
    r.values("update", "std", [30, 3, -1])
    assert read == [("moments", 3), ("moments", 30), ("moments", 39)]
    read.clear()
    assert (r.findings.sum(), r.nonfinite("activation").sum(), r.recorded("update").sum()) == (40, 40, 40)
    assert read == []


def test_a_large_file_is_loaded_without_its_moments_and_verify_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r"
    written(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE moments SET crc = 0 WHERE n = 1")
    monkeypatch.setattr(loading, "WHOLE_BYTES", path.stat().st_size)
    with pytest.raises(RecordingError, match="row 1 of table moments"):
        Recording.load(path)
    monkeypatch.setattr(loading, "WHOLE_BYTES", path.stat().st_size - 1)
    r = Recording.load(path)
    with pytest.raises(RecordingError, match="row 1 of table moments"):
        r.verify()


def test_what_is_whole_verifies_in_every_state(tmp_path: Path) -> None:
    for path in (tmp_path / "r", None):
        r = written(path)
        r.verify()
        r.append(StepRecord(3))
        r.verify()
        r.close()
        r.verify()
    Recording.load(tmp_path / "r").verify()


def test_a_stranger_s_schema_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r"
    written(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("ALTER TABLE moments RENAME TO hidden")
        connection.execute(
            "CREATE VIEW moments AS WITH RECURSIVE t(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM t) "
            "SELECT n, 0 AS at, 0 AS signal, randomblob(10) AS value, 0 AS crc FROM t"
        )
    with pytest.raises(RecordingError, match="its tables are not those of schema version 3"):
        Recording.load(path)


# -- foreign files ---------------------------------------------------------------------------------------------


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", "x" * 1000)


def _database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE steps(n)")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: None, "there is no recording at {p}"),
        (lambda p: p.mkdir(), "{p} is a directory, not a recording"),
        (lambda p: p.touch(), "{p} is an empty file, not a recording"),
        (lambda p: p.write_text("step,loss\n1,0.5\n" * 99), "{p} is some other file, not a recording"),
        (lambda p: p.write_text("x"), "{p} is some other file, not a recording"),
        (
            lambda p: p.write_bytes(b"SQLite format 3\0" + bytes(5000)),
            "recording {p} is damaged: file is not a database",
        ),
        (_zip, "{p} is a zip archive, not a recording"),
        (lambda p: p.write_bytes(gzip.compress(bytes(9999))), "{p} is a gzip file, not a recording"),
        (lambda p: np.save(p.open("wb"), np.eye(30)), "{p} is a .npy file, not a recording"),
        (_database, "{p} is an SQLite database, but not a recording"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_foreign_file_is_named_for_what_it_is(make: Callable[[Path], object], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "some #1 %20 ?file.gscope"
    make(path)
    with pytest.raises(RecordingError) as caught:
        Recording.load(path)
    assert str(caught.value).startswith(sentence.format(p=path))
    assert "\n" not in str(caught.value)


def test_a_newer_schema_names_both_versions(tmp_path: Path) -> None:
    written(tmp_path / "r").close()
    with closing(sqlite3.connect(tmp_path / "r")) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA + 6}")
    with pytest.raises(RecordingError, match=r"has schema version 9, and this GradScope reads up to 3: upgrade"):
        Recording.load(tmp_path / "r")


TRY_AS_NOBODY = """
import os, sys
from gradscope.recording import Recording, RecordingError
if os.geteuid() == 0:  # root may do everything
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    print(getattr(Recording, sys.argv[1])(sys.argv[2]).steps.tolist())
except RecordingError as e:
    print(e)
"""


def as_nobody(method: str, path: Path) -> str:
    """What a process without privileges says to `Recording.load` or `Recording.create`."""
    command = [sys.executable, "-c", TRY_AS_NOBODY, method, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that every user can enter; pytest's own lie below one that is private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_path_without_permission_is_one_sentence(open_path: Path) -> None:
    path = open_path / "r"
    written(path).close()
    assert as_nobody("load", path) == "[0, 1, 2]\n"  # reading needs no writing beside it
    path.chmod(0)
    assert as_nobody("load", path) == f"{path} cannot be read: Permission denied\n"
    open_path.chmod(0o555)
    answer = as_nobody("create", open_path / "new")
    open_path.chmod(0o755)
    assert answer == f"recording {open_path / 'new'} cannot be created: Permission denied\n"


def test_a_killed_run_s_file_without_its_log_opens_where_nothing_can_be_written(open_path: Path) -> None:
    r = written(open_path / "r")
    assert r._source.writer is not None
    r._source.writer.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    folder = open_path / "read-only"
    folder.mkdir()
    (folder / "r").write_bytes((open_path / "r").read_bytes())
    folder.chmod(0o555)
    assert as_nobody("load", folder / "r") == "[0, 1, 2]\n"
    folder.chmod(0o755)
    r.close()


# -- places ----------------------------------------------------------------------------------------------------


def test_an_existing_path_is_replaced_only_when_asked_and_only_if_it_is_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "r"
    written(path).close()
    for make in (Recording.create, written(None).save):
        with pytest.raises(RecordingError, match=r"r exists: choose another path, or remove it"):
            make(path)
        assert len(Recording.load(path).steps) == 3
    Recording.create(path, overwrite=True).close()
    assert len(Recording.load(path).steps) == 0
    written(None).save(path, overwrite=True)
    assert len(Recording.load(path).steps) == 3
    for text, sentence in ((b"my thesis" * 99, "some other file"), (b"", "")):
        path.write_bytes(text)
        if sentence:
            with pytest.raises(RecordingError, match=sentence):
                Recording.create(path, overwrite=True)
            assert path.read_bytes() == text
        else:
            Recording.create(path, overwrite=True).close()  # tempfile's: nothing is lost
    path.unlink()
    _database(path)
    with pytest.raises(RecordingError, match="not a recording: it is not replaced"):
        written(None).save(path, overwrite=True)


def test_a_damaged_recording_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "r"
    written(path).close()
    data = bytearray(path.read_bytes())
    data[5000:9000] = bytes(4000)
    path.write_bytes(data)
    written(None).save(path, overwrite=True)
    assert len(Recording.load(path).steps) == 3


def test_a_recording_that_is_being_written_cannot_be_replaced(tmp_path: Path) -> None:
    first = written(tmp_path / "r")
    with pytest.raises(RecordingError, match="is in use, so it cannot be replaced: close it first"):
        Recording.create(tmp_path / "r", overwrite=True)
    first.append(StepRecord(3))
    first.close()
    np.testing.assert_array_equal(Recording.load(tmp_path / "r").steps, [0, 1, 2, 3])


def test_a_missing_or_impossible_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "no" / "r", tmp_path / "file" / "r"):
        for make in (Recording.create, written(None).save):
            with pytest.raises(RecordingError, match="there is no directory"):
                make(path)
            with pytest.raises(RecordingError, match="cannot be created: File name too long"):
                make(tmp_path / ("r" * 300))
    with pytest.raises(RecordingError, match="cannot be read: File name too long"):
        Recording.load(tmp_path / ("r" * 300))
    with pytest.raises(RecordingError, match="is a directory, not a place for a recording"):
        Recording.create(tmp_path)


def test_a_log_left_by_a_killed_run_is_not_taken_for_the_new_file_s(tmp_path: Path) -> None:
    path = tmp_path / "r"
    kill_after(path, acknowledged=5)
    assert (tmp_path / "r-wal").exists()
    written(None).save(path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]
    assert len(Recording.load(path).steps) == 3


# -- while it grows --------------------------------------------------------------------------------------------

WRITE_ON = """
import sys
import tempfile
import numpy as np
from gradscope.recording import Recording
from tests.recordings import fill, site, tensors
from gradscope.recording import Moments, Site, StepRecord
recording = Recording.create(sys.argv[1], facts={"seed": 0})
ids = np.array([recording.add_site(site("weight", i)) for i in range(100)])
for step in range(100_000):
    if step % 7 == 3:
        recording.add_site(site("update", step))
    values = np.arange(100.0) + step
    none = np.zeros(100, np.int64)
    moments = Moments(none + 1, values, values, values, values, none, none, none)
    recording.append(StepRecord(step, notes={"loss": float(step)}, moments={"weight": (ids, moments)}))
    print(step, flush=True)
"""


@pytest.mark.skipif(not hasattr(signals, "setitimer"), reason="no interval timer")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an interrupt inside a finalizer
def test_an_interrupt_at_any_moment_leaves_whole_steps_and_a_recording_that_goes_on(tmp_path: Path) -> None:
    armed = False

    def interrupt(*_: object) -> None:
        if armed:
            raise KeyboardInterrupt

    before, rng, interrupts = signals.signal(signals.SIGALRM, interrupt), np.random.default_rng(0), 0
    try:
        for path in (tmp_path / "r", None):
            r = Recording.create(path)
            ids = np.array([r.add_site(site("weight", 0))])
            for step in range(300):
                record = StepRecord(step, moments={"weight": (ids, Moments.from_array([float(step)]))})
                try:
                    armed = True
                    signals.setitimer(signals.ITIMER_REAL, float(rng.uniform(1e-5, 3e-4)))
                    r.append(record)
                except KeyboardInterrupt:
                    interrupts += 1
                finally:
                    armed = False
            r.append(StepRecord(300))
            r.save(tmp_path / "copy", overwrite=True)
            again = Recording.load(tmp_path / "copy")
            np.testing.assert_array_equal(again.steps, r.steps)
            np.testing.assert_array_equal(again.values("weight", "mean")[:-1, 0], r.steps[:-1])
            r.close()
    finally:
        signals.setitimer(signals.ITIMER_REAL, 0)
        signals.signal(signals.SIGALRM, before)
    assert interrupts > 20


def start_writer(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITE_ON, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def kill_after(path: Path, acknowledged: int, delay: float = 0.0) -> int:
    """Kill a writing process; the last step whose `append` had returned by then."""
    with start_writer(path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= acknowledged:
                break
        time.sleep(delay)
        process.send_signal(signals.SIGKILL)
        rest = process.stdout.read().split()
    return int(rest[-1]) if rest else acknowledged


def assert_true_prefix(r: Recording) -> None:
    steps = len(r.steps)
    np.testing.assert_array_equal(r.steps, np.arange(steps))
    np.testing.assert_array_equal(r.notes("loss"), np.arange(steps))
    sites = 100 if r.sites else 0  # killed before its first step, it has neither
    np.testing.assert_array_equal(r.values("weight", "mean"), np.arange(steps)[:, None] + np.arange(float(sites)))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_kill_9_at_any_moment_loses_at_most_the_step_in_flight(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / f"{i}.gscope"
        last = kill_after(path, acknowledged=int(rng.integers(1, 400)), delay=float(rng.uniform(0, 0.02)))
        r = Recording.load(path)
        assert last + 1 <= len(r.steps) <= last + 2
        assert not r.complete
        assert_true_prefix(r)
        r.save(tmp_path / "mended", overwrite=True)
        assert_same(Recording.load(tmp_path / "mended"), r)


def test_a_killed_run_whose_log_is_cut_or_flipped_shows_a_true_prefix_or_one_error(tmp_path: Path) -> None:
    path, log = tmp_path / "r", tmp_path / "r-wal"
    kill_after(path, acknowledged=12)
    whole, data = path.read_bytes(), log.read_bytes()
    rng = np.random.default_rng(0)
    lengths = set()
    for i in range(160):
        damaged = bytearray(data)
        if i % 2:
            damaged = damaged[: int(rng.integers(len(data)))]
        else:
            damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        (tmp_path / "r-shm").unlink(missing_ok=True)
        path.write_bytes(whole)
        log.write_bytes(damaged)
        try:
            r = Recording.load(path)
        except RecordingError:
            continue
        assert_true_prefix(r)
        lengths.add(len(r.steps))
    assert len(lengths) > 5


def test_another_process_reads_a_recording_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with start_writer(path) as process:
        assert process.stdout is not None
        seen = []
        while len(set(seen)) < 8:
            last = int(process.stdout.readline())
            if last % 20 == 0:
                r = Recording.load(path)
                assert len(r.steps) > last
                assert_true_prefix(r)
                seen.append(len(r.steps))
        process.kill()
    assert seen == sorted(seen)


def test_closing_leaves_exactly_one_file(tmp_path: Path) -> None:
    r = written(tmp_path / "r")
    assert {p.name for p in tmp_path.iterdir()} == {"r", "r-wal", "r-shm"}
    r.close()
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
    Recording.load(tmp_path / "r").values("weight", "rms")
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_closing_under_a_reader_s_eyes_loses_nothing(tmp_path: Path) -> None:
    r = written(tmp_path / "r")
    assert r._source.writer is not None
    r._source.writer.connection.execute("PRAGMA busy_timeout=50")
    with r._source.connection() as reader:
        reader.execute("SELECT * FROM steps").fetchall()
        r.close()
    loaded = Recording.load(tmp_path / "r")
    assert loaded.complete
    assert_same(loaded, r)


def test_a_full_disk_is_one_warning_and_every_step_is_written_when_there_is_room(tmp_path: Path) -> None:
    for path in (tmp_path / "r", None):
        r = Recording.create(path)
        assert r._source.writer is not None
        connection = r._source.writer.connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages + 200}")
        with pytest.warns(GradScopeWarning, match="cannot be written .database or disk is full.: its steps") as warned:
            fill(r, steps=400, sites=30)
        assert len(warned) == 1
        written_steps = len(r.steps)
        assert 0 < written_steps < 400
        assert r.waiting == 400 - written_steps
        assert r.values("weight", "rms").shape == (written_steps, 30)
        connection.execute("PRAGMA max_page_count=100000")
        r.append(StepRecord(1000))
        assert r.waiting == 0
        r.save(tmp_path / "copy", overwrite=True)
        r.close()
        again = Recording.load(tmp_path / "copy")
        np.testing.assert_array_equal(again.steps, [*range(400), 1000])
        np.testing.assert_allclose(again.values("weight", "rms")[:-1], rms(tensors(400, 30)[:, 2]), rtol=1e-14)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_leaves_the_recording_to_its_parent(tmp_path: Path) -> None:
    r = written(tmp_path / "r")
    child = os.fork()
    if child == 0:
        try:
            r.append(StepRecord(3))
        except RecordingError as e:
            r.close()
            os._exit(0 if "a forked child cannot write it" in str(e) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    r.append(StepRecord(3))
    r.close()
    np.testing.assert_array_equal(Recording.load(tmp_path / "r").steps, [0, 1, 2, 3])


SPILL = """
import resource
import numpy as np
from gradscope.recording import Moments, Recording, StepRecord
from tests.recordings import site
r = Recording.create()
n = 4000
ids = np.array([r.add_site(site("weight", i)) for i in range(n)])
x = np.random.default_rng(0).normal(size=n)
moments = Moments(np.full(n, 9), x, x, x, x, *[np.arange(n)] * 3)
def append(steps):
    for step in steps:
        r.append(StepRecord(step, moments={"weight": (ids, moments)}))
append(range(50))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
append(range(50, 400))  # 56 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_without_a_path_a_recording_spills_to_disk_and_memory_stays_flat() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPILL], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) < 8 * 1024  # KiB


def test_numpy_and_sqlite_are_all_that_reading_a_recording_imports(tmp_path: Path) -> None:
    written(tmp_path / "r").close()
    code = (
        "import sys; from gradscope.recording import Recording; Recording.load(sys.argv[1]).values('weight', 'rms');"
        "print([m for m in ('torch', 'matplotlib', 'pickle', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() in ("[]", "['pickle']"), done.stderr  # numpy itself imports pickle


def test_a_row_a_step_is_seen_by_any_other_sqlite(tmp_path: Path) -> None:
    written(tmp_path / "r").close()
    with closing(sqlite3.connect(tmp_path / "r")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT COUNT(*) FROM moments").fetchone() == (3,)
    assert isinstance(Recording.load(tmp_path / "r").moments("weight")[1], Moments)
