"""Where closed steps go: to the host, over the ranks, past the watch for NaN and infinity, into the recording.

The rows of a step travel to the host by themselves; it is written once they are there, so nothing waits. Only where
ranks merge, all of them write at the same moment, and wait: after the optimizer's next step, which all of them make,
rather than in the next forward pass, which may be one that a rank makes by itself.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from gradscope.diagnosis import Watch
from gradscope.hooks._coverage import UNCALLED
from gradscope.hooks._dump import dump
from gradscope.hooks._lattice import SAMPLE_ENTRIES
from gradscope.hooks._nonfinite import (
    ORDER,
    NonFinite,
    NonFiniteError,
    OnNonFinite,
    first_elsewhere,
    first_nonfinite,
)
from gradscope.hooks._parameters import some_gradient_unread
from gradscope.hooks._record import Merger, to_record
from gradscope.hooks._sites import SiteBook
from gradscope.hooks._step import Step
from gradscope.hooks._unobserved import Unobserved
from gradscope.recording import GradScopeWarning, StepRecord

RING = 20
"""Steps since the last due one that are kept, to be written if the next is not finite."""


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
        watch: Watch | None = None,
    ) -> None:
        self.watch = watch
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

    @property
    def wants_units(self) -> bool:
        """Whether unit moments are asked for out of turn; where ranks merge, all of them would have to be asked."""
        return self.watch is not None and self.ranks is None and self.watch.wants_units

    def put(self, step: Step, *, meets_later: bool = False) -> None:
        """Take a step that nothing will change any more; with `meets_later`, `meet` will be called after it."""
        step.done = True
        step.send()
        self._waiting.append(step)
        if self.ranks is None or not meets_later or len(self._waiting) > 1:
            self.flush(wait=self.ranks is not None)

    def meet(self) -> None:
        """All ranks are at this point of their program: merge and write what waits for it."""
        if self.ranks is not None:
            self.flush(wait=True)

    def flush(self, *, wait: bool) -> None:
        """Write the steps whose rows have arrived; with `wait`, all."""
        while self._waiting and (wait or self._waiting[0].arena.host.arrived()):
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

    def something_new_and_bad(self, step: Step) -> bool:
        """Whether passes that no backward follows are to be kept all the same: for the first NaN or infinity."""
        if self.first is not None or not step.observed:
            return False
        if torch.cuda.is_initialized() and not step.watched:  # else a device is waited for
            return False
        return not all(arena.finite_so_far() for arena in (step.arena, *(forward.arena for forward in step.forwards)))

    def check(self, step: Step) -> None:
        """Look for NaN and infinity before the optimizer has run: to raise, or to dump what made them.

        Raises:
            NonFiniteError: one was found, and that was asked for.
        """
        if self.on_nonfinite not in ("raise", "dump") or self.first is not None or not step.observed:
            return
        step.gather()
        step.arena.send()
        if step.arena.host.all_finite() or (found := first_nonfinite(step, self._book.sites)) is None:
            return
        self._tell_first(step, found, overflow_is_normal=step.scale is not None)
        if self._is_first(found) and self.on_nonfinite == "raise":
            self._raised = True
            raise NonFiniteError(found)

    def _write(self, step: Step) -> None:
        found = None if step.arena.host.all_finite() else first_nonfinite(step, self._book.sites)
        if step.arena.sampled:
            self.set_fact("sampled", {"entries": SAMPLE_ENTRIES, "of": list(step.arena.estimates)})
        whole = self._whole_model and not some_gradient_unread(self._unobserved.reasons)
        record = to_record(step, self.ranks, whole)
        if self.ranks is not None:
            found = self._earlier_elsewhere(found, record)
            for name in [n for n, reason in self._unobserved.reasons.items() if reason in UNCALLED]:
                if self._book.knows("activation", name):  # from another rank
                    self._unobserved.drop(name)
        if found is not None:
            notes = {"nonfinite": found.sentence} | ({"overflow_site": found.site} if step.skipped else {})
            record = replace(record, notes=notes | dict(record.notes))
            self._tell_first(step, found, overflow_is_normal=step.skipped or step.scale is not None)
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
        self._watched(record)

    def _watched(self, record: StepRecord) -> None:
        without = 0
        if "weight_grad" in record.moments:
            moments = record.moments["weight_grad"][1]
            without = int((moments.zeros == moments.count).sum())
        self._ask(lambda watch: watch.step_recorded(self._book.recording, record.step, record.notes, without))

    def end(self) -> None:
        """Nothing more will be written."""
        self._ask(lambda watch: watch.end(self._book.recording))

    def _ask(self, question: Callable[[Watch], None]) -> None:
        if self.watch is None:
            return
        try:
            question(self.watch)
        except Exception as error:
            self.watch = None
            _warn(f"on_finding is called no more: it, or the diagnosis, failed with {type(error).__name__}: {error}")

    def _earlier_elsewhere(self, found: NonFinite | None, record: StepRecord) -> NonFinite | None:
        """What was not finite first on any rank: a gradient that ranks have averaged is not, where one of them is not.

        What was found before that is this rank's own, and stands.
        """
        if found is not None and found.signal not in ("weight_grad", "update"):
            return found
        elsewhere = first_elsewhere(record, self._book.sites)
        if elsewhere is None or (found is not None and ORDER.index(elsewhere.signal) >= ORDER.index(found.signal)):
            return found
        return elsewhere

    def _tell_first(self, step: Step, found: NonFinite, overflow_is_normal: bool) -> None:
        """The run's first is noted, and told as was asked for."""
        if self.first is not None:
            return
        if overflow_is_normal and found.signal in ("activation_grad", "weight_grad"):
            return  # the scaler tries a factor that is too large, skips the step, and takes a smaller one
        self._tell(step, found)

    def _tell(self, step: Step, found: NonFinite) -> None:
        self.first = found
        self._book.recording.set_fact("first_nonfinite", found.as_dict())
        if self.on_nonfinite == "warn":
            _warn(found.sentence)
        elif self.on_nonfinite == "dump":
            try:
                self._dumped = dump(step, found, self._book.recording)
                _warn(f"{found.sentence}; its batch is in {self._dumped}")
            except OSError as error:
                _warn(f"{found.sentence}; its batch could not be kept: {error}")


def _warn(sentence: str) -> None:
    warnings.warn(sentence, GradScopeWarning, stacklevel=2)
