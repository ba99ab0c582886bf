"""How a step's rows become its line of the recording: merged by site, unscaled, merged over ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.hooks._clipping import total_norm
from gradscope.hooks._moments import Arena, Rows
from gradscope.hooks._step import Step
from gradscope.recording import HISTOGRAM_EDGES, Moments, Signal, StepRecord

Pairs = list[tuple[int, Rows]]


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
    signals = _pairs(step)
    scale = 1.0 if step.scale is None else float(step.scale)
    grad_scale = 1.0 if step.unscaled_weight_grads else scale
    divisors = {"activation_grad": scale * (ranks.averaged_over if ranks else 1), "weight_grad": grad_scale}
    moments: dict[Signal, tuple[NDArray[np.int64], Moments]] = {}
    histograms: dict[Signal, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    own: dict[Signal, NDArray[np.bool_]] = {}
    for signal, pairs in signals.items():
        if not pairs:
            continue
        ids, merged, own[signal] = _by_site(step.arena, pairs)
        moments[signal] = (ids, _divide(merged, divisors.get(signal, 1.0)))
        if step.arena.histograms:
            histograms[signal] = _histograms(ids, pairs)
    record = StepRecord(step=step.number, skipped=step.skipped, moments=moments, histograms=histograms)
    if ranks is not None:
        record = ranks.merged(record, own)
    notes = dict(record.notes)
    if step.scale is not None:
        notes["loss_scale"] = scale
    notes |= _norms(step, record, scale) if whole_model and (ranks is None or ranks.whole) else {}
    notes |= {name: _plain(value) for name, value in step.notes.items()}  # the user's own word stands
    return replace(record, notes=notes)


def _pairs(step: Step) -> dict[Signal, Pairs]:
    forwards = step.counted_forwards()
    weight_grads: dict[int, Rows] = {}
    for forward in forwards:  # a gradient accumulates: what the last backward left is the gradient
        weight_grads.update(forward.weight_grads)
    return {
        "activation": [pair for f in forwards for pair in f.activations],
        "activation_grad": [pair for f in forwards for pair in f.gradients.items()],
        "weight": step.weights,
        "weight_grad": list(weight_grads.items()),
        "update": step.updates,
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


def _by_site(arena: Arena, pairs: Iterable[tuple[int, Rows]]) -> tuple[NDArray[np.int64], Moments, NDArray[np.bool_]]:
    joined: dict[int, Rows] = {}
    for site, rows in pairs:
        joined[site] = rows if site not in joined else joined[site] + rows
    own = np.array([rows.own for rows in joined.values()], dtype=bool)
    return np.array(list(joined), dtype=np.int64), arena.read(list(joined.values())), own


def _histograms(
    ids: NDArray[np.int64], pairs: Iterable[tuple[int, Rows]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    counts: Mapping[int, list[Tensor]] = {int(i): [] for i in ids}
    for site, rows in pairs:
        counts[site].extend(rows.histogram)
    empty = torch.zeros(len(HISTOGRAM_EDGES) - 1, dtype=torch.int64, device="cpu")
    table = [torch.stack(parts).sum(0) if parts else empty for parts in counts.values()]
    return ids, torch.stack([row.long() for row in table]).numpy()


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
