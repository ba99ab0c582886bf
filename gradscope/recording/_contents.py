"""What of a recording is kept in memory: everything but the blobs (9 bytes a step)."""

from __future__ import annotations

import dataclasses
import zlib
from array import array
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gradscope.recording._json import dumps, loads
from gradscope.recording._moments import COLUMNS, HISTOGRAM_EDGES
from gradscope.recording._schema import SCHEMA, Tally
from gradscope.recording._site import ROLES, SIGNALS, Site


@dataclass(frozen=True)
class Layout:
    """The header's first row: which columns a moments blob holds, and the edges of the histograms."""

    run: str
    columns: tuple[str, ...] = tuple(COLUMNS)
    edges: tuple[float, ...] = tuple(HISTOGRAM_EDGES.tolist())

    def dumps(self) -> bytes:
        """The row's value."""
        return dumps({"format": "gradscope recording", "schema": SCHEMA, **dataclasses.asdict(self)})

    @staticmethod
    def loads(value: bytes) -> Layout:
        """The layout that was written; ValueError where it lacks a column of the moments."""
        row = loads(value)
        layout = Layout(row["run"], tuple(row["columns"]), tuple(float(e) for e in row["edges"]))
        if missing := set(COLUMNS) - set(layout.columns):
            raise ValueError(f"the layout lacks {', '.join(sorted(missing))}")
        return layout


@dataclass
class Contents:
    """Facts, sites and steps of a recording, and the tally of its rows."""

    layout: Layout
    facts: dict[str, Any] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    steps: array[int] = field(default_factory=lambda: array("q"))
    skipped: bytearray = field(default_factory=bytearray)
    tally: Tally = field(default_factory=Tally)
    complete: bool = False

    @cached_property
    def identity(self) -> int:
        """Where every checksum of this run begins, so that another run's rows do not pass for its own."""
        return zlib.crc32(self.layout.run.encode())

    @property
    def recorded(self) -> int:
        """How many steps are in the file; `steps` may be one ahead while one is being written."""
        return self.tally.rows["steps"]

    def copy(self) -> Contents:
        """An independent copy."""
        return Contents(
            self.layout,
            dict(self.facts),
            list(self.sites),
            self.steps[: self.recorded],
            self.skipped[: self.recorded],
            self.tally.copy(),
            self.complete,
        )

    def forget_rows(self) -> None:
        """Let go of every step, as of a recording whose file has no row yet; sites and facts stay."""
        del self.steps[:], self.skipped[:]
        self.tally = Tally()


def site_to_bytes(site: Site) -> bytes:
    """The value of a site's row."""
    return dumps(dataclasses.asdict(site))


def site_from_bytes(value: bytes) -> Site:
    """The site of a row; ValueError, TypeError where it is none."""
    row = loads(value)
    site = Site(**{**row, "shape": tuple(int(n) for n in row["shape"])})
    if site.signal not in SIGNALS or site.role not in ROLES:
        raise ValueError(f"a site has signal {site.signal!r} and role {site.role!r}")
    return site
