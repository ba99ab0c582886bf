"""Whether a run learns, diverges, and how far a step moves each layer."""

from __future__ import annotations

from typing import Any

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


def optimizers_of(evidence: Evidence) -> list[dict[str, Any]]:
    """Their classes and groups, as recorded; empty where none is known."""
    found: list[dict[str, Any]] = evidence.facts.get("optimizers") or []
    return found


def is_adaptive(optimizer: str) -> bool:
    """Whether a class of optimizers, by its name, divides by the gradient's size: Adam and its kin, RMSprop, Lion."""
    return any(part in optimizer.lower() for part in ("ada", "prop", "lion", "muon", "shampoo", "soap", "sign"))


def diverging(evidence: Evidence) -> tuple[int, str] | None:
    """The place from which the loss grows far beyond where it began, or the run is not finite, and a sentence."""
    loss = evidence.loss
    known = np.flatnonzero(np.isfinite(loss))
    first = float(loss[known[0]]) if known.size else np.nan
    beyond = known[loss[known] > first + 3 * abs(first)]
    if evidence.broken_at is not None:
        step = int(evidence.recording.steps[evidence.broken_at])
        return int(beyond[0]) if beyond.size else len(evidence.at), f"The run is not finite any more at step {step}."
    if len(known) < 4 or not beyond.size:
        return None
    last, highest = float(np.median(loss[known[-3:]])), float(loss[known].max())
    if last > first + 3 * abs(first):
        return int(beyond[0]), f"The loss has grown from {first:.3g} to {last:.3g}."
    if highest > first + 9 * abs(first) and last > first - 0.7 * abs(first):
        return int(beyond[0]), f"The loss went from {first:.3g} up to {highest:.3g}, and came back to {last:.3g}."
    return None


def shrinking(evidence: Evidence) -> bool:
    """Whether most weights lose nine tenths of their size in the run: weight decay, and no step, takes it."""
    weight = evidence.by_layer("weight")
    if len(weight) < evidence.limits.hysteresis:
        return False
    with np.errstate(divide="ignore", invalid="ignore"):
        left = weight[-1] / weight[0]
    left = left[np.isfinite(left)]
    return bool(left.size) and float(np.median(left)) < 0.1


def learns(evidence: Evidence) -> bool:
    """Whether the loss has fallen by a tenth; taken for granted where it is not noted."""
    known = evidence.loss[np.isfinite(evidence.loss)]
    if len(known) < 4:
        return True
    k = max(1, len(known) // 5)
    first, last = float(known[:3].min()), float(np.median(known[-k:]))
    return last < first - 0.1 * abs(first)
