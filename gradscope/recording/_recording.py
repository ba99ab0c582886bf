"""A recording: sites × steps × moments, with the facts of the run, in one file or a temporary database."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gradscope.recording import _place
from gradscope.recording._copying import copy
from gradscope.recording._errors import RecordingError
from gradscope.recording._moments import StepRecord
from gradscope.recording._site import Site
from gradscope.recording._source import Source
from gradscope.recording._view import View
from gradscope.recording._writing import Writer

PathLike = str | os.PathLike[str]


class Recording(View):
    """What was observed of a run; make one with `Recording.create()`, open one with `Recording.load(path)`.

    A recording can be read while it is written, by other processes too. Arrays and tuples that it returns are
    copies. Writing is safe from any thread; a loaded or closed recording is read-only.

    >>> import numpy as np
    >>> from gradscope.recording import Moments, Site, StepRecord
    >>> recording = Recording.create(facts={"seed": 0})
    >>> site = recording.add_site(Site("activation", "0", "0", "Linear", role="pre-activation", depth=1))
    >>> for step in range(3):
    ...     moments = Moments.from_array([-10.0**step, 10.0**step])
    ...     recording.append(StepRecord(step, moments={"activation": (np.array([site]), moments)}))
    >>> recording.values("activation", "rms")[:, 0].tolist()
    [1.0, 10.0, 100.0]
    """

    def __init__(self, source: Source) -> None:
        """Private: `create` and `load` make recordings."""
        super().__init__(source)
        if source.writer is not None:
            # At the end of the process or of the object, whoever forgot to close has a whole file.
            weakref.finalize(self, source.writer.release)

    @classmethod
    def create(
        cls, path: PathLike | None = None, *, facts: Mapping[str, Any] | None = None, overwrite: bool = False
    ) -> Self:
        """A new recording.

        Where the directory is good but allows no locks (some network drives), the recording grows in the directory
        for temporary files and is saved to `path` by `close`; a GradScopeWarning says so.

        Args:
            path: file to write, which grows with each step; None for a temporary database that lasts as long
                as the object does (`save` keeps it).
            facts: of the run; what JSON does not know is kept as str.
            overwrite: replace a recording that is at `path`; anything else that is there is never replaced.

        Raises:
            RecordingError: the path is taken or cannot be written.
        """
        place = None if path is None else Path(path).absolute()
        if place is not None:
            _place.claim(place, overwrite)
        try:
            writer = Writer(place, facts or {})
        except RecordingError:
            if place is not None:
                _place.remove(place)
            raise
        recording = cls(Source(writer.contents, writer.path, writer))
        writer.warn_where_it_grows()
        return recording

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """The recording at a path, read-only, after every checksum in it has been verified.

        Of a file over 64 MiB the moments and histograms are not read yet: their checksums are verified when they are,
        or all at once by `verify`. A recording that is still being written is loaded as it is now; `load` again to
        see more.

        Raises:
            RecordingError: the file is missing, foreign, cut, damaged, or of a newer version.
        """
        return cls(Source.load(Path(path).absolute()))

    def add_site(self, site: Site) -> int:
        """Add a site and return its id: 0, 1, 2, … over all signals. The next step takes it to the file."""
        return self._writing.add_site(site)

    def replace_site(self, site_id: int, site: Site) -> None:
        """Exchange a site for one of the same signal that knows more (a shape, the activation after it)."""
        self._writing.replace_site(site_id, site)

    def append(self, record: StepRecord) -> None:
        """Write one step in one transaction: whole, or, with a RecordingError, not at all.

        Where the file cannot be written (the disk is full, another process locks it, its drive is gone), one
        GradScopeWarning says so, the step waits in memory, and it is tried again with each further step and by
        `close`. A step that waits is in no answer of the recording until it is written; `save` includes it.
        """
        self._writing.append(record)

    @property
    def waiting(self) -> int:
        """How many steps wait to be written; 0 unless the file is in trouble."""
        return 0 if self._source.writer is None else self._source.writer.waiting

    def verify(self) -> None:
        """Read everything that is in the file now, and compare each row with its checksum and all with their sum.

        Raises:
            RecordingError: the file is damaged, or no longer this recording's.
        """
        self._source.verify()

    def set_fact(self, key: str, value: object) -> None:
        """Set one fact of the run. The next step takes it to the file."""
        self._writing.set_fact(key, value)

    def close(self) -> None:
        """End the writing: the file is one file, marked complete. It can still be read, and closed again.

        What the file cannot take is saved, with all that it holds, as a recording in the directory for temporary
        files; a GradScopeWarning names it, and `path` is that file from then on.
        """
        if self._source.writer is not None:
            self._source.writer.close()

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Write a complete copy to a path, at any time, also while the recording grows.

        Raises:
            RecordingError: the path is taken (`overwrite` replaces a recording) or cannot be written.
        """
        place, writer = Path(path).absolute(), self._source.writer
        if writer is None or not writer.save(place, overwrite):
            with self._source.connection() as connection:
                copy(connection, self._source.contents, place, overwrite)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _writing(self) -> Writer:
        if self._source.writer is None:
            raise RecordingError(
                f"recording {self.path} was loaded, so it is read-only: make one with Recording.create"
            )
        return self._source.writer
