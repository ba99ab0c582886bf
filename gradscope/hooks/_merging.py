"""The record of a step merged over the ranks that train together, and what is done once a rank is lost."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradscope.hooks._ranks import RankLost, Ranks, Table
from gradscope.hooks._schedule import Schedule
from gradscope.hooks._sites import SiteBook
from gradscope.recording import GradScopeWarning, Recording, Signal, StepRecord


class Merging:
    """Gives each rank the record of the global batch; only rank 0 writes it to the file that was asked for.

    Args:
        ranks: with which it is merged.
        book: of the sites.
        log: the file that was asked for.
        schedule: told of the interval that the ranks agree on.
    """

    def __init__(self, ranks: Ranks, book: SiteBook, log: str | os.PathLike[str] | None, schedule: Schedule) -> None:
        self._ranks = ranks
        self._schedule = schedule
        self._book = book
        self._log = log
        self._lost = False

    @property
    def averaged_over(self) -> float:
        """How many ranks' losses are averaged to the loss."""
        return self._ranks.averaged_over

    @property
    def together(self) -> bool:
        """Whether the ranks still merge, and so have to write at the same moment."""
        return not self._lost

    @property
    def whole(self) -> bool:
        """Whether the latest record has all entries of each parameter."""
        return not (self._lost and self._ranks.sharded)

    def merged(self, record: StepRecord, own: Mapping[Signal, NDArray[np.bool_]]) -> StepRecord:
        """The record of the global batch; `own` marks the rows that this rank contributes."""
        if not self._lost:
            try:
                return self._merge(record, own)
            except RankLost as error:
                self._go_alone(str(error))
        self._schedule.agreed(self._schedule.proposal())
        return replace(self._own_rows(record, own), notes=dict(record.notes) | {"ranks_merged": 1})

    def _own_rows(self, record: StepRecord, own: Mapping[Signal, NDArray[np.bool_]]) -> StepRecord:
        """Without what other ranks have too, where the parts of all ranks will be merged."""
        if not self._ranks.sharded:
            return record
        moments = {s: (ids[own[s]], m.take(own[s])) for s, (ids, m) in record.moments.items()}
        histograms = {s: (ids[own[s]], counts[own[s]]) for s, (ids, counts) in record.histograms.items()}
        return replace(record, moments=moments, histograms=histograms)

    def _merge(self, record: StepRecord, own: Mapping[Signal, NDArray[np.bool_]]) -> StepRecord:
        sites = self._book.sites
        tables = {
            signal: Table(
                sites=tuple(sites[int(i)] for i in ids),
                moments=moments,
                own=own[signal],
                histograms=record.histograms[signal][1] if signal in record.histograms else None,
            )
            for signal, (ids, moments) in record.moments.items()
        }
        merged = self._ranks.merge(record.step, tables, self._schedule.proposal())
        self._schedule.agreed(self._ranks.longest)
        moments, histograms = {}, {}
        for signal, table in merged.items():
            ids = np.array([self._book.enter(site) for site in table.sites], dtype=np.int64)
            moments[signal] = (ids, table.moments)
            if table.histograms is not None:
                histograms[signal] = (ids, table.histograms)
        notes = dict(record.notes) | {"ranks_merged": self._ranks.size}
        return replace(record, moments=moments, histograms=histograms, notes=notes)

    def _go_alone(self, reason: str) -> None:
        self._lost = True
        rank, place = self._ranks.rank, "its own recording"
        if self._log is not None and rank != 0:
            path = rank_path(Path(self._log), rank)
            self._book.go_on_in(Recording.create(path, facts=self._book.recording.facts))
            place = str(path)
        elif self._log is not None:
            place = str(self._log)
        warnings.warn(
            f"GradScope no longer merges over ranks: {reason}. Rank {rank} goes on with its own part in {place}; "
            "`gradscope-report merge` joins the files",
            GradScopeWarning,
            stacklevel=2,
        )

    def hurry(self) -> None:
        """An error ends the training here: the others may not come, and it shall be seen soon."""
        self._ranks.hurry()

    def close(self) -> None:
        """Leave the group of ranks."""
        self._ranks.close()


def rank_path(log: Path, rank: int) -> Path:
    """Where a rank other than 0 writes if it has to write: `run.rank3.gscope` beside `run.gscope`."""
    return log.with_name(f"{log.stem}.rank{rank}{log.suffix}")
