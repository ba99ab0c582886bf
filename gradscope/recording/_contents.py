"""What of a recording is kept in memory: all but the notes, moments, histograms and unit moments (12 bytes a step)."""

from __future__ import annotations

import dataclasses
import zlib
from array import array
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from gradscope.recording._frame import Frame, Frames
from gradscope.recording._json import dumps, loads
from gradscope.recording._moments import COLUMNS, HISTOGRAM_EDGES, Ints
from gradscope.recording._schema import SCHEMA, TABLES, TABLES_OF, Tables, Tally
from gradscope.recording._site import ROLES, SIGNALS, Site
from gradscope.recording._unit_moments import UNIT_COLUMNS


@dataclass(frozen=True)
class Layout:
    """The header's first row: which columns the moments have, the edges of the histograms, columns of unit moments."""

    run: str
    columns: tuple[str, ...] = tuple(COLUMNS)
    edges: tuple[float, ...] = tuple(HISTOGRAM_EDGES.tolist())
    unit_columns: tuple[str, ...] = tuple(UNIT_COLUMNS)
    schema: int = SCHEMA

    def dumps(self) -> bytes:
        """The row's value."""
        row = {"format": "gradscope recording", "schema": self.schema} | dataclasses.asdict(self)
        if self.schema == 2:  # which had none, and whose header is compared byte by byte
            del row["unit_columns"]
        return dumps(row)

    @staticmethod
    def loads(value: bytes, columns: Collection[str] = tuple(COLUMNS)) -> Layout:
        """The layout that was written; ValueError where it lacks one of these columns."""
        row = loads(value)
        schema = int(row["schema"])
        units = tuple(row["unit_columns"]) if schema >= SCHEMA else ()
        layout = Layout(row["run"], tuple(row["columns"]), tuple(float(e) for e in row["edges"]), units, schema)
        missing = set(columns) - set(layout.columns)
        if schema >= SCHEMA:
            missing |= set(UNIT_COLUMNS) - set(units)
        if missing:
            raise ValueError(f"the layout lacks {', '.join(sorted(missing))}")
        return layout


@dataclass
class Contents:
    """Facts, sites, frames, and number and flags of each step of a recording, and the tally of its rows."""

    layout: Layout
    facts: dict[str, Any] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    frames: Frames = field(default_factory=Frames)
    steps: array[int] = field(default_factory=lambda: array("q"))
    flags: array[int] = field(default_factory=lambda: array("I"))
    tally: Tally = field(default_factory=Tally)
    complete: bool = False

    @cached_property
    def identity(self) -> int:
        """Where every checksum of this run begins, so that another run's rows do not pass for its own."""
        return zlib.crc32(self.layout.run.encode())

    @property
    def tables(self) -> Tables:
        """Those of the version in which the recording lies; that of version 1 is written anew."""
        return TABLES_OF.get(self.layout.schema, TABLES)

    @property
    def recorded(self) -> int:
        """How many steps are in the file; `steps` may be one ahead while one is being written."""
        return self.tally.rows["steps"]

    def flags_of(self, steps: int) -> Ints:
        """The flags of the first so many steps, `(steps,)`."""
        return np.array(self.flags[:steps], dtype=np.int64)

    def frame(self, n: int) -> Frame:
        """Frame number n; struct.error, LookupError or ValueError where there is none, or nonsense."""
        return self.frames.frame(n, self.layout.columns, len(self.sites))

    def copy(self) -> Contents:
        """An independent copy."""
        return Contents(
            self.layout,
            dict(self.facts),
            list(self.sites),
            Frames(tuple(self.frames)),
            self.steps[: self.recorded],
            self.flags[: self.recorded],
            self.tally.copy(),
            self.complete,
        )

    def forget_rows(self) -> None:
        """Let go of every step, as of a recording whose file has no row yet; sites, frames and facts stay."""
        del self.steps[:], self.flags[:]
        self.tally = Tally(self.tables)


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
