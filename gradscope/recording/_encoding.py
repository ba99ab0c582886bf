"""A step's record, checked and turned into the blobs of its rows, before anything is written."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gradscope.recording._codec import encode
from gradscope.recording._contents import Contents
from gradscope.recording._errors import unknown_name
from gradscope.recording._moments import Ints, StepRecord
from gradscope.recording._site import SIGNALS


class Encoder:
    """Encodes the records of one recording; ValueError where a record does not fit its sites."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._checked: dict[str, bytes] = {}  # by signal the ids that passed: they are the same step after step

    def __call__(self, record: StepRecord) -> list[tuple[str, int, bytes]]:
        """Table, index of the signal and blob of each row."""
        layout, rows = self._contents.layout, []
        for signal, (site_ids, moments) in record.moments.items():
            ids = self._site_ids(signal, site_ids, len(moments))
            columns: list[Any] = [getattr(moments, name) for name in layout.columns]
            rows.append(("moments", SIGNALS.index(signal), encode([ids, *columns])))
        for signal, (site_ids, histograms) in record.histograms.items():
            counts = np.asarray(histograms, dtype=np.int64)
            bins = len(layout.edges) - 1
            if counts.ndim != 2 or counts.shape[1] != bins:
                raise ValueError(f"histograms of {signal} have shape {counts.shape}; they are (sites, {bins})")
            ids = self._site_ids(signal, site_ids, len(counts))
            rows.append(("histograms", SIGNALS.index(signal), encode([ids, counts])))
        return rows

    def _site_ids(self, signal: str, site_ids: ArrayLike, rows: int) -> Ints:
        if signal not in SIGNALS:
            raise unknown_name("signal", signal, SIGNALS)
        ids: Ints = np.asarray(site_ids, dtype=np.int64)
        if len(ids) != rows:
            raise ValueError(f"{signal} has {len(ids)} site ids and {rows} rows")
        key = ids.tobytes()
        if self._checked.get(signal) != key:
            self._check_ids(signal, ids)
            self._checked[signal] = key
        return ids

    def _check_ids(self, signal: str, ids: Ints) -> None:
        sites = self._contents.sites
        if ids.ndim != 1 or len(set(ids.tolist())) != len(ids):
            raise ValueError(f"site ids of {signal} must be one-dimensional and distinct, got {ids.tolist()}")
        for i in ids.tolist():
            if not 0 <= i < len(sites):
                raise ValueError(f"{signal} has site id {i}; add_site has given {len(sites)}, from 0")
            if sites[i].signal != signal:
                raise ValueError(f"{signal} has site id {i}, which is a site of {sites[i].signal}")
