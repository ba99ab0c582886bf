"""How a step's rows become its line of the recording: merged by site, unscaled, merged over ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradscope.hooks._clipping import total_norm
from gradscope.hooks._moments import Arena
from gradscope.hooks._step import Step
from gradscope.recording import Moments, Signal, StepRecord, UnitMoments
from gradscope.recording._moments import COLUMNS

Pairs = list[tuple[int, int]]
"""Sites, and the numbers of their rows; of a site there may be several."""


class Merger(Protocol):
    """Merges the moments of a step over the ranks that train together."""

    @property
    def averaged_over(self) -> float:
        """How many ranks' losses are averaged to the loss."""

    @property
    def whole(self) -> bool:
        """Whether the record of the latest step has all entries of each parameter."""

    def merged(self, record: StepRecord, own: Mapping[Signal, NDArray[np.bool_]]) -> StepRecord:
        """The record of the global batch; `own` marks the rows that this rank contributes."""


def to_record(step: Step, ranks: Merger | None = None, whole_model: bool = True) -> StepRecord:
    """The record of a step whose rows have been sent to the host.

    Args:
        step: closed; its arena not yet released.
        ranks: merges over ranks, None where there are none.
        whole_model: every parameter is recorded, so that the total gradient norm is known.
    """
    scale = 1.0 if step.scale is None else float(step.scale)
    grad_scale = 1.0 if step.unscaled_weight_grads else scale
    divisors = {"activation_grad": scale * (ranks.averaged_over if ranks else 1), "weight_grad": grad_scale}
    moments: dict[Signal, tuple[NDArray[np.int64], Moments]] = {}
    histograms: dict[Signal, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    own: dict[Signal, NDArray[np.bool_]] = {}
    for signal, found in _by_site(step.arena, {s: pairs for s, pairs in _pairs(step).items() if pairs}).items():
        moments[signal] = (found.ids, _divide(found.moments, divisors.get(signal, 1.0)))
        own[signal] = found.own
        if found.counts is not None:
            histograms[signal] = (found.ids, found.counts)
    record = StepRecord(step.number, step.skipped, {}, moments, histograms, _units(step))
    if ranks is not None:
        record = ranks.merged(record, own)
    notes = dict(record.notes)
    if step.scale is not None:
        notes["loss_scale"] = scale
    notes |= _norms(step, record, scale) if whole_model and (ranks is None or ranks.whole) else {}
    if step.lr is not None:
        notes["lr"] = _plain(step.lr)
    notes |= {name: _plain(value) for name, value in step.notes.items()}  # the user's own word stands
    return replace(record, notes=notes)


def _units(step: Step) -> tuple[NDArray[np.int64], UnitMoments] | None:
    """The unit moments of a step, whose rows have arrived."""
    if not step.units:
        return None
    sites = np.array([site for site, _, _ in step.units], dtype=np.int64)
    return sites, UnitMoments.from_rows([reading.row(numbers) for _, reading, numbers in step.units])


def _pairs(step: Step) -> dict[Signal, Pairs]:
    forwards = step.counted_forwards()
    weight_grads: dict[int, int] = {}
    for forward in forwards:  # a gradient accumulates: what the last backward left is the gradient
        weight_grads.update(forward.weight_grads)
    return {
        "activation": [pair for f in forwards for pair in f.activations],
        "activation_grad": [pair for f in forwards for pair in f.gradients.items()],
        "weight": list(step.weights),
        "weight_grad": list(weight_grads.items()),
        "update": list(step.updates),
    }


def _norms(step: Step, record: StepRecord, scale: float) -> dict[str, float]:
    """Total norm of the gradient before and after clipping, and the factor between them, as far as known."""
    if "weight_grad" not in record.moments:
        return {}
    norm = total_norm(record.moments["weight_grad"][1])
    coefficient = step.clip.coefficient(scale)
    if coefficient is None or not math.isfinite(norm):
        return {"grad_norm": norm}
    if math.isnan(coefficient):  # each entry by itself, or each layer: one factor does not tell
        return {"grad_norm_clipped" if step.clip.read_after else "grad_norm": norm, "clip_coefficient": math.nan}
    before = norm / coefficient if step.clip.read_after and coefficient else norm
    return {"grad_norm": before, "grad_norm_clipped": before * coefficient, "clip_coefficient": coefficient}


@dataclass(frozen=True)
class _Found:
    """What was read of one signal, a row a site: site ids, moments, histograms, and which of them this rank reports."""

    ids: NDArray[np.int64]
    moments: Moments
    counts: NDArray[np.int64] | None
    own: NDArray[np.bool_]


def _by_site(arena: Arena, signals: Mapping[Signal, Pairs]) -> dict[Signal, _Found]:
    """The rows of each signal, those of one site merged; all first rows are looked up at once."""
    rounds = {signal: _rounds(pairs) for signal, pairs in signals.items()}
    first = [row for of_signal in rounds.values() for row in of_signal[0].values()]
    moments = arena.host.moments(first)
    counts = arena.host.histograms(first) if arena.histograms else None
    found, start = {}, 0
    for signal, (ours, *further) in rounds.items():
        here = slice(start, start + len(ours))
        start = here.stop
        found[signal] = _Found(
            np.fromiter(ours, dtype=np.int64, count=len(ours)),
            moments.take(here),
            None if counts is None else counts[here],
            _own(arena.others, signals[signal], ours),
        )
        for more in further:
            _merge_into(found[signal], arena, {site: i for i, site in enumerate(ours)}, more)
    return found


def _merge_into(found: _Found, arena: Arena, place: Mapping[int, int], more: Mapping[int, int]) -> None:
    """Further rows of some of the sites."""
    at = np.array([place[site] for site in more], dtype=np.int64)
    both = Moments.merge(found.moments.take(at), arena.host.moments(more.values()))
    for name in COLUMNS:
        getattr(found.moments, name)[at] = getattr(both, name)
    if found.counts is not None:
        found.counts[at] += arena.host.histograms(more.values())


def _own(others: Set[int], pairs: Pairs, sites: Mapping[int, int]) -> NDArray[np.bool_]:
    own = np.ones(len(sites), dtype=bool)
    if others:
        place = {site: i for i, site in enumerate(sites)}
        for site, row in pairs:
            own[place[site]] &= row not in others
    return own


def _rounds(pairs: Pairs) -> list[dict[int, int]]:
    """The first row of each site, then the second of those that have one, and so on."""
    rounds = [dict(pairs)]
    if len(rounds[0]) == len(pairs):
        return rounds
    rounds = []
    for site, row in pairs:
        for taken in rounds:
            if site not in taken:
                taken[site] = row
                break
        else:
            rounds.append({site: row})
    return rounds


def _divide(moments: Moments, divisor: float) -> Moments:
    if divisor == 1.0:
        return moments
    return replace(
        moments,
        mean=moments.mean / divisor,
        std=moments.std / divisor,
        min=moments.min / divisor,
        max=moments.max / divisor,
    )


def _plain(value: Any) -> Any:
    """A note as the file keeps it: one-entry tensors and arrays become numbers."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.item() if np.prod(value.shape) == 1 else str(value)
    return value
