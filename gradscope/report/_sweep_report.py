"""The report of a sweep: a picture of each pair, an overview, a picture of each activation, `index.json`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradscope.recording import SweepCell, SweepResult
from gradscope.report._activation_report import activation_job
from gradscope.report._curves import DIRECTIONS, curve
from gradscope.report._index import Picture, Report, write_report
from gradscope.report._jobs import Job, draw
from gradscope.report._passage import passage
from gradscope.report._write import slug
from gradscope.report.figures import overview, signal_vs_depth

Progress = Callable[[int, int, str], None]


def write_sweep_report(
    result: SweepResult,
    directory: str | os.PathLike[str] = "reports",
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> Report:
    """Draw every picture of a sweep into a directory and list them in `index.json`.

    Args:
        result: what `gradscope.sweep` returned.
        directory: made where it does not exist; pictures of the same names are replaced.
        workers: processes that draw. More than one starts new interpreters, so the calling script must be
            importable (`if __name__ == "__main__":`), as `multiprocessing` with `spawn` asks.
        progress: called as `progress(done, total, label)` after each picture.

    Returns:
        The report, with its pictures in the order: overviews, pairs as in the sweep, activations.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shapes = list(dict.fromkeys((cell.depth, cell.width) for cell in result.cells))
    jobs: list[tuple[Job, Picture]] = []
    for shape in shapes:
        cells = tuple(cell for cell in result.cells if (cell.depth, cell.width) == shape)
        jobs.append(_overview_job(cells, several=len(shapes) > 1))
    jobs += [_pair_job(cell, several=len(shapes) > 1) for cell in result.cells]
    jobs += [activation_job(name) for name in dict.fromkeys(cell.activation for cell in result.cells)]
    draw([job for job, _ in jobs], directory, workers=workers, progress=progress)
    head = {key: value for key, value in result.to_json().items() if key != "schema"}
    return write_report(directory, head, [picture for _, picture in jobs])


def _suffix(cell: SweepCell, several: bool) -> str:
    return f"__d{cell.depth}_w{cell.width}" if several else ""


def _pair_job(cell: SweepCell, several: bool) -> tuple[Job, Picture]:
    file = f"signal_vs_depth__{slug(cell.init)}__{slug(cell.activation)}{_suffix(cell, several)}.png"
    data: dict[str, Any] = {
        "init": cell.init,
        "activation": cell.activation,
        "depth": cell.depth,
        "width": cell.width,
    }
    for direction in DIRECTIONS:
        data[direction] = {**curve(cell, direction).data(), **passage(cell, direction).data()}
    return Job(file, signal_vs_depth, cell), Picture(file, "signal_vs_depth", f"{cell.init} · {cell.activation}", data)


def _overview_job(cells: Sequence[SweepCell], several: bool) -> tuple[Job, Picture]:
    first = cells[0]
    file = f"overview{_suffix(first, several)}.png"
    decades = [
        {"init": c.init, "activation": c.activation, "forward": c.forward_decades, "backward": c.backward_decades}
        for c in cells
    ]
    data = {"depth": first.depth, "width": first.width, "decades_per_layer": decades}
    return Job(file, overview, tuple(cells)), Picture(file, "overview", "Decades per layer", data)
