"""What can be read of a recording: sites, steps, facts, and statistics derived from its moments."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.recording import _flags, _show
from gradscope.recording._errors import unknown_name
from gradscope.recording._gradient_states import GradientState, gradient_states
from gradscope.recording._max_norm import max_norm
from gradscope.recording._moments import Floats, Ints, Moments
from gradscope.recording._precision import PrecisionShare, known_dtype, precision_share
from gradscope.recording._profile import Profile
from gradscope.recording._sampling import Sampling, columns_of, sampling_of
from gradscope.recording._site import ROLES, SIGNALS, Role, Signal, Site
from gradscope.recording._source import Source, indices
from gradscope.recording._statistics import get_statistic
from gradscope.recording._unit_moments import UnitMoments
from gradscope.recording._unit_statistics import UNIT_STATISTICS
from gradscope.recording._unit_view import unit_function, unit_moments, unit_values


class View:
    """The reading half of `Recording`. Arrays and tuples that it returns are copies."""

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def path(self) -> Path | None:
        """The file in which the rows are, absolute; None for a temporary database."""
        return self._source.path

    @property
    def complete(self) -> bool:
        """The writer closed it; False while it grows, and for a run that was killed."""
        return self._source.contents.complete

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of the run (a copy)."""
        return copy.deepcopy(self._source.contents.facts)

    @property
    def sampling(self) -> Sampling | None:
        """What of the numbers is an estimate from some entries of each large tensor; None where nothing is."""
        return sampling_of(self._source.contents.facts)

    def is_sampled(self, stat: str) -> bool:
        """Whether a statistic of large tensors, or their `histogram`, is such an estimate.

        Raises:
            ValueError: the statistic is unknown.
        """
        if stat in UNIT_STATISTICS:
            return False  # of these every entry is read
        columns = {stat} if stat == "histogram" else columns_of(stat)
        return self.sampling is not None and not columns.isdisjoint(self.sampling.of)

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites in order of execution: by depth, then in the order in which they were added."""
        return tuple(sorted(self._source.contents.sites, key=lambda s: s.depth))

    def sites_of(self, signal: Signal) -> tuple[Site, ...]:
        """The sites of one signal in order of execution; empty where it was not recorded."""
        return tuple(self._source.contents.sites[i] for i in self._source.ids(signal))

    @property
    def steps(self) -> Ints:
        """Numbers of the recorded steps, `(steps,)` int64."""
        return np.array(self._source.contents.steps[: self._source.contents.recorded], dtype=np.int64)

    @property
    def skipped(self) -> NDArray[np.bool_]:
        """Which of them the optimizer skipped, `(steps,)`."""
        contents = self._source.contents
        return np.asarray(contents.flags_of(contents.recorded) & _flags.SKIPPED, dtype=bool)

    @property
    def findings(self) -> NDArray[np.bool_]:
        """Which of them were skipped, or had something NaN or infinite in any signal, `(steps,)`; nothing is read."""
        contents = self._source.contents
        flags = contents.flags_of(contents.recorded)
        return np.asarray(flags & (_flags.SKIPPED | _flags.NOTED), dtype=bool) | _flags.have(flags, "nonfinite")

    def recorded(self, signal: Signal) -> NDArray[np.bool_]:
        """Which steps have data of a signal, `(steps,)`; nothing is read."""
        return self._source.have("moments", signal)

    def nonfinite(self, signal: Signal) -> NDArray[np.bool_]:
        """At which steps some entry of a signal was NaN or infinite, `(steps,)`; nothing is read."""
        return self._source.have("nonfinite", signal)

    @property
    def has_unit_moments(self) -> NDArray[np.bool_]:
        """Which steps have unit moments of activations, `(steps,)`; nothing is read."""
        return self._source.have("units")

    @property
    def note_names(self) -> tuple[str, ...]:
        """Names of the notes that any step has, in the order in which they first appear."""
        return tuple(dict.fromkeys(name for notes in self._source.notes() for name in notes))

    def notes(self, name: str) -> Floats:
        """One note of every step, `(steps,)`: a truth value as 0 or 1, NaN where missing or a text."""
        return np.asarray(self.notes_of((name,))[0])

    def notes_of(self, names: Sequence[str], steps: ArrayLike | None = None) -> Floats:
        """Several notes as `notes` gives each, `(names, steps)`, read once; `steps` are indices in growing order."""
        chosen = None if steps is None else indices(steps, self._source.contents.recorded)
        rows = [
            [float(v) if isinstance(v := notes.get(name), (int, float)) else np.nan for name in names]
            for notes in self._source.notes(chosen)
        ]
        return np.ascontiguousarray(np.array(rows, dtype=np.float64).reshape(-1, len(names)).T)

    def notes_at(self, step: int = -1) -> dict[str, Any]:
        """All notes of one step, texts included (`step` is an index into `steps`)."""
        return self._source.notes_at(self._source.index(step))

    def values(self, signal: Signal, stat: str, steps: ArrayLike | None = None) -> Floats:
        """A statistic of a signal, `(steps, sites)` in the order of `sites_of`; NaN where there are no data.

        Args:
            signal: what was observed.
            stat: name of the statistic; of activations also one of `UNIT_STATISTICS`, which some steps have.
            steps: indices into `steps`, in any order, negative ones from the end; None is every step. No others
                are read.

        Raises:
            ValueError: the signal or the statistic is unknown.
            IndexError: there is no such step.
            RecordingError: the file is damaged, or has been since it was loaded.
        """
        return self.values_of(signal, (stat,), steps)[0]

    def values_of(self, signal: Signal, stats: Sequence[str], steps: ArrayLike | None = None) -> tuple[Floats, ...]:
        """Several statistics, as `values` gives each: the moments are read and checked once for all of them.

        Raises:
            ValueError, IndexError, RecordingError: as `values`.
        """
        of_units = {stat: found for stat in stats if (found := unit_function(signal, stat)) is not None}
        recorded = self._source.contents.recorded  # what a thread appends from here on is left out
        column = self._source.columns(signal)
        every = np.arange(recorded)
        chosen, places = (every, every) if steps is None else np.unique(indices(steps, recorded), return_inverse=True)
        functions = {stat: get_statistic(stat).function for stat in stats if stat not in of_units}
        out = {stat: np.full((len(chosen), column.max(initial=-1) + 1), np.nan) for stat in functions}
        for at, ids, moments in self._source.moments(signal, chosen) if functions else ():
            rows = np.searchsorted(chosen, at)
            for stat, function in functions.items():
                out[stat][rows[:, None], column[ids]] = function(moments).reshape(len(rows), len(ids))
        if of_units:
            out |= unit_values(self._source, of_units, chosen)
        return tuple(out[stat] if steps is None else out[stat][places] for stat in stats)

    def moments(self, signal: Signal, step: int = -1) -> tuple[tuple[Site, ...], Moments]:
        """The raw moments of one step (an index into `steps`): the sites that have data, a row for each."""
        sites, column = self.sites_of(signal), self._source.columns(signal)
        at = np.array([self._source.index(step, signal)])
        for _, ids, moments in list(self._source.moments(signal, at)):
            order = np.argsort(column[ids])
            return tuple(sites[i] for i in column[ids][order]), moments.decoded().take(order)
        return (), Moments.empty(0)

    def unit_moments(self, step: int = -1) -> tuple[tuple[Site, ...], UnitMoments]:
        """The unit moments of one step (an index into `steps`; −1 the last that has some): sites, a row for each.

        Nothing where the step has none. `has_unit_moments` tells which have.

        Raises:
            IndexError: there is no such step.
        """
        return unit_moments(self._source, self._source.index(step, "activation", "units"))

    def rows(self) -> Iterator[tuple[int, Signal, tuple[Site, ...], Moments]]:
        """All moments in the order of signals and steps, read as they are asked for: step, signal, sites, moments."""
        steps, sites = self.steps, list(self._source.contents.sites)
        for signal in SIGNALS:
            for (at,), ids, moments in self._source.moments(signal, np.arange(len(steps)), most=1):
                yield int(steps[at]), signal, tuple(sites[i] for i in ids), moments.decoded()

    def profile(self, signal: Signal, stat: str = "rms", step: int = -1, role: Role | None = None) -> Profile:
        """A statistic against depth at one step.

        Args:
            signal: what was observed.
            stat: name of the statistic.
            step: index into `steps`, as into a list; −1 is the last step with data of that signal (with unit moments,
                where the statistic is one of `UNIT_STATISTICS`).
            role: keep the sites of one role only.

        Returns:
            The profile over the sites that have data at that step; empty where there are none.

        Raises:
            ValueError: a name is unknown.
            IndexError: there is no such step.
        """
        of_units = unit_function(signal, stat)
        if role is not None and role not in ROLES:
            raise unknown_name("role", role, ROLES)
        at = self._source.index(step, signal, "moments" if of_units is None else "units")
        if of_units is None:
            sites, moments = self.moments(signal, at)
            values = get_statistic(stat).function(moments)
        else:
            sites, units = self.unit_moments(at)
            values = of_units(units)
        keep = np.array([i for i, s in enumerate(sites) if role in (None, s.role)], dtype=np.int64)
        sites = tuple(sites[i] for i in keep)
        depth = np.array([s.depth for s in sites], dtype=np.int64)
        return Profile(signal, stat, int(self.steps[at]), sites, depth, values[keep])

    def histogram(self, signal: Signal, site_name: str, step: int = -1) -> tuple[Floats, Ints]:
        """log2 of the bins' edges `(65,)` and the counts of |x| `(64,)` of one site at one step (an index).

        Raises:
            ValueError: there is no such site, or no histogram of it at that step.
        """
        column = {self._source.contents.sites[i].name: i for i in self._source.ids(signal)}
        if site_name not in column:
            raise unknown_name("site_name", site_name, column)
        at = self._source.index(step, signal, "histograms")
        if found := self._source.histograms(signal, at):
            ids, counts = found
            row = np.flatnonzero(ids == column[site_name])
            if row.size:
                return np.array(self._source.contents.layout.edges), counts[row[0]].copy()
        raise ValueError(f"site {site_name!r} of {signal} has no histogram at step {self.steps[at]}")

    def precision(self, signal: Signal, dtype: str, step: int = -1) -> tuple[PrecisionShare, ...]:
        """What would become of a signal's entries in a type of reduced precision, at one step.

        Args:
            signal: what was observed.
            dtype: `float16`, `bfloat16`, `float8_e4m3fn` or `float8_e5m2`.
            step: index into `steps`; −1 is the last step with histograms of that signal.

        Returns:
            One for each site that has a histogram at that step, in order of execution.

        Raises:
            ValueError: a name is unknown, or there are no histograms, or too coarse ones.
            IndexError: there is no such step.
        """
        name = known_dtype(dtype)
        at = self._source.index(step, signal, "histograms")
        every, edges = self._source.contents.sites, np.array(self._source.contents.layout.edges)
        found = self._source.histograms(signal, at) or ((), ())
        counts = {every[i]: row for i, row in zip(*found, strict=True)}
        sites, moments = self.moments(signal, at)
        shares = tuple(
            precision_share(site, name, edges, counts[site], moments.take([row]), self.is_sampled("histogram"))
            for row, site in enumerate(sites)
            if site in counts
        )
        if not shares:
            raise ValueError(
                f"{signal} has no histograms at step {self.steps[at]}: record with GradScope(..., histograms=True)"
            )
        return shares

    def gradient_states(self, step: int = -1) -> dict[str, GradientState]:
        """What became of each parameter's gradient at one step (an index into `steps`): frozen, unused or zero?

        `flows`: it has entries that are not zero. `zero`: it arrived, and all of it is zero. `unused`: none arrived,
        though the parameter is trained: nothing that the loss depends on used it. `frozen`: it requires none.

        Raises:
            ValueError: `weight_grad` was not recorded.
            IndexError: there is no such step.
        """
        return gradient_states(self, step)

    def max_norm(self, quantile: float = 0.9) -> float:
        """A sane `max_norm` for `torch.nn.utils.clip_grad_norm_`: this share of the steps would have passed unclipped.

        It is that quantile of the gradients' norms before clipping, without steps that were skipped or are not finite.
        A few spikes move it little, and a loss multiplied by a constant moves it by that.

        Args:
            quantile: share of the steps that pass, in (0, 1].

        Raises:
            ValueError: the quantile is not as above, or no step has a norm.
        """
        return max_norm(self, quantile)

    def __repr__(self) -> str:
        return _show.one_line(self)

    def __str__(self) -> str:
        return _show.text(self)

    def _repr_html_(self) -> str:
        return _show.html_table(self)
