"""Whether a run learns, diverges, and how far a step moves each layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradscope.diagnosis._evidence import Evidence, Floats


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
        if not beyond.size and len(known) > 2 and float(loss[known[-1]]) < min(first, float(loss[known[-2]])):
            return None  # it was falling: no step made it so
        step = int(evidence.recording.steps[evidence.broken_at])
        return int(beyond[0]) if beyond.size else len(evidence.at), f"The run is not finite any more at step {step}."
    if len(known) < 4 or not beyond.size:
        return None
    last, highest = float(np.median(loss[known[-3:]])), float(loss[known].max())
    if last > first + 3 * abs(first):
        return int(beyond[0]), f"The loss has grown from {first:.3g} to {last:.3g}."
    if highest > first + 9 * abs(first) and last > first - 0.7 * abs(first):
        return int(beyond[0]), f"The loss went from {first:.3g} up to {highest:.3g}, and is {last:.3g} at the end."
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


def thrives(evidence: Evidence) -> bool:
    """Whether the loss is above zero and has fallen to less than three tenths: what could be better does no harm."""
    loss = evidence.loss
    if not evidence.training or len(loss) < 4 * evidence.limits.hysteresis:
        return False
    known = np.isfinite(loss).all() and (loss > 0).all()
    return bool(known) and float(np.median(loss[-5:])) < 0.3 * float(np.median(loss[:3]))


def promised(evidence: Evidence) -> Floats:
    """By how much each step can lower the loss to first order: Σ ‖g‖·‖u‖ over the parameters, `(steps,)`.

    It is what plain gradient descent promises exactly, −g·u = ‖g‖·‖u‖, and a bound for every other optimizer
    (Cauchy-Schwarz). NaN where the gradients or updates of a step were not recorded.
    """
    return evidence.once(_promised)


def _promised(evidence: Evidence) -> Floats:
    if not (evidence.has("weight_grad") and evidence.has("update")):
        return np.full(len(evidence.at), np.nan)
    place = {site.name: i for i, site in enumerate(evidence.sites("update"))}
    both = [(i, place[s.name]) for i, s in enumerate(evidence.sites("weight_grad")) if s.name in place]
    sizes = np.array([np.prod(evidence.sites("weight_grad")[i].shape) for i, _ in both], dtype=np.float64)
    gradient = evidence.values("weight_grad")[:, [i for i, _ in both]]
    update = evidence.values("update")[:, [j for _, j in both]]
    product = gradient * update * sizes  # ‖·‖ = rms·√n, twice
    known = np.isfinite(product)
    return np.where(known.any(axis=1), np.where(known, product, 0.0).sum(axis=1), np.nan)


def coherence(evidence: Evidence) -> float:
    """Whether the steps go the same way, from 0 to 1: the median over the weights of |Σ m| / Σ |m|, m the mean of an
    update. Of N steps at random it is about 1/√N."""
    mean = evidence.by_layer("update", "mean")
    known = np.isfinite(mean)
    total, every = np.abs(np.where(known, mean, 0.0).sum(axis=0)), np.where(known, np.abs(mean), 0.0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = total / every
    share = share[np.isfinite(share)]
    return float(np.median(share)) if share.size else 0.0
