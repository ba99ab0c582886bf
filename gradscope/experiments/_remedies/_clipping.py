"""The norm to which gradients are clipped."""

from __future__ import annotations

import numpy as np

from gradscope.experiments._patient import Patient
from gradscope.experiments._remedies._rates import factor_to_target, ranged, to_all
from gradscope.experiments._remedies._registry import Case, Change, remedy


def _percentile(case: Case, percent: float) -> float | None:
    """Of the gradients' norms, before any clipping, of steps that were finite."""
    norms = np.array(case.course.norms, dtype=np.float64)
    known = norms[np.isfinite(norms) & (norms > 0)]
    return float(f"{np.percentile(known, percent):.3g}") if known.size else None


def _to(limit: float | None) -> Change:
    def do(patient: Patient) -> None:
        patient.max_norm = limit

    if limit is None:
        return Change(("# leave out torch.nn.utils.clip_grad_norm_",), do, "loop")
    return Change(
        (f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={limit:.3g})",), do, "loop", f"{limit:.3g}"
    )


@remedy("clip to the usual norm", rules=("gradient-spike", "exploding-gradient", "exploding-activation", "non-finite",
                                         "update-too-large", "dead-units"), causes=("clip", "batch"))  # fmt: skip
def clip(case: Case) -> Change | None:
    """Gradients clipped to the median of their norms, or that of the first step where this is less."""
    usual = _percentile(case, 50)
    first = next((norm for norm in case.course.norms if np.isfinite(norm) and norm > 0), None)
    limit = None if usual is None or first is None else min(usual, float(f"{first:.3g}"))
    if limit is None or (case.patient.max_norm is not None and case.patient.max_norm <= limit):
        return None
    return _to(limit)


@remedy("clip seldom", rules=("clipping-always", "update-too-small"), causes=("max_norm", "clip"))
def clip_seldom(case: Case) -> Change | None:
    """The limit raised to the 90th percentile of the norms: nine of ten steps pass."""
    limit = _percentile(case, 90)
    if case.patient.max_norm is None or limit is None or limit <= case.patient.max_norm:
        return None
    return _to(limit)


@remedy("no clipping", rules=("clipping-always", "update-too-small"), causes=("max_norm", "clip"))
def no_clipping(case: Case) -> Change | None:
    """Gradients as they are."""
    return None if case.patient.max_norm is None else _to(None)


@remedy("no clipping, another rate", rules=("clipping-always",), causes=("max_norm", "clip"))
def no_clipping_another_rate(case: Case) -> Change | None:
    """Gradients as they are, and the rate that this asks for: clipping had set the size of a step."""
    optimizer, usual = case.patient.optimizer, _percentile(case, 50)
    if case.patient.max_norm is None or usual is None or optimizer is None:
        return None
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    larger = 1.0 if "betas" in optimizer.param_groups[0] else max(usual / case.patient.max_norm, 1.0)
    factor = ranged(case, factor_to_target(case) / larger, _to(None).do) if len(rates) == 1 else None
    if factor is None:
        return None
    rate = f"{rates.pop() * factor:.3g}"

    def do(patient: Patient) -> None:
        patient.max_norm = None
        to_all(float(rate))(patient)

    code = (*_to(None).code, "for group in optimizer.param_groups:", f"    group['lr'] = {rate}")
    return Change(code, do, "loop", rate)
