"""A recording's database, written in transactions: each of them whole or not at all, with a new seal."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress

from gradscope.recording._backlog import EncodedStep
from gradscope.recording._contents import Contents, site_to_bytes
from gradscope.recording._json import dumps
from gradscope.recording._schema import APPLICATION_ID, SPARSE, Tally
from gradscope.recording._site import Site

_Row = tuple[str, int, tuple[int, ...], bytes]


class Ledger:
    """Writes rows of one recording over one connection; its troubles are sqlite3's errors.

    `contents` is what the database holds, and is brought up to date by every commit. (Of the frames it may know more
    than the database: those of a step that is yet to come, or never came.)
    """

    def __init__(self, connection: sqlite3.Connection, contents: Contents) -> None:
        self.connection = connection
        self.contents = contents
        self.changed_sites: dict[int, Site] = {}
        self.changed_facts = False
        """Sites and facts that the next transaction takes along."""

    def begin(self) -> None:
        """Make the tables of a new database."""
        self.connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        self.connection.execute(f"PRAGMA user_version={self.contents.layout.schema}")
        self._commit([("header", 0, (), self.contents.layout.dumps())], first=tuple(self.contents.tables.ddl.values()))

    def write(self, step: EncodedStep) -> None:
        """One step after those that are there."""
        here = self.contents
        at = here.recorded
        del here.steps[at:], here.flags[at:]  # of a step that was not committed
        here.steps.append(step.step)
        here.flags.append(step.flags)
        rows: list[_Row] = [("frames", n, (), here.frames[n]) for n in range(here.tally.rows["frames"], step.frame + 1)]
        rows.append(("steps", at, (step.step, step.flags), step.notes))
        rows.append(("moments", at, (step.frame,), step.moments))
        for table, value in (("histograms", step.histograms), ("units", step.units)):
            if value:
                rows.append((table, at, (), value))
        self._commit(rows)

    def seal(self, complete: bool = False) -> None:
        """Sites and facts that no step has carried yet, and the mark that no further step will come."""
        self._commit((), complete=complete)
        self.contents.complete = complete

    def _commit(self, rows: Sequence[_Row], complete: bool = False, first: Sequence[str] = ()) -> None:
        """The rows, with the sites and facts that changed and a new seal, or nothing."""
        tables, tally = self.contents.tables, self.contents.tally.copy()
        sites, facts = dict(self.changed_sites), self.changed_facts
        sealed = failed = False
        execute = self.connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            for sql in first:
                execute(sql)
            for row in rows:
                self._put(tally, *row)
            for i, site in sorted(sites.items()):
                self._put(tally, "sites", i, (), site_to_bytes(site))
            if facts:
                self._put(tally, "header", 1, (), dumps(self.contents.facts))
            seal = tables.seal(complete, tally)
            execute(tables.put["seal"], (0, seal, tables.checksum("seal", 0, (), seal, self.contents.identity)))
            sealed = True
            execute("COMMIT")
        except sqlite3.Error:
            failed = True
            raise
        finally:
            # An interrupt may come on either side of the commit: SQLite knows which.
            if self.connection.in_transaction:
                with suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")
            elif sealed and not failed:
                self.contents.tally = tally
                self.changed_facts = False
                self.changed_sites = {}

    def _put(self, tally: Tally, table: str, n: int, keys: tuple[int, ...], value: bytes) -> None:
        identity = 0 if table == "header" else self.contents.identity
        tables = self.contents.tables
        crc = tables.checksum(table, n, keys, value, identity)
        if table not in SPARSE and n < tally.rows[table]:  # of these there are fewer rows than steps
            (old,) = self.connection.execute(f"SELECT crc FROM {table} WHERE n = ?", (n,)).fetchone()
            tally.exchange(table, old, crc)
        else:
            tally.add(table, crc)
        self.connection.execute(tables.put[table], (n, *keys, value, crc))
