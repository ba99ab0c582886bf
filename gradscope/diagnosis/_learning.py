"""Whether a run learns, diverges, and how far a step moves each layer."""

from __future__ import annotations

import numpy as np

from gradscope.diagnosis._evidence import Evidence


def learning(evidence: Evidence) -> tuple[list[int], np.ndarray]:
    """The layers that are trained and whose weights are not zero at the start, and their relative updates."""
    ratio = evidence.relative_update
    weight = evidence.by_layer("weight")
    kept = [
        i
        for i, layer in enumerate(evidence.layers)
        if layer.weight.trainable
        and np.isfinite(ratio[:, i]).any()
        and weight[0, i] * np.sqrt(np.prod(layer.weight.shape[1:])) > 1e-2
    ]
    return kept, ratio[:, kept]


def diverging(evidence: Evidence) -> str | None:
    """A sentence where the loss has grown far beyond where it began, or the run ended in NaN."""
    loss = evidence.loss
    known = loss[np.isfinite(loss)]
    if evidence.broken_at is not None:
        return f"The run is not finite any more at step {int(evidence.recording.steps[evidence.broken_at])}."
    if len(known) < 4:
        return None
    first, last = float(np.median(known[:3])), float(np.median(known[-3:]))
    spread = float(np.ptp(known[: max(3, len(known) // 2)]))
    if last > first + 3 * abs(first) and last - first > spread / 2:
        return f"The loss has grown from {first:.3g} to {last:.3g}."
    return None


def learns(evidence: Evidence) -> bool:
    """Whether the loss has fallen by a tenth; taken for granted where it is not noted."""
    known = evidence.loss[np.isfinite(evidence.loss)]
    if len(known) < 4:
        return True
    k = max(1, len(known) // 5)
    first, last = float(known[:3].min()), float(np.median(known[-k:]))
    return last < first - 0.1 * abs(first)
