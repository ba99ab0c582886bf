"""A recording's database, written in transactions: each of them whole or not at all, with a new seal."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gradscope.recording._backlog import EncodedStep
from gradscope.recording._contents import Contents, site_to_bytes
from gradscope.recording._json import dumps
from gradscope.recording._schema import APPLICATION_ID, DDL, PUT, SCHEMA, Tally, checksum
from gradscope.recording._site import Site


class Ledger:
    """Writes rows of one recording over one connection; its troubles are sqlite3's errors.

    `contents` is what the database holds, and is brought up to date by every commit.
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
        self.connection.execute(f"PRAGMA user_version={SCHEMA}")
        with self._transaction() as tally:
            for sql in DDL.values():
                self.connection.execute(sql)
            self._put(tally, "header", 0, (), self.contents.layout.dumps())

    def write(self, step: EncodedStep) -> None:
        """One step after those that are there."""
        here = self.contents
        at = here.recorded
        del here.steps[at:], here.skipped[at:]  # of a step that was not committed
        here.steps.append(step.step)
        here.skipped.append(step.skipped)
        with self._transaction() as tally:
            self._put(tally, "steps", at, (step.step, int(step.skipped)), step.notes)
            for table, signal, blob in step.rows:
                self._put(tally, table, tally.rows[table], (at, signal), blob)

    def seal(self, complete: bool = False) -> None:
        """Sites and facts that no step has carried yet, and the mark that no further step will come."""
        with self._transaction(complete):
            pass
        self.contents.complete = complete

    def _put(self, tally: Tally, table: str, n: int, keys: tuple[int, ...], value: bytes) -> None:
        identity = 0 if table == "header" else self.contents.identity
        crc = checksum(table, n, keys, value, identity)
        if n < tally.rows[table]:
            (old,) = self.connection.execute(f"SELECT crc FROM {table} WHERE n = ?", (n,)).fetchone()
            tally.exchange(table, old, crc)
        else:
            tally.add(table, keys, crc)
        self.connection.execute(PUT[table], (n, *keys, value, crc))

    @contextmanager
    def _transaction(self, complete: bool = False) -> Iterator[Tally]:
        """Everything within, with the sites and facts that changed and a new seal, or nothing."""
        tally = self.contents.tally.copy()
        sites, facts = dict(self.changed_sites), self.changed_facts
        sealed = failed = False
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield tally
            for i, site in sorted(sites.items()):
                self._put(tally, "sites", i, (), site_to_bytes(site))
            if facts:
                self._put(tally, "header", 1, (), dumps(self.contents.facts))
            seal = tally.seal(complete)
            crc = checksum("seal", 0, (), seal, self.contents.identity)
            self.connection.execute(PUT["seal"], (0, seal, crc))
            sealed = True
            self.connection.execute("COMMIT")
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
