"""A place in trouble: full disks, refused locks, dead handles. No step is lost in silence, and the training goes on."""

from __future__ import annotations

import os
import re
import signal as signals
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from gradscope.recording import GradScopeWarning, Moments, Recording, RecordingError, Site, StepRecord
from gradscope.recording import _creating as creating
from gradscope.recording import _keeping as keeping
from gradscope.recording._backlog import Backlog, EncodedStep
from gradscope.recording._keeping import Keeper
from tests.under_fire import SITES, append, assert_saved, assert_true, begun, record

ROOT = Path(__file__).parent.parent

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's means to make real trouble")


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for temporary files of the test's own, where what is rescued can be found."""
    path = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


# -- a full disk -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except OSError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@linux
def test_a_full_disk_loses_no_step_and_warns_once(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(7 * 2**20))
    r = begun(small_disk / "r")
    with pytest.warns(GradScopeWarning, match=r"r cannot be written \(.*\): its steps are kept in memory") as warned:
        append(r, range(400))
    assert len(warned) == 1
    held = len(r.steps)
    assert 0 < held < 400
    assert r.waiting == 400 - held
    assert_true(r, range(held))  # what waits is in no answer; what is written is whole
    assert_true(Recording.load(small_disk / "r"), range(held))
    (small_disk / "ballast").unlink()
    r.append(record(400))
    assert r.waiting == 0
    assert_true(r, range(401))
    r.close()
    assert [p.name for p in small_disk.iterdir()] == ["r"]
    assert_saved(small_disk / "r", range(401))


@linux
def test_what_a_full_disk_cannot_take_until_the_end_is_saved_among_the_temporary_files(
    small_disk: Path, temporary: Path
) -> None:
    (small_disk / "ballast").write_bytes(bytes(7 * 2**20))
    r = begun(small_disk / "r")
    with pytest.warns(GradScopeWarning, match="its steps are kept in memory"):
        append(r, range(400))
    held = len(r.steps)
    with pytest.warns(GradScopeWarning, match="r cannot be written .*: it was saved to") as warned:
        r.close()
    assert len(warned) == 1
    (saved,) = temporary.iterdir()
    assert str(warned[0].message).endswith(f"it was saved to {saved}")
    assert r.path == saved
    assert r.waiting == 0
    for q in (r, Recording.load(saved)):
        assert q.complete
        assert_true(q, range(400))
    assert_true(Recording.load(small_disk / "r"), range(held))  # and what was written is where it was


IMPORTS = """
import os, sys, tempfile, time, warnings
from pathlib import Path
from gradscope.recording import Recording, RecordingError
from tests.under_fire import append, assert_true, begun, record
"""


def run(code: str, *argv: str) -> str:
    """What a process of its own prints."""
    command = [sys.executable, "-c", IMPORTS + code, *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


LIMITED = """
import resource
temp, path, lifted = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "lifted"
tempfile.tempdir = temp
r = begun(path)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # the kernel refuses what a file would grow beyond it
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    append(r, range(300))
    print(len(r.steps), r.waiting)
    if lifted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        r.append(record(300))
    r.close()
for w in said:
    print(w.category.__name__, w.message)
"""


@linux
def test_write_errors_of_the_kernel_lose_no_step_once_they_are_over(tmp_path: Path, temporary: Path) -> None:
    out = run(LIMITED, str(temporary), str(tmp_path / "r"), "lifted").splitlines()
    held, waiting = map(int, out[0].split())
    assert (held > 0, held + waiting) == (True, 300)
    assert len(out) == 2
    assert "its steps are kept in memory" in out[1]
    assert_saved(tmp_path / "r", range(301))
    assert list(temporary.iterdir()) == []


@linux
def test_where_even_the_temporary_files_are_full_one_warning_says_how_many_steps_are_lost(
    tmp_path: Path, temporary: Path
) -> None:
    out = run(LIMITED, str(temporary), str(tmp_path / "r"), "not").splitlines()
    held, waiting = map(int, out[0].split())
    assert len(out) == 3
    sentence = rf"GradScopeWarning recording \S+/r cannot be written \(.*\), nor saved in {re.escape(str(temporary))} "
    assert re.match(rf"{sentence}\(.*\): {waiting} steps are lost, the first {held} are kept", out[2])
    assert_true(Recording.load(tmp_path / "r"), range(held))
    assert list(temporary.iterdir()) == []


def fill_disk(r: Recording, pages: int = 0) -> None:
    """No page more for the database: SQLite's own SQLITE_FULL."""
    assert r._source.writer is not None
    connection = r._source.writer.connection
    (now,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={now + pages}")


def free_disk(r: Recording) -> None:
    assert r._source.writer is not None
    r._source.writer.connection.execute("PRAGMA max_page_count=1000000")


def test_a_copy_saved_in_trouble_has_the_steps_sites_and_facts_that_wait_too(tmp_path: Path) -> None:
    r = begun(tmp_path / "r")
    append(r, range(10))
    fill_disk(r)
    with pytest.warns(GradScopeWarning, match="kept in memory"):
        append(r, range(10, 60))
    assert r.waiting > 0
    r.set_fact("late", True)
    r.add_site(Site("weight", "late", "late", "Linear", depth=99))
    held = len(r.steps)
    r.save(tmp_path / "copy")
    q = Recording.load(tmp_path / "copy")
    assert [s.name for s in q.sites][-1] == "late"
    np.testing.assert_array_equal(q.steps, np.arange(60))
    np.testing.assert_array_equal(q.values("weight", "mean")[:, 39], 39 + np.arange(60) / 7)
    assert q.facts == {"seed": 0, "late": True}
    assert len(r.steps) == held  # a copy changes nothing
    free_disk(r)
    r.close()
    np.testing.assert_array_equal(Recording.load(tmp_path / "r").steps, np.arange(60))


def test_a_scope_goes_on_observing_while_the_disk_is_full(tmp_path: Path) -> None:
    import torch

    from gradscope import GradScope

    net = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scope = GradScope(net, optimizer, log=tmp_path / "r")

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            scope(torch.ones(2, 4)).sum().backward()
            optimizer.step()

    train(5)
    fill_disk(scope.recording)
    with pytest.warns(GradScopeWarning, match="its steps are kept in memory") as warned:
        train(30)
    assert len(warned) == 1
    assert scope.recording.waiting > 0
    free_disk(scope.recording)
    train(5)
    scope.close()
    loaded = Recording.load(tmp_path / "r")
    np.testing.assert_array_equal(loaded.steps, np.arange(40))
    assert np.isfinite(loaded.values("update", "rms")).all()


def come_and_go(r: Recording) -> None:
    for start in range(0, 200, 20):
        fill_disk(r, pages=5)
        append(r, range(start, start + 10))
        free_disk(r)
        append(r, range(start + 10, start + 20))


def test_a_step_that_an_interrupt_left_both_written_and_waiting_is_saved_and_written_once(tmp_path: Path) -> None:
    r = begun(tmp_path / "r")
    append(r, range(5))
    assert r._source.writer is not None
    keeper = r._source.writer._keeper
    keeper.backlog.push(EncodedStep(5, 5, 0, 0, b'{"loss":5.0}', b"", b""))
    first = keeper.backlog.first()
    assert first is not None
    keeper.ledger.write(first)  # the interrupt comes before it is taken off
    r.save(tmp_path / "copy")
    r.append(StepRecord(6, notes={"loss": 6.0}))
    r.close()
    np.testing.assert_array_equal(Recording.load(tmp_path / "copy").steps, np.arange(6))
    np.testing.assert_array_equal(Recording.load(tmp_path / "r").steps, np.arange(7))


def test_trouble_that_comes_and_goes_is_one_warning_and_leaves_every_step_in_order(tmp_path: Path) -> None:
    for path in (tmp_path / "r", None):
        r = begun(path)
        with pytest.warns(GradScopeWarning, match="kept in memory") as warned:
            come_and_go(r)
        assert len(warned) == 1
        assert_true(r, range(200))
        r.close()


def test_a_step_that_does_not_fit_is_refused_in_trouble_too(tmp_path: Path) -> None:
    r = begun(tmp_path / "r")
    fill_disk(r)
    with pytest.warns(GradScopeWarning, match="kept in memory"):
        append(r, range(3))
    with pytest.raises(ValueError, match="step=2 comes after step 2; steps only grow"):
        r.append(record(2))
    with pytest.raises(ValueError, match="has site id 77"):
        r.append(StepRecord(9, moments={"weight": (np.array([77]), Moments.empty(1))}))
    free_disk(r)
    r.append(record(3))
    assert_true(r, range(4))
    r.close()


def test_a_temporary_database_in_trouble_is_saved_as_a_file_when_it_is_closed(temporary: Path) -> None:
    r = begun(None)
    append(r, range(5))
    fill_disk(r)
    with pytest.warns(GradScopeWarning, match="recording in memory cannot be written"):
        append(r, range(5, 20))
    with pytest.warns(GradScopeWarning, match="in a temporary database cannot be written .*: it was saved to"):
        r.close()
    assert_true(r, range(20))
    assert r.path in temporary.iterdir()


@pytest.mark.skipif(not hasattr(signals, "setitimer"), reason="no interval timer")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an interrupt inside a finalizer
@pytest.mark.parametrize("limit", [2**28, 20_000])
def test_an_interrupt_in_trouble_neither_loses_a_step_that_waits_nor_doubles_one(tmp_path: Path, limit: int) -> None:
    armed = False

    def interrupt(*_: object) -> None:
        if armed:
            raise KeyboardInterrupt

    r, rng, done, interrupts = begun(tmp_path / "r"), np.random.default_rng(int(os.environ.get("SEED", "0"))), set(), 0
    backlog_of(r).limit = limit
    before = signals.signal(signals.SIGALRM, interrupt)
    try:
        fill_disk(r)
        with pytest.warns(GradScopeWarning, match="kept in memory"):
            append(r, range(30))
        for step in range(30, 300):
            (fill_disk if step % 20 < 10 else free_disk)(r)
            try:
                armed = True
                signals.setitimer(signals.ITIMER_REAL, float(rng.uniform(1e-5, 5e-4)))
                r.append(record(step))
                done.add(step)
            except KeyboardInterrupt:
                interrupts += 1
            finally:
                armed = False
    finally:
        signals.setitimer(signals.ITIMER_REAL, 0)
        signals.signal(signals.SIGALRM, before)
    free_disk(r)
    r.close()
    q = Recording.load(tmp_path / "r")
    assert done | set(range(30)) <= set(q.steps.tolist())
    np.testing.assert_array_equal(q.notes("loss"), q.steps)
    np.testing.assert_array_equal(q.values("weight", "mean")[:, 7], 7 + q.steps / 7)
    assert interrupts > 20


# -- the backlog -----------------------------------------------------------------------------------------------


def backlog_of(r: Recording) -> Backlog:
    assert r._source.writer is not None
    return r._source.writer._keeper.backlog


def encoded(at: int, size: int = 1000) -> EncodedStep:
    return EncodedStep(at, 10 * at, at % 3, at % 5 - 1, b'{"loss":1}', bytes([at % 256]) * size, b"h" * (at % 2))


def test_a_backlog_is_a_queue_whose_memory_is_bounded() -> None:
    backlog, expected, rng = Backlog(limit=20_000), [], np.random.default_rng(0)
    for at in range(500):
        step = encoded(backlog.next_at(at - len(expected)))
        assert step.at == at
        assert backlog.push(step)
        expected.append(step)
        while expected and rng.random() < (0.4 if at < 400 else 0.7):
            assert backlog.first() == expected.pop(0)
            backlog.pop()
        assert len(backlog) == len(expected)
        assert sum(s.size for s in backlog._memory) == backlog._bytes <= 20_000
    assert list(backlog) == expected
    backlog.pop_last()
    assert list(backlog) == expected[:-1]
    backlog.clear()
    assert (len(backlog), backlog.first(), backlog.next_at(7)) == (0, None, 7)


def test_steps_beyond_the_bound_of_memory_spill_to_disk_and_come_back_in_order(tmp_path: Path) -> None:
    r = begun(tmp_path / "r")
    backlog_of(r).limit = 20_000
    append(r, range(3))
    fill_disk(r)
    with pytest.warns(GradScopeWarning, match="kept in memory"):
        append(r, range(3, 200))
    assert backlog_of(r)._spill is not None
    r.save(tmp_path / "copy")
    assert_saved(tmp_path / "copy", range(200))
    free_disk(r)
    append(r, range(200, 210))
    assert backlog_of(r)._spill is None
    assert_true(r, range(210))
    r.close()


def test_where_no_place_is_left_for_what_waits_it_is_said_how_many_steps_are_lost(tmp_path: Path) -> None:
    r = begun(tmp_path / "r")
    backlog_of(r).limit = 20_000
    fill_disk(r)
    with pytest.warns(GradScopeWarning, match="kept in memory"):
        append(r, range(100))
    spill = backlog_of(r)._spill
    assert spill is not None
    (pages,) = spill.execute("PRAGMA page_count").fetchone()
    spill.execute(f"PRAGMA max_page_count={pages}")
    with pytest.warns(GradScopeWarning, match="no room left") as warned:
        append(r, range(100, 150))
    waiting = r.waiting
    assert len(warned) == 1
    assert str(warned[0].message).startswith(f"step {waiting} of recording {tmp_path / 'r'} is lost: ")
    free_disk(r)
    with pytest.warns(GradScopeWarning, match=rf"^{150 - waiting} steps of recording .* are lost"):
        r.close()
    assert_saved(tmp_path / "r", range(waiting))


# -- locks -----------------------------------------------------------------------------------------------------

HOLD_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
"""


def test_a_process_that_holds_the_lock_stops_no_training_and_costs_no_step(tmp_path: Path) -> None:
    r = begun(tmp_path / "r")
    append(r, range(5))
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "r")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        start = time.monotonic()
        with pytest.warns(GradScopeWarning, match="cannot be written .database is locked.: its steps are kept"):
            append(r, range(5, 6))
        first = time.monotonic() - start
        append(r, range(6, 40))
        others = time.monotonic() - start - first
        # The first waits LOCK_S for what may be a short transaction; 34 further ones wait for nothing.
        assert first < 2 * keeping.LOCK_S
        assert others < keeping.LOCK_S
        assert r.waiting == 35
        process.stdin.write("\n")
        process.stdin.flush()
    r.append(record(40))
    assert_true(r, range(41))
    r.close()
    assert_saved(tmp_path / "r", range(41))


REFUSE_LOCKS = """
import ctypes, errno, struct
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 72, "aarch64": 25}[os.uname().machine]  # of the system call fcntl
load, equal, answer = 0x20, 0x15, 0x06
F_SETLK, F_SETLKW, F_OFD_SETLK = 6, 7, 37
error = 0x00050000 | getattr(errno, sys.argv[3])
program = b"".join(
    struct.pack("HBBI", *step)
    for step in [
        (load, 0, 0, 0), (equal, 0, 5, number), (load, 0, 0, 24),
        (equal, 2, 0, F_SETLK), (equal, 1, 0, F_SETLKW), (equal, 0, 1, F_OFD_SETLK),
        (answer, 0, 0, error), (answer, 0, 0, 0x7FFF0000),
    ]
)
code = ctypes.create_string_buffer(program, len(program))
head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
def refuse_locks():  # from here on the kernel refuses every lock of this process (seccomp)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(head)), 0, 0):
        print("no seccomp")
        sys.exit()
"""

GROW_WITHOUT_LOCKS = """
folder = Path(sys.argv[1])
tempfile.tempdir = sys.argv[2]
refuse_locks()
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    r = begun(folder / "r")
    append(r, range(20))
    assert_true(r, range(20))
    r.save(folder / "copy")
    r.close()
    r.values("weight", "rms")
    again = Recording.load(folder / "r")
    assert_true(again, range(20))
    Recording.create(folder / "copy", overwrite=True).close()
for w in said:
    print(w.category.__name__, w.message)
"""


@linux
@pytest.mark.parametrize("error", ["ENOLCK", "EOPNOTSUPP"])
def test_where_the_kernel_refuses_every_lock_a_recording_still_gets_to_its_path(
    tmp_path: Path, temporary: Path, error: str
) -> None:
    code = "from gradscope.recording import _opening\n_opening.TIMEOUT_S = 0.5\n"
    out = run(code + REFUSE_LOCKS + GROW_WITHOUT_LOCKS, str(tmp_path), str(temporary), error).splitlines()
    if out == ["no seccomp"]:
        pytest.skip("no seccomp filters here")
    sentence = f"GradScopeWarning recording {tmp_path / 'r'} cannot grow in its directory \\("
    assert re.match(rf"{sentence}.*\): it grows in a temporary database and is saved to its path when", out[0])
    assert len(out) == 2  # the other recording says it too
    assert_saved(tmp_path / "r", range(20))
    assert Recording.load(tmp_path / "copy").complete
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "r"]
    assert list(temporary.iterdir()) == []


@linux
def test_a_complete_recording_can_be_read_where_locks_are_refused_and_one_that_grows_says_why_not(
    tmp_path: Path,
) -> None:
    r = begun(tmp_path / "grows")
    append(r, range(3))
    r.save(tmp_path / "whole")
    code = """
from gradscope.recording import _opening
_opening.TIMEOUT_S = 0.1
refuse_locks()
assert_true(Recording.load(Path(sys.argv[1]) / "whole"), range(3))
try:
    Recording.load(Path(sys.argv[1]) / "grows")
except RecordingError as e:
    print(e)
"""
    out = run(REFUSE_LOCKS + code, str(tmp_path), "", "ENOLCK")
    if out == "no seccomp\n":
        pytest.skip("no seccomp filters here")
    assert out == f"recording {tmp_path / 'grows'} is locked by another process: database is locked\n"
    r.close()


class _NoLocks(sqlite3.Connection):
    """A connection to a file on a drive that allows no locks."""

    def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:  # type: ignore[override]
        if not sql.startswith("PRAGMA busy_timeout"):
            error = sqlite3.OperationalError("locking protocol")
            error.sqlite_errorname = "SQLITE_PROTOCOL"
            raise error
        return super().execute(sql, *parameters)  # type: ignore[arg-type]


@pytest.fixture
def no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which connections that need locks fail, as on such a drive; elsewhere all is well."""
    folder = tmp_path / "no locks"
    folder.mkdir()
    real = creating._connect

    def connect(target: str, timeout: float) -> sqlite3.Connection:
        if folder.as_uri() in target:
            return sqlite3.connect(target, uri=True, isolation_level=None, factory=_NoLocks)
        return real(target, timeout)

    monkeypatch.setattr(creating, "_connect", connect)
    return folder


def test_a_directory_without_locks_lets_the_recording_grow_among_the_temporary_files(
    no_locks: Path, temporary: Path
) -> None:
    path = no_locks / "run.gscope"
    with pytest.warns(GradScopeWarning, match=r"directory \(locking protocol\): it grows in"):
        r = begun(path)
    append(r, range(10))
    (grown,) = (p for p in temporary.iterdir() if p.suffix == ".gscope")
    assert r.path == grown
    assert grown.name.startswith("run-")
    assert_true(Recording.load(grown), range(10))  # others can read it while it grows, and after a kill
    with pytest.raises(RecordingError, match="exists: choose"):
        Recording.create(path)
    r.close()
    assert r.path == path
    assert_true(r, range(10))
    assert_saved(path, range(10))
    assert [p.name for p in no_locks.iterdir()] == ["run.gscope"]
    assert list(temporary.iterdir()) == []


def test_where_the_path_was_taken_meanwhile_the_recording_stays_where_it_grew(no_locks: Path, temporary: Path) -> None:
    path = no_locks / "r"
    with pytest.warns(GradScopeWarning, match="it grows"):
        r = begun(path)
    append(r, range(10))
    path.write_bytes(b"somebody else's")
    with pytest.warns(GradScopeWarning, match=r"r exists: .*: it stays at "):
        r.close()
    (grown,) = temporary.iterdir()
    assert r.path == grown
    assert_saved(grown, range(10))
    assert path.read_bytes() == b"somebody else's"


def test_trouble_where_it_grows_elsewhere_still_ends_at_its_path(no_locks: Path, temporary: Path) -> None:
    with pytest.warns(GradScopeWarning, match="it grows"):
        r = begun(no_locks / "r")
    append(r, range(10))
    fill_disk(r)
    with pytest.warns(GradScopeWarning, match="kept in memory"):
        append(r, range(10, 50))
    with pytest.warns(GradScopeWarning, match="it was saved there at last"):
        r.close()
    assert_saved(no_locks / "r", range(50))
    assert_true(r, range(50))
    assert list(temporary.iterdir()) == []


# -- a rollback journal in place of WAL ------------------------------------------------------------------------


def without_shared_memory(path: Path) -> Path:
    """The path; a directory stands where WAL mode would make its shared memory, so that it cannot."""
    Path(f"{path}-shm").mkdir()
    return path


def test_where_wal_is_refused_a_rollback_journal_does(tmp_path: Path) -> None:
    r = begun(without_shared_memory(tmp_path / "r"))
    assert r._source.writer is not None
    assert r._source.writer.connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    append(r, range(20))
    assert_true(Recording.load(tmp_path / "r"), range(20))
    assert not (tmp_path / "r-wal").exists()
    r.close()
    assert_saved(tmp_path / "r", range(20))


GROW = """
r = begun(Path(sys.argv[1]))
for step in range(100_000):
    r.append(record(step))
    print(step, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def growing(path: Path, pause: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", IMPORTS + GROW, str(path), str(pause)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_kill_9_at_any_moment_loses_at_most_the_step_in_flight_without_wal_too(tmp_path: Path) -> None:
    rng, journals = np.random.default_rng(1), 0
    for i in range(12):
        path = without_shared_memory(tmp_path / f"{i}.gscope")
        with growing(path) as process:
            assert process.stdout is not None
            for _ in range(int(rng.integers(1, 30))):
                last = int(process.stdout.readline())
            time.sleep(float(rng.uniform(0, 0.01)))
            process.send_signal(signals.SIGKILL)
            last = int((process.stdout.read().split() or [last])[-1])
        journals += Path(f"{path}-journal").exists()
        r = Recording.load(path)
        assert last + 1 <= len(r.steps) <= last + 2
        assert not r.complete
        assert_true(r, range(len(r.steps)))
    assert journals  # some were killed in the middle of a transaction, which reading then took back


@pytest.mark.parametrize("wal", [True, False])
def test_a_reader_in_a_loop_never_sees_a_torn_state(tmp_path: Path, wal: bool) -> None:
    path, seen = tmp_path / "r", []
    with growing(path if wal else without_shared_memory(path), pause=0.005) as process:
        assert process.stdout is not None
        process.stdout.readline()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            r = Recording.load(path)
            assert_true(r, range(len(r.steps)))
            seen.append(len(r.steps))
        process.kill()
    assert seen == sorted(seen)
    assert len(set(seen)) > 5


def test_threads_that_read_while_another_writes_see_whole_steps(tmp_path: Path) -> None:
    for path in (tmp_path / "r", None):
        r, errors, stop = begun(path), [], threading.Event()

        def read(r: Recording, errors: list[BaseException], stop: threading.Event) -> None:
            try:
                while not stop.is_set():
                    values = r.values("weight", "mean")
                    np.testing.assert_array_equal(values, np.arange(SITES) + np.arange(len(values))[:, None] / 7)
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=read, args=(r, errors, stop)) for _ in range(2)]
        for thread in threads:
            thread.start()
        append(r, range(300))
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        r.close()


AS_NOBODY = """
if os.geteuid() == 0:  # root may do everything
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
folder, tempfile.tempdir = Path(sys.argv[1]), sys.argv[1] + "/temporary"
os.mkdir(tempfile.tempdir)
path = folder / "r"
if sys.argv[2] == "rollback journal":
    (folder / "r-shm").mkdir()
r = begun(path)
append(r, range(10))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    folder.chmod(0o555)
    append(r, range(10, 20))
    print(len(r.steps), r.waiting)
    if sys.argv[3] == "for a while":
        folder.chmod(0o755)
    append(r, range(20, 30))
    print(len(r.steps), r.waiting)
    r.close()
assert_true(Recording.load(r.path), range(30))
print(r.path.relative_to(folder), Recording.load(r.path).complete)
folder.chmod(0o755)
for w in said:
    print(w.message)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A directory in which every user may write."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        if os.geteuid() == 0:
            os.chown(name, 65534, 65534)
        yield Path(name)


@linux
def test_a_directory_that_becomes_read_only_for_a_while_costs_no_step(open_folder: Path) -> None:
    out = run(AS_NOBODY, str(open_folder), "rollback journal", "for a while").splitlines()
    assert out[:3] == ["10 10", "30 0", "r True"]
    assert len(out) == 4
    assert "its steps are kept in memory" in out[3]


@linux
def test_a_directory_that_stays_read_only_has_the_rest_saved_among_the_temporary_files(open_folder: Path) -> None:
    out = run(AS_NOBODY, str(open_folder), "rollback journal", "for good").splitlines()
    assert out[:2] == ["10 10", "10 20"]
    assert re.match(r"temporary/r-\w+\.gscope True", out[2])
    assert "it was saved to" in out[4]
    assert len(out) == 5


@linux
def test_a_log_that_cannot_be_taken_away_is_named(open_folder: Path) -> None:
    out = run(AS_NOBODY, str(open_folder), "WAL", "for good").splitlines()
    assert out[:3] == ["20 0", "30 0", "r True"]
    assert all("is whole, but only together with r-wal beside it" in sentence for sentence in out[3:])


# -- broken files and handles ----------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_dead_handle_of_a_living_file_is_replaced(tmp_path: Path, suffix: str) -> None:
    r = begun(tmp_path / "r")
    append(r, range(10))
    dead = os.open(os.devnull, os.O_RDONLY)
    for name in os.listdir("/proc/self/fd"):
        if (
            os.path.islink(f"/proc/self/fd/{name}")
            and os.readlink(f"/proc/self/fd/{name}") == f"{tmp_path / 'r'}{suffix}"
        ):
            os.dup2(dead, int(name))  # as of a network drive that went and came back
    os.close(dead)
    append(r, range(10, 40))
    assert r.waiting == 0
    assert_true(r, range(40))
    r.close()
    assert_saved(tmp_path / "r", range(40))


def test_a_file_that_was_overwritten_costs_what_was_in_it_and_no_later_step(tmp_path: Path, temporary: Path) -> None:
    r = begun(without_shared_memory(tmp_path / "r"))
    append(r, range(10))
    (tmp_path / "r").write_bytes(b"x" * 100_000)
    with pytest.warns(GradScopeWarning, match="its steps are kept in memory"):
        append(r, range(10, 30))
    with pytest.warns(GradScopeWarning, match=r"saved to .*, without its first 10 steps, which cannot be read"):
        r.close()
    (saved,) = temporary.iterdir()
    assert_saved(saved, range(10, 30))
    assert_true(r, range(10, 30))


def test_a_place_that_cannot_be_written_at_the_beginning_stays_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="there is no directory"):
        Recording.create(tmp_path / "none" / "r")
    Path(tmp_path / "r-wal").mkdir()
    with pytest.raises(RecordingError, match=r"r cannot be created: disk I/O error"):
        Recording.create(tmp_path / "r")
    assert [p.name for p in tmp_path.iterdir()] == ["r-wal"]


def test_an_error_that_is_not_the_place_s_is_an_error_and_leaves_no_step_behind(tmp_path: Path) -> None:
    r = begun(tmp_path / "r")
    append(r, range(3))
    assert r._source.writer is not None
    real = r._source.writer._keeper
    with closing(sqlite3.connect(":memory:")) as empty:
        kept, real.ledger.connection = real.ledger.connection, empty
        with pytest.raises(RecordingError, match="cannot be written: no such table"):
            r.append(record(3))
        real.ledger.connection = kept
    assert r.waiting == 0
    append(r, range(3, 5))
    assert_true(r, range(5))
    r.close()


def test_a_keeper_that_is_well_never_reconnects_nor_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "reconnect", pytest.fail)
    r = begun(tmp_path / "r")
    append(r, range(50))
    assert r._source.writer is not None
    assert isinstance(r._source.writer._keeper, Keeper)
    r.close()
    assert_saved(tmp_path / "r", range(50))
