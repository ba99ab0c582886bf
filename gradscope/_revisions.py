"""What `gradscope-report diff` compares: two files, or one factory at two revisions of a git repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gradscope._cli_output import Mistake
from gradscope.recording import Baseline, Comparison, Recording, baseline_of, compare
from gradscope.recording._baseline import Spreads
from gradscope.recording._compare import RTOL

Run = Recording | Baseline

_OF_HOOKS = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_WORK_TREE")
_SQLITE = b"SQLite format 3\0"
# Only what gradscope has had since its first version: at an old revision of its own repository this runs on that.
_PROBE = """
import random
import sys
sys.path[:0] = sys.argv[3:]
import numpy
import torch
random.seed(0)
numpy.random.seed(0)
torch.manual_seed(0)
torch.set_num_threads(1)
from gradscope import _user_model
from gradscope._cli_output import Mistake
try:
    _user_model.probe(_user_model.load(sys.argv[1], None)).save(sys.argv[2])
except Mistake as error:
    sys.exit(f"mistake: {error}")
"""


def compared(expected: Run, obtained: Run, rtol: float | None) -> tuple[Comparison, Spreads | None]:
    """The comparison, and the bands where both are of several seeds and no tolerance is given.

    Raises:
        Mistake: the two cannot be compared, or the tolerance cannot be meant.
    """
    bands = None
    try:
        if rtol is None and isinstance(expected, Baseline) and isinstance(obtained, Baseline):
            seeds = [one.facts.get("seeds") for one in (expected, obtained)]
            if seeds[0] is not None and seeds[0] == seeds[1] and np.array_equal(expected.steps, obtained.steps):
                from gradscope.testing._seeds import bands_of

                bands = bands_of(expected, obtained, None, RTOL)
        return compare(expected, obtained, RTOL if rtol is None else rtol, bands=bands), bands
    except ValueError as error:
        raise Mistake(str(error)) from None


def of_files(paths: Sequence[str]) -> tuple[Run, Run]:
    """The two files, each a recording or a baseline.

    Raises:
        Mistake, RecordingError, BaselineError: they are not two, or one cannot be read.
    """
    if len(paths) != 2:
        raise Mistake(f"diff compares two files, and {len(paths)} are given: EXPECTED and OBTAINED")
    expected, obtained = (_of_file(Path(path)) for path in paths)
    return expected, obtained


def _of_file(path: Path) -> Run:
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE))
    except OSError as error:
        raise Mistake(f"{path} cannot be read: {error.strerror}") from None
    if head == _SQLITE:
        return Recording.load(path)
    from gradscope.testing import load_baseline

    return load_baseline(path)


def at_revisions(factories: Sequence[str], revisions: Sequence[str]) -> tuple[Run, Run]:
    """The factory's model probed as it is at each of two revisions, from one seed and on one thread.

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
        done = subprocess.run(command, cwd=at, capture_output=True, text=True, check=False, env=_environment())
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


def _environment() -> dict[str, str]:
    """Without what git tells its hooks of the commit in progress: a worktree would be checked out into its index."""
    return {name: value for name, value in os.environ.items() if name not in _OF_HOOKS}


def _git(*arguments: str, what: str = "") -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, env={**_environment(), "LC_ALL": "C"}
        )
    except FileNotFoundError:
        raise Mistake("--rev needs git, and there is none on the path") from None
    if done.returncode:
        if what:
            raise Mistake(f"--rev {what} is no revision of this repository")
        said = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise Mistake(f"git {arguments[0]}: {said.removeprefix('fatal: ')}")
    return done.stdout.strip()
