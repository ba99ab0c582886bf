"""What one rank has of one signal, as bytes, and the merge of what all ranks have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.recording import Moments, Signal, Site
from gradscope.recording._moments import COLUMNS, Ints


@dataclass(frozen=True, eq=False)
class Table:
    """What one rank, or all together, have of one signal: a row a site.

    Attributes:
        sites: `(rows,)`.
        moments: their moments.
        own: `(rows,)`, the rows that this rank contributes; of replicas one rank does.
        histograms: `(rows, bins)` counts, or None.
    """

    sites: tuple[Site, ...]
    moments: Moments
    own: NDArray[np.bool_]
    histograms: Ints | None = None

    def __post_init__(self) -> None:
        lengths = {"sites": len(self.sites), "moments": len(self.moments), "own": len(self.own)}
        if self.histograms is not None:
            lengths["histograms"] = len(self.histograms)
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the columns of a Table have one row a site, got lengths {lengths}")


@dataclass(frozen=True)
class Part:
    """Of which rows a table consists: its signal, its sites, and how many bins its histograms have (0: none)."""

    signal: Signal
    sites: tuple[Site, ...]
    bins: int

    @staticmethod
    def of(signal: Signal, table: Table) -> Part:
        """That of a table."""
        return Part(signal, table.sites, 0 if table.histograms is None else table.histograms.shape[1])


Layout = tuple[Part, ...]


def pack(tables: Sequence[Table]) -> bytes:
    """The columns of some tables, eight bytes a number: an int64 would not survive as a float64 beyond 2^53."""
    data = []
    for table in tables:
        data += [getattr(table.moments, name).tobytes() for name in COLUMNS]
        data.append(np.asarray(table.own, dtype=np.int64).tobytes())
        if table.histograms is not None:
            data.append(np.asarray(table.histograms, dtype=np.int64).tobytes())
    return b"".join(data)


def unpack(data: bytes, layout: Layout) -> list[Table]:
    """The tables of this layout that were packed."""
    tables, words = [], 0
    for part in layout:
        rows = len(part.sites)

        def column(dtype: Any, count: int) -> NDArray[Any]:
            nonlocal words
            words += count
            return np.frombuffer(data, dtype=dtype, count=count, offset=8 * (words - count))

        moments = Moments(*(column(dtype, rows) for dtype in COLUMNS.values()))
        own = column(np.int64, rows).astype(bool)
        histograms = column(np.int64, rows * part.bins).reshape(rows, part.bins)
        tables.append(Table(part.sites, moments, own, histograms if part.bins else None))
    return tables


@dataclass(frozen=True)
class Plan:
    """Where the rows of each rank's table of one signal go in the merged one.

    Attributes:
        signal: which.
        sites: of the merged table.
        places: rank → (index of its table among its tables, row in the merged table of each of its rows), or None.
    """

    signal: Signal
    sites: tuple[Site, ...]
    places: tuple[tuple[int, Ints] | None, ...]


def plan(layouts: Sequence[Layout]) -> list[Plan]:
    """The union of all ranks' sites: by depth, then by the first rank that has them, then by its row."""
    union: dict[Signal, dict[str, Site]] = {}
    for layout in layouts:
        for part in layout:
            known = union.setdefault(part.signal, {})
            for site in part.sites:
                known.setdefault(site.name, site)
    plans = []
    for signal, known in union.items():
        sites = tuple(sorted(known.values(), key=lambda site: site.depth))
        row = {site.name: i for i, site in enumerate(sites)}
        places: list[tuple[int, Ints] | None] = [None] * len(layouts)
        for rank, layout in enumerate(layouts):
            for i, part in enumerate(layout):
                if part.signal == signal:
                    places[rank] = i, np.array([row[site.name] for site in part.sites], dtype=np.int64)
        plans.append(Plan(signal, sites, tuple(places)))
    return plans


def fold(plan: Plan, tables: Sequence[Sequence[Table]]) -> Table:
    """The merge of all ranks' tables of one signal, in the order of the ranks.

    Rows that no rank contributes are those of the first rank that has entries; there may be none, then they drop out.
    """
    rows = len(plan.sites)
    of_rank = [(tables[rank][at[0]], at[1]) for rank, at in enumerate(plan.places) if at is not None]
    owned = np.zeros(rows, dtype=bool)
    for table, place in of_rank:
        owned[place[table.own]] = True
    total = Moments(*(np.copy(getattr(Moments.empty(rows), name)) for name in COLUMNS))
    bins = max((t.histograms.shape[1] for t, _ in of_rank if t.histograms is not None), default=0)
    histograms = np.zeros((rows, bins), dtype=np.int64)
    counted = np.ones(rows, dtype=bool)
    for table, place in of_rank:
        entries = table.moments.count > 0
        taken = entries & np.where(owned[place], table.own, total.count[place] == 0)
        to, part = place[taken], table.moments.take(taken)
        before = total.take(to)
        both = Moments.merge(before, part)
        first = before.count == 0  # a part that is alone stays as it is, to the bit
        for name in COLUMNS:
            getattr(total, name)[to] = np.where(first, getattr(part, name), getattr(both, name))
        if table.histograms is None:
            counted[to] = False
        else:
            histograms[to] += table.histograms[taken]
    kept = owned | (total.count > 0)
    if kept.all():
        return Table(plan.sites, total, kept, histograms if bins and counted.all() else None)
    return Table(
        sites=tuple(site for site, keep in zip(plan.sites, kept, strict=True) if keep),
        moments=total.take(kept),
        own=np.ones(int(kept.sum()), dtype=bool),
        histograms=histograms[kept] if bins and counted[kept].all() else None,
    )
