"""Writing a recording: one transaction a step, so that a killed process loses at most the step in flight.

A file is in WAL mode while it grows: others can read it, and a commit does not wait for the disk
(synchronous=NORMAL loses nothing when the process dies, and at most the last steps, never the file, when the
machine does). It goes back to one plain file when it is closed. Without a path the rows go to SQLite's
private temporary database, which spills to disk.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gradscope.recording._contents import Contents, Layout, site_to_bytes
from gradscope.recording._encoding import Encoder
from gradscope.recording._errors import RecordingError, unknown_name
from gradscope.recording._json import dumps, to_plain
from gradscope.recording._moments import StepRecord
from gradscope.recording._opening import TIMEOUT_S
from gradscope.recording._schema import APPLICATION_ID, DDL, PUT, SCHEMA, Tally, checksum
from gradscope.recording._site import SIGNALS, Site


class Writer:
    """The one writer of a recording, for every thread of the process that made it."""

    def __init__(self, path: Path | None, facts: Mapping[str, Any]) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.contents = Contents(Layout(uuid.uuid4().hex), to_plain(dict(facts)))
        self.open = True
        self._pid = os.getpid()
        self._changed_sites: dict[int, Site] = {}
        self._changed_facts = True
        self._names: set[tuple[str, str]] = set()
        self._encode = Encoder(self.contents)
        with self._explained("created"):
            target = "" if path is None else f"{path.as_uri()}?mode=rw"
            self.connection = sqlite3.connect(
                target, uri=True, timeout=TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self.connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self.connection.execute(f"PRAGMA user_version={SCHEMA}")
        with self._transaction() as tally:
            for sql in DDL.values():
                self.connection.execute(sql)
            self._put(tally, "header", 0, (), self.contents.layout.dumps())
        with self._explained("created"):
            # Only now, so that even a file whose log was lost says what it is.
            self.connection.execute("PRAGMA journal_mode=" + ("MEMORY" if path is None else "WAL"))
            self.connection.execute("PRAGMA synchronous=" + ("OFF" if path is None else "NORMAL"))

    def add_site(self, site: Site) -> int:
        """Keep a site for the next transaction; its id."""
        with self.lock:
            self._check_open()
            self._take_name(site)
            self.contents.sites.append(site)
            self._changed_sites[len(self.contents.sites) - 1] = site
            return len(self.contents.sites) - 1

    def replace_site(self, site_id: int, site: Site) -> None:
        """Exchange a site for one of the same signal that knows more."""
        with self.lock:
            self._check_open()
            if not 0 <= site_id < len(self.contents.sites):
                raise ValueError(f"site_id={site_id} is unknown; allowed: 0 … {len(self.contents.sites) - 1}")
            old = self.contents.sites[site_id]
            if old.signal != site.signal:
                raise ValueError(f"site {site_id} observes {old.signal}; its replacement observes {site.signal}")
            if old.name != site.name:
                self._take_name(site)
                self._names.discard((old.signal, old.name))
            self.contents.sites[site_id] = self._changed_sites[site_id] = site

    def set_fact(self, key: str, value: object) -> None:
        """Keep a fact for the next transaction."""
        with self.lock:
            self._check_open()
            self.contents.facts[str(key)] = to_plain(value)
            self._changed_facts = True

    def append(self, record: StepRecord) -> None:
        """Write one step, whole or not at all."""
        with self.lock:
            self._check_open()
            here = self.contents
            rows = self._encode(record)
            at = here.recorded
            del here.steps[at:], here.skipped[at:]  # of a step that was not committed
            if here.steps and record.step <= here.steps[-1]:
                raise ValueError(f"step={record.step} comes after step {here.steps[-1]}; steps only grow")
            here.steps.append(record.step)
            here.skipped.append(bool(record.skipped))
            with self._transaction() as tally:
                self._put(tally, "steps", at, (int(record.step), int(record.skipped)), dumps(record.notes))
                for table, signal, blob in rows:
                    self._put(tally, table, tally.rows[table], (at, signal), blob)

    def close(self) -> None:
        """End the writing; a file becomes one file, marked complete. A temporary database stays readable."""
        with self.lock:
            if not self.open or os.getpid() != self._pid:
                return  # a forked child leaves the file to its parent
            self.open = False
            try:
                with self._transaction(complete=True):
                    pass  # sites and facts that no step has carried, and the seal
                self.contents.complete = True
                if self.path is not None:
                    with suppress(sqlite3.OperationalError):  # a reader is in the way: its log stays until it is gone
                        self.connection.execute("PRAGMA journal_mode=DELETE")
            finally:
                if self.path is not None:
                    self.connection.close()

    def release(self) -> None:
        """Close for good, when nobody can read any more; nothing is raised."""
        with suppress(RecordingError):
            self.close()
        if os.getpid() == self._pid:
            self.connection.close()

    def flush(self) -> None:
        """Write sites and facts that no step has carried yet."""
        with self.lock:
            if self.open and (self._changed_sites or self._changed_facts):
                with self._transaction():
                    pass

    def _check_open(self) -> None:
        if not self.open:
            raise RecordingError(f"recording {self._name} is read-only: it was closed")
        if os.getpid() != self._pid:
            raise RecordingError(
                f"recording {self._name} belongs to process {self._pid}; a forked child cannot write it"
            )

    def _take_name(self, site: Site) -> None:
        if site.signal not in SIGNALS:
            raise unknown_name("signal", site.signal, SIGNALS)
        if (site.signal, site.name) in self._names:
            raise ValueError(f"site {site.name!r} of {site.signal} is already in the recording")
        self._names.add((site.signal, site.name))

    @property
    def _name(self) -> str:
        return "in memory" if self.path is None else str(self.path)

    @contextmanager
    def _explained(self, verb: str = "written") -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            raise RecordingError(f"recording {self._name} cannot be {verb}: {e}") from e

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
        sites, facts = dict(self._changed_sites), self._changed_facts
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
        except sqlite3.Error as e:
            failed = True
            raise RecordingError(f"recording {self._name} cannot be written: {e}") from e
        finally:
            # An interrupt may come on either side of the commit: SQLite knows which.
            if self.connection.in_transaction:
                with suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")
            elif sealed and not failed:
                self.contents.tally = tally
                self._changed_facts = False
                self._changed_sites = {}
