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
from gradscope.recording._site import SIGNALS, Site
from gradscope.recording._statistics import STATISTICS
from gradscope.recording._unit_statistics import UNIT_STATISTICS
from gradscope.recording._view import View


def export_csv(recording: View, path: str | os.PathLike[str]) -> None:
    """Write a table with a row for each step, signal and site that has data; an existing file is replaced.

    Columns: step, signal, site, depth, role, then every statistic, and, where the recording has unit moments, every
    statistic of these (NaN in rows that have none). Numbers are written so that they come back
    exactly; NaN and infinities as `nan` and `inf`.

    Raises:
        RecordingError: the file cannot be written.
    """
    with _replacing(Path(path)) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        of_units = UNIT_STATISTICS if recording.has_unit_moments.any() else {}
        table.writerow(["step", "signal", "site", "depth", "role", *STATISTICS, *of_units])
        index = {step: at for at, step in enumerate(recording.steps.tolist())}
        for step, signal, sites, moments in recording.rows():
            statistics = [statistic.function(moments).tolist() for statistic in STATISTICS.values()]
            statistics += _of_units(recording, index[step], signal, sites) if of_units else []
            for site, *values in zip(sites, *statistics, strict=True):
                table.writerow([step, signal, site.name, site.depth, site.role, *values])


def export_npz(recording: View, path: str | os.PathLike[str]) -> None:
    """Write arrays that `numpy.load(path, allow_pickle=False)` reads; an existing file is replaced.

    Keys: `steps`, `skipped`, `notes/<name>` `(steps,)`; `<signal>/<statistic>` `(steps, sites)` for each signal
    that was recorded (of activations also those of unit moments, where there are some), with `<signal>/sites`, a JSON
    list of its sites in the order of the columns; `facts`, JSON.

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
            if signal == "activation" and recording.has_unit_moments.any():
                for stat in UNIT_STATISTICS:
                    yield f"{signal}/{stat}", recording.values(signal, stat)


def _of_units(recording: View, at: int, signal: str, sites: tuple[Site, ...]) -> list[list[float]]:
    """The statistics of unit moments of these sites at one step, NaN where there are none."""
    found = np.full((len(UNIT_STATISTICS), len(sites)), np.nan)
    if signal == "activation" and recording.has_unit_moments[at]:
        known, moments = recording.unit_moments(at)
        place = {site.name: i for i, site in enumerate(sites)}
        columns = [place[site.name] for site in known if site.name in place]
        rows = [i for i, site in enumerate(known) if site.name in place]
        for line, statistic in zip(found, UNIT_STATISTICS.values(), strict=True):
            line[columns] = statistic.function(moments)[rows]
    numbers: list[list[float]] = found.tolist()
    return numbers


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
