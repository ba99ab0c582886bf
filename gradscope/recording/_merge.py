"""One recording of the ranks of a distributed run that each had to write a file of its own.

Such a file has the facts `rank`, `ranks` (how many there are) and `sharded` (parameters lie in parts on the ranks,
not whole on each), and each step notes `ranks_merged`: over how many ranks that row is merged already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradscope.recording import _place
from gradscope.recording._errors import RecordingError
from gradscope.recording._moments import COLUMNS, Ints, Moments, StepRecord
from gradscope.recording._rank_file import RankFile
from gradscope.recording._recording import PathLike, Recording
from gradscope.recording._sampling import FACT, joined, sampling_of
from gradscope.recording._site import SIGNALS, Signal
from gradscope.recording._source import Source
from gradscope.recording._writing import Writer

_OF_THE_BATCH = ("activation", "activation_grad")
"""Signals of which each rank has its part of the global batch; of the others it has a replica, or a shard."""


def merge_recordings(paths: Sequence[PathLike], out: PathLike, *, overwrite: bool = False) -> Recording:
    """Merge the recordings of some ranks of one run, and return the result, loaded from `out`.

    A step that some file has merged over all ranks already is taken from there. Otherwise those that are a rank's
    own are merged: activations and their gradients by `Moments.merge`, as parts of one batch; weights, their
    gradients and updates too where they are sharded, else the lowest rank's are taken. (A step merged over some
    ranks is taken whole, where fewer files than that have their own.) Histograms add; unit moments, which do not,
    are the lowest rank's. Sites are matched by signal
    and name. What is not a sum (facts, sites, notes) is the lowest rank's; `ranks_merged` says over how many ranks
    each step is merged, the fact `merged_from` from which files.

    Args:
        paths: the files, in any order; not every rank need have one.
        out: the file to write.
        overwrite: replace a recording that is at `out`.

    Raises:
        ValueError: there is no path, or `out` is one of them.
        RecordingError: a file cannot be read, or is not of the same run's ranks; `out` cannot be written.
    """
    target, sources = Path(out).absolute(), [Path(path).absolute() for path in paths]
    if not sources:
        raise ValueError("paths is empty: there is nothing to merge")
    if target.resolve() in {source.resolve() for source in sources}:
        raise ValueError(f"out={str(out)!r} is one of the recordings to merge: choose another")
    _place.check_free(target, overwrite)
    with ExitStack() as stack:
        files = [RankFile.opened(path, stack) for path in sources]
        files.sort(key=lambda file: file.rank)
        _check_one_run(files)
        first = files[0]
        facts = first.contents.facts | {"merged_from": [file.path.name for file in files]}
        if (sampling := joined(sampling_of(file.contents.facts) for file in files)) is not None:
            facts[FACT] = sampling.fact()
        writer = Writer(None, facts, edges=first.contents.layout.edges)
        merged = Recording(Source(writer.contents, None, writer))
        _add_sites(merged, files)
        for step in np.unique(np.concatenate([np.array(f.contents.steps, dtype=np.int64) for f in files])):
            merged.append(_merged_step(int(step), files))
        merged.close()
        merged.save(target, overwrite=overwrite)
    return Recording.load(target)


def _check_one_run(files: list[RankFile]) -> None:
    first = files[0]
    for before, file in pairwise(files):
        if file.rank == before.rank:
            raise RecordingError(f"recordings {before.path} and {file.path} are both of rank {file.rank}")
    for file in files[1:]:
        if file.ranks != first.ranks:
            raise RecordingError(
                f"recording {file.path} is of a run of {file.ranks} ranks, and {first.path} of one of {first.ranks}"
            )
        if file.sharded != first.sharded:
            raise RecordingError(f"of the recordings {first.path} and {file.path} only one has sharded parameters")
        if file.contents.layout.edges != first.contents.layout.edges:
            raise RecordingError(f"recordings {first.path} and {file.path} have histograms with different edges")


def _add_sites(merged: Recording, files: list[RankFile]) -> None:
    ids: dict[tuple[str, str], int] = {}
    for file in files:
        for site in file.contents.sites:
            if (site.signal, site.name) not in ids:
                ids[site.signal, site.name] = merged.add_site(site)
        file.merged_ids = np.array([ids[s.signal, s.name] for s in file.contents.sites], dtype=np.int64)


def _merged_step(step: int, files: list[RankFile]) -> StepRecord:
    having = [(file, notes) for file in files if (notes := file.notes(step)) is not None]
    chosen, count = _to_merge([_ranks_merged(notes) for _, notes in having], files[0].ranks)
    sources, notes = [having[i][0] for i in chosen], having[chosen[0]][1]
    moments: dict[Signal, tuple[Ints, Moments]] = {}
    histograms: dict[Signal, tuple[Ints, Ints]] = {}
    for number, signal in enumerate(SIGNALS):
        adds = signal in _OF_THE_BATCH or files[0].sharded
        if parts := [part for file in sources if (part := file.moments(step, number)) is not None]:
            moments[signal] = _merged_moments(parts, adds)
        if counts := [more for file in sources if (more := file.histograms(step, number)) is not None]:
            histograms[signal] = _merged_histograms(counts, adds)
    skipped = any(file.skipped(step) for file in sources)
    units = next((found for file in sources if (found := file.units(step)) is not None), None)
    return StepRecord(step, skipped, notes | {"ranks_merged": count}, moments, histograms, units)


def _ranks_merged(notes: dict[str, Any]) -> int:
    merged = notes.get("ranks_merged", 1)
    return merged if isinstance(merged, int) and merged > 1 else 1


def _to_merge(ranks_merged: list[int], ranks: int) -> tuple[list[int], int]:
    """Which of the files that have a step to take it from, in their order; and over how many ranks it then is merged.

    >>> _to_merge([1, 1, 4], ranks=4), _to_merge([1, 1], ranks=4), _to_merge([1, 2, 1], ranks=4)
    (([2], 4), ([0, 1], 2), ([1], 2))
    """
    most = max(ranks_merged)
    alone = [i for i, merged in enumerate(ranks_merged) if merged == 1]
    if most > 1 and len(alone) <= most:
        return [ranks_merged.index(most)], min(most, ranks)
    return alone, len(alone)


def _merged_moments(parts: list[tuple[Ints, Moments]], adds: bool) -> tuple[Ints, Moments]:
    ids = np.unique(np.concatenate([part for part, _ in parts]))
    columns: dict[str, NDArray[Any]] = {name: np.zeros(len(ids), dtype) for name, dtype in COLUMNS.items()}
    for rows, moments, fresh in _placed(ids, parts):
        for name, column in columns.items():
            column[rows[fresh]] = getattr(moments, name)[fresh]
        if adds and not fresh.all():
            known = rows[~fresh]
            before = Moments(*(column[known] for column in columns.values()))
            both = Moments.merge(before, moments.take(~fresh))
            for name, column in columns.items():
                column[known] = getattr(both, name)
    return ids, Moments(*columns.values())


def _merged_histograms(parts: list[tuple[Ints, Ints]], adds: bool) -> tuple[Ints, Ints]:
    ids = np.unique(np.concatenate([part for part, _ in parts]))
    counts = np.zeros((len(ids), parts[0][1].shape[1]), np.int64)
    for rows, more, fresh in _placed(ids, parts):
        take = np.ones_like(fresh) if adds else fresh
        counts[rows[take]] += more[take]
    return ids, counts


T = TypeVar("T")


def _placed(ids: Ints, parts: list[tuple[Ints, T]]) -> Iterator[tuple[Ints, T, NDArray[np.bool_]]]:
    """Of each part in turn: its rows' places among `ids`, the part, and which of them no earlier part has."""
    seen = np.zeros(len(ids), dtype=bool)
    for of_part, part in parts:
        rows = np.searchsorted(ids, of_part)
        yield rows, part, ~seen[rows]
        seen[rows] = True
