"""Drawing many pictures: in this process, or in several where they can start."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gradscope.report._write import save_png

_FEWEST = 12
"""Pictures below which a second interpreter costs more time than it saves."""


@dataclass(frozen=True)
class Job:
    """A picture to draw: the file's name, and the figure function of this package with its argument."""

    file: str
    figure: Callable[[Any], Figure]
    argument: Any


def draw(
    jobs: list[Job],
    directory: Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Draw every job into the directory; what worker processes cannot do is done here."""
    done: set[str] = set()

    def note(file: str) -> None:
        done.add(file)
        if progress is not None:
            progress(len(done), len(jobs), file)

    if workers > 1 and len(jobs) >= _FEWEST:
        _in_processes(jobs, directory, workers, note)
    for job in jobs:
        if job.file not in done:
            _draw_one(job, directory)
            note(job.file)


def _in_processes(jobs: list[Job], directory: Path, workers: int, note: Callable[[str], None]) -> None:
    # spawn, not fork: torch's threads may hold locks that a forked child would wait for for ever.
    chunks = [jobs[i : i + 4] for i in range(0, len(jobs), 4)]
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            running = [pool.submit(_draw_chunk, chunk, directory) for chunk in chunks]
            for future in as_completed(running):
                for file in future.result():
                    note(file)
    except (BrokenProcessPool, PermissionError, BlockingIOError, ImportError):
        return  # no processes here (a sandbox, a script without a main guard): the caller draws the rest itself


def _draw_chunk(jobs: list[Job], directory: Path) -> list[str]:
    for job in jobs:
        _draw_one(job, directory)
    return [job.file for job in jobs]


def _draw_one(job: Job, directory: Path) -> None:
    save_png(job.figure(job.argument), directory / job.file)
