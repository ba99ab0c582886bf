"""The two sides of `gradscope-report diff`: files, or one factory at two revisions of a git repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gradscope._cli_output import Mistake
from gradscope.recording import Baseline, Recording, baseline_of

_SQLITE = b"SQLite format 3\0"
# Only what gradscope has had since its first version: at an old revision of its own repository this runs on that.
_PROBE = """
import sys
sys.path[:0] = sys.argv[3:]
import torch
torch.manual_seed(0)
torch.set_num_threads(1)
from gradscope import _user_model
from gradscope._cli_output import Mistake
try:
    _user_model.probe(_user_model.load(sys.argv[1], None)).save(sys.argv[2])
except Mistake as error:
    sys.exit(f"mistake: {error}")
"""


def of_files(paths: Sequence[str]) -> tuple[Baseline, Baseline]:
    """The two files, each a recording or a baseline.

    Raises:
        Mistake, RecordingError, BaselineError: they are not two, or one cannot be read.
    """
    if len(paths) != 2:
        raise Mistake(f"diff compares two files, and {len(paths)} are given: EXPECTED and OBTAINED")
    expected, obtained = (_of_file(Path(path)) for path in paths)
    return expected, obtained


def _of_file(path: Path) -> Baseline:
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE))
    except OSError as error:
        raise Mistake(f"{path} cannot be read: {error.strerror}") from None
    if head == _SQLITE:
        return baseline_of(Recording.load(path))
    from gradscope.testing import load_baseline

    return load_baseline(path)


def at_revisions(factories: Sequence[str], revisions: Sequence[str]) -> tuple[Baseline, Baseline]:
    """The factory's model probed as it is at each of two revisions.

    Raises:
        Mistake: there are not one factory and two revisions, or something about them does not work.
    """
    if len(factories) != 1 or len(revisions) != 2:
        raise Mistake(
            f"--rev is given {len(revisions)} times with {len(factories)} arguments: give it twice, and one"
            " package.module:factory"
        )
    with tempfile.TemporaryDirectory(prefix="gradscope-") as folder:
        expected, obtained = (
            _probed(factories[0], revision, Path(folder) / str(i)) for i, revision in enumerate(revisions)
        )
        return expected, obtained


def _probed(factory: str, revision: str, place: Path) -> Baseline:
    root = Path(_git("rev-parse", "--show-toplevel")).resolve()
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", what=revision)
    here = Path.cwd().resolve()
    file = place.with_suffix(".gscope")
    with _worktree(commit, place):
        at = place / here.relative_to(root)
        if not at.is_dir():
            raise Mistake(f"at revision {revision} there is no folder {here.relative_to(root)}")
        command = [sys.executable, "-c", _PROBE, factory, str(file), *_paths(root, place, at)]
        done = subprocess.run(command, cwd=at, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            raise Mistake(f"at revision {revision}: {last.removeprefix('mistake: ')}")
    return baseline_of(Recording.load(file))


def _paths(root: Path, place: Path, at: Path) -> list[str]:
    """Where modules are found: the current folder, `src`, and what of this process's path is in the repository."""
    inside = [Path(entry).resolve() for entry in sys.path if entry and Path(entry).is_dir()]
    moved = [place / entry.relative_to(root) for entry in inside if entry.is_relative_to(root)]
    found = [at, place / "src", *moved]
    return list(dict.fromkeys(str(path) for path in found if path.is_dir()))


@contextmanager
def _worktree(commit: str, place: Path) -> Iterator[None]:
    """The files of a commit in a folder of its own; the user's checkout is not touched."""
    _git("worktree", "add", "--detach", "--quiet", str(place), commit)
    try:
        yield
    finally:
        _git("worktree", "remove", "--force", str(place))


def _git(*arguments: str, what: str = "") -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError:
        raise Mistake("--rev needs git, and there is none on the path") from None
    if done.returncode:
        if what:
            raise Mistake(f"--rev {what} is no revision of this repository")
        said = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise Mistake(f"git {arguments[0]}: {said.removeprefix('fatal: ')}")
    return done.stdout.strip()
