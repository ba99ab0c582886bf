"""Writing a recording: one transaction a step, so that a killed process loses at most the step in flight.

Where the file cannot be written (a full disk, a lock that another process holds, a drive that went away), the
training goes on and no step is lost: each waits in memory and is tried again with each further step, and what
cannot be written until the end goes to a file of its own among the temporary ones.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gradscope.recording._backlog import EncodedStep
from gradscope.recording._contents import Contents, Layout
from gradscope.recording._copying import copy
from gradscope.recording._encoding import Encoder
from gradscope.recording._errors import GradScopeWarning, RecordingError, unknown_name
from gradscope.recording._json import dumps, to_plain
from gradscope.recording._keeping import Keeper
from gradscope.recording._moments import HISTOGRAM_EDGES, StepRecord
from gradscope.recording._site import SIGNALS, Site


class Writer:
    """The one writer of a recording, for every thread of the process that made it."""

    def __init__(
        self, path: Path | None, facts: Mapping[str, Any], edges: Sequence[float] = tuple(HISTOGRAM_EDGES)
    ) -> None:
        self.lock = threading.RLock()
        self.open = True
        self._name = "in memory" if path is None else str(path)
        self._pid = os.getpid()
        self._names: set[tuple[str, str]] = set()
        self._last_step: int | None = None
        self._warned: set[str] = set()
        layout = Layout(uuid.uuid4().hex, edges=tuple(float(edge) for edge in edges))
        contents = Contents(layout, to_plain(dict(facts)))
        self._encode = Encoder(contents)
        with self._explained("created"):
            self._keeper = Keeper(contents, path)

    @property
    def contents(self) -> Contents:
        """What is written; steps that wait are not in it."""
        return self._keeper.contents

    @property
    def path(self) -> Path | None:
        """The file in which that is now."""
        return self._keeper.path

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection to that database."""
        return self._keeper.ledger.connection

    @property
    def waiting(self) -> int:
        """How many steps wait."""
        with self.lock:
            return len(self._keeper.backlog)

    def warn_where_it_grows(self) -> None:
        """Say so where that is not the path that was asked for."""
        if (refused := self._keeper.refused) is not None:
            where = "a temporary database" if self.path is None else self.path
            self._warn(
                "elsewhere",
                f"recording {self._name} cannot grow in its directory ({refused}): "
                f"it grows in {where} and is saved to its path when it is closed",
            )

    def add_site(self, site: Site) -> int:
        """Keep a site for the next transaction; its id."""
        with self.lock:
            self._check_open()
            self._take_name(site)
            self.contents.sites.append(site)
            self._keeper.ledger.changed_sites[len(self.contents.sites) - 1] = site
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
            self.contents.sites[site_id] = self._keeper.ledger.changed_sites[site_id] = site

    def set_fact(self, key: str, value: object) -> None:
        """Keep a fact for the next transaction."""
        with self.lock:
            self._check_open()
            self.contents.facts[str(key)] = to_plain(value)
            self._keeper.ledger.changed_facts = True

    def append(self, record: StepRecord) -> None:
        """Write one step, whole or not at all; a step that the place refuses waits and is written later."""
        with self.lock:
            self._check_open()
            encoded = self._encode(record)
            last = self._last_step
            if last is not None and record.step <= last:
                raise ValueError(f"step={record.step} comes after step {last}; steps only grow")
            keeper = self._keeper
            at = keeper.backlog.next_at(self.contents.recorded)
            flags, frame, *values = encoded
            step = EncodedStep(at, int(record.step), flags, frame, dumps(record.notes), *values)
            self._last_step, dropped = step.step, keeper.backlog.dropped
            with self._explained():
                try:
                    trouble = keeper.write(step)
                except sqlite3.Error:
                    self._last_step = last
                    raise
            if keeper.backlog.dropped > dropped:
                self._warn("dropped", f"step {step.step} of recording {self._name} is lost: {_NO_PLACE} ({trouble})")
            elif trouble is not None:
                self._warn("waiting", f"recording {self._name} cannot be written ({trouble}): {_THEY_WAIT}")

    def save(self, path: Path, overwrite: bool) -> bool:
        """Write a complete copy, with what waits; False where that is for the reader of the file to do."""
        with self.lock:
            if not self.open or os.getpid() != self._pid:
                return False
            copy(self.connection, self.contents, path, overwrite, self._keeper.unwritten)
            return True

    def close(self) -> None:
        """End the writing; a file becomes one file, marked complete. A temporary database stays readable."""
        with self.lock:
            if not self.open or os.getpid() != self._pid:
                return  # a forked child leaves the file to its parent
            self.open = False
            said = self._keeper.close()
        dropped = self._keeper.backlog.dropped
        if dropped > 1:  # of the first there was a warning when it happened
            self._warn("close", f"{dropped} steps of recording {self._name} are lost: {_NO_PLACE}")
        if said is not None:
            self._warn("close", said)

    def release(self) -> None:
        """Close for good, when nobody can read any more; nothing is raised."""
        if self._keeper.asked is not None:
            with suppress(RecordingError):
                self.close()
        if os.getpid() == self._pid:
            with suppress(sqlite3.Error):
                self.connection.close()

    def _warn(self, what: str, sentence: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(sentence, GradScopeWarning, stacklevel=4)

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

    @contextmanager
    def _explained(self, verb: str = "written") -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            raise RecordingError(f"recording {self._name} cannot be {verb}: {e}") from e


_THEY_WAIT = "its steps are kept in memory and tried again with each further step"
_NO_PLACE = "the file cannot be written, and there is no room left for what waits"
