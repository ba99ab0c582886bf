"""A recording for other programs: one long CSV table, or numpy arrays in one npz file."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.recording._errors import RecordingError
from gradscope.recording._json import to_plain
from gradscope.recording._site import SIGNALS
from gradscope.recording._statistics import STATISTICS
from gradscope.recording._view import View


def export_csv(recording: View, path: str | os.PathLike[str]) -> None:
    """Write a table with a row for each step, signal and site that has data; an existing file is replaced.

    Columns: step, signal, site, depth, role, then every statistic. Numbers are written so that they come back
    exactly; NaN and infinities as `nan` and `inf`.

    Raises:
        RecordingError: the file cannot be written.
    """
    with _replacing(Path(path)) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["step", "signal", "site", "depth", "role", *STATISTICS])
        for step, signal, sites, moments in recording.rows():
            statistics = [statistic.function(moments).tolist() for statistic in STATISTICS.values()]
            for site, *values in zip(sites, *statistics, strict=True):
                table.writerow([step, signal, site.name, site.depth, site.role, *values])


def export_npz(recording: View, path: str | os.PathLike[str]) -> None:
    """Write arrays that `numpy.load(path, allow_pickle=False)` reads; an existing file is replaced.

    Keys: `steps`, `skipped`, `notes/<name>` `(steps,)`; `<signal>/<statistic>` `(steps, sites)` for each signal
    that was recorded, with `<signal>/sites`, a JSON list of its sites in the order of the columns; `facts`, JSON.

    Raises:
        RecordingError: the file cannot be written.
    """
    with _replacing(Path(path)) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in _arrays(recording):  # one at a time: a long recording need not fit in memory
            with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _arrays(recording: View) -> Iterator[tuple[str, NDArray[Any]]]:
    yield "steps", recording.steps
    yield "skipped", recording.skipped
    yield "facts", np.array(json.dumps(recording.facts))
    for name in recording.note_names:
        yield f"notes/{name}", recording.notes(name)
    for signal in SIGNALS:
        if sites := recording.sites_of(signal):
            yield f"{signal}/sites", np.array(json.dumps([to_plain(dataclasses.asdict(s)) for s in sites]))
            for stat in STATISTICS:
                yield f"{signal}/{stat}", recording.values(signal, stat)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path beside the given one, which takes its place when all went well."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as e:
        raise RecordingError(f"{path} cannot be written: {e.strerror or e}") from e
    finally:
        partial.unlink(missing_ok=True)
