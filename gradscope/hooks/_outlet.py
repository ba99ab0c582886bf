"""Where closed steps go: to the host, over the ranks, past the watch for NaN and infinity, into the recording.

The rows of a step travel to the host by themselves; it is written once they are there, so nothing waits. Only where
ranks merge, all of them write at the same moment, and wait.
"""

from __future__ import annotations

import warnings
from collections import deque
from pathlib import Path

from gradscope.hooks._dump import dump
from gradscope.hooks._nonfinite import NonFinite, NonFiniteError, OnNonFinite, first_elsewhere, first_nonfinite
from gradscope.hooks._record import Merger, to_record
from gradscope.hooks._sites import SiteBook
from gradscope.hooks._step import Step
from gradscope.hooks._unobserved import Unobserved
from gradscope.recording import GradScopeWarning, StepRecord

RING = 20
"""Steps before a non-finite one that are kept although they were not due."""


class Outlet:
    """Turns closed steps into records, in order."""

    def __init__(
        self,
        book: SiteBook,
        unobserved: Unobserved,
        *,
        on_nonfinite: OnNonFinite | None = None,
        ranks: Merger | None = None,
        whole_model: bool = True,
    ) -> None:
        self.first: NonFinite | None = None
        self.on_nonfinite = on_nonfinite
        self.ranks = ranks
        self._book = book
        self._unobserved = unobserved
        self._whole_model = whole_model
        self._waiting: deque[Step] = deque()
        self._ring: deque[StepRecord] = deque(maxlen=RING)
        self._dumped: Path | None = None
        self._raised = False
        self._facts: dict[str, object] = {}

    def put(self, step: Step) -> None:
        """Take a step that nothing will change any more."""
        step.done = True
        step.send()
        self._waiting.append(step)
        self.flush(wait=self.ranks is not None)

    def flush(self, *, wait: bool) -> None:
        """Write the steps whose rows have arrived; with `wait`, all."""
        while self._waiting and (wait or self._waiting[0].arena.arrived()):
            step = self._waiting.popleft()
            try:
                self._write(step)
            finally:
                step.arena.release()

    def set_fact(self, key: str, value: object) -> None:
        """A fact of the run."""
        if self._facts.get(key) != value:
            self._facts[key] = value
            self._book.recording.set_fact(key, value)

    def check(self, step: Step) -> None:
        """Look for NaN and infinity before the optimizer has run: to raise, or to dump what made them.

        Raises:
            NonFiniteError: one was found, and that was asked for.
        """
        if self.on_nonfinite not in ("raise", "dump") or self.first is not None or not step.observed:
            return
        step.arena.send()
        found = self._look(step, overflow_is_normal=step.scale is not None)
        if found is not None and self._is_first(found) and self.on_nonfinite == "raise":
            self._raised = True
            raise NonFiniteError(found)

    def _write(self, step: Step) -> None:
        found = self._look(step, overflow_is_normal=step.skipped or step.scale is not None)
        if found is not None:
            step.notes.setdefault("nonfinite", found.sentence)
            if step.skipped:
                step.notes.setdefault("overflow_site", found.site)
        record = to_record(step, self.ranks, self._whole_model)
        if found is None and self.ranks is not None and self.first is None and not step.skipped and step.scale is None:
            found = first_elsewhere(record, self._book.sites)
            if found is not None:
                self._tell(step, found)
        run_up = found is not None and self._is_first(found)
        if run_up:
            for earlier in self._ring:
                self._append(earlier)
            self._ring.clear()
        if step.due or run_up:
            self._append(record)
            self._ring.clear()
        else:
            self._ring.append(record)
        if run_up:
            self._conclude()

    def _conclude(self) -> None:
        """The step of the first NaN or infinity is in the recording, and what led to it."""
        if self._dumped is not None and self._book.recording.path is None:
            self._book.recording.save(self._dumped.with_suffix(".gscope"))
        if self.on_nonfinite == "raise" and not self._raised and self.first is not None:
            self._raised = True
            raise NonFiniteError(self.first)

    def _is_first(self, found: NonFinite) -> bool:
        return self.first is not None and self.first.step == found.step

    def _append(self, record: StepRecord) -> None:
        recording = self._book.recording
        if self._unobserved.changed:
            recording.set_fact("unobserved", dict(self._unobserved.reasons))
            self._unobserved.changed = False
        recording.append(record)

    def _look(self, step: Step, overflow_is_normal: bool) -> NonFinite | None:
        """The step's first NaN or infinity; the run's first is noted, and told as was asked for."""
        if step.arena.all_finite():
            return None
        found = first_nonfinite(step, self._book.sites)
        if found is None or self.first is not None:
            return found
        if overflow_is_normal and found.signal in ("activation_grad", "weight_grad"):
            return found  # the scaler tries a factor that is too large, skips the step, and takes a smaller one
        self._tell(step, found)
        return found

    def _tell(self, step: Step, found: NonFinite) -> None:
        self.first = found
        self._book.recording.set_fact("first_nonfinite", found.as_dict())
        if self.on_nonfinite == "warn":
            _warn(found.sentence)
        elif self.on_nonfinite == "dump":
            self._dumped = dump(step, found, self._book.recording)
            _warn(f"{found.sentence}; its batch is in {self._dumped}")


def _warn(sentence: str) -> None:
    warnings.warn(sentence, GradScopeWarning, stacklevel=2)
