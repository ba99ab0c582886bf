"""Types of 16 bits, and the factor that keeps gradients within what they hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from gradscope.diagnosis._condition import mean_of_tail
from gradscope.experiments._patient import LOW, Patient
from gradscope.experiments._remedies._registry import Case, Change, remedy

_RULES = ("dtype-underflow", "dtype-overflow", "loss-scale", "non-finite", "update-too-small", "no-gradient",
          "vanishing-gradient", "update-too-large")  # fmt: skip
_CAUSES = ("float16", "bfloat16", "scal")


@remedy("bfloat16 for float16", rules=_RULES, causes=_CAUSES)
def brain(case: Case) -> Change | None:
    """bfloat16, which has float32's range, wherever float16 is used; no loss scale."""
    pure = any(p.dtype is torch.float16 for p in case.patient.model.parameters())
    if not pure and case.patient.autocast is not torch.float16:
        return None
    return _in(case, torch.bfloat16, pure)


@remedy("float32", rules=_RULES, causes=_CAUSES)
def single(case: Case) -> Change | None:
    """float32 wherever a type of 16 bits is used; no loss scale."""
    pure = any(p.dtype in LOW for p in case.patient.model.parameters())
    if not pure and case.patient.autocast not in LOW:
        return None
    return _in(case, torch.float32, pure)


def _in(case: Case, dtype: torch.dtype, pure: bool) -> Change:
    mixed = case.patient.autocast is not None

    def do(patient: Patient) -> None:
        if pure:
            patient.model.to(dtype)
            patient.inputs_as = dtype
        if mixed:
            patient.autocast = None if dtype is torch.float32 else dtype
        patient.scaler = None

    lines = [f"model.to({dtype}); inputs = inputs.to({dtype})"] if pure else []
    if mixed:
        lines.append("# without torch.autocast" if dtype is torch.float32 else f"torch.autocast(device, {dtype})")
    if case.patient.scaler is not None:
        lines.append("# without a GradScaler")
    return Change(tuple(lines), do, "loop" if mixed or case.patient.scaler is not None else "model")


@remedy("loss scale", rules=_RULES, causes=_CAUSES)
def loss_scale(case: Case) -> Change | None:
    """A `GradScaler` that starts at the power of two that brings the largest gradient to a quarter of float16's end."""
    patient = case.patient
    if patient.autocast is not torch.float16 and not any(p.dtype is torch.float16 for p in patient.model.parameters()):
        return None
    exponent = _exponent(case)
    if exponent is None:  # nothing is left of the gradient by which to tell
        losses = {k: mean_of_tail(case.tried(_scaled(case, k)).losses) for k in (16, 24, 32)}
        best = min(losses.values())  # of equally good ones the largest loses least; the scaler itself goes down
        exponent = max(k for k, loss in losses.items() if loss <= best + 0.1 * abs(best))
    code = (
        f"scaler = torch.amp.GradScaler({_device(case)!r}, init_scale=2.0**{exponent})",
        "scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()",
    )
    return Change(code, _scaled(case, exponent), "loop", f"2^{exponent}")


def _device(case: Case) -> str:
    return next((p.device.type for p in case.patient.model.parameters()), "cpu")


def _scaled(case: Case, exponent: int) -> Callable[[Patient], None]:
    def do(patient: Patient) -> None:
        patient.scaler = torch.amp.GradScaler(_device(case), init_scale=2.0**exponent)

    return do


def _exponent(case: Case) -> int | None:
    """log2 of what brings the largest entry, by the upper edge of its histogram, to 2^14; at most 2^40."""
    recording = case.course.recording
    top = -math.inf
    for signal in ("activation_grad", "weight_grad") if recording is not None else ():
        assert recording is not None
        for step in range(min(5, len(recording.steps))):
            for site in recording.sites_of(signal):
                try:
                    edges, counts = recording.histogram(signal, site.name, step)
                except (ValueError, IndexError):
                    continue
                filled = np.flatnonzero(counts)
                if filled.size:
                    top = max(top, float(edges[filled[-1] + 1]))
    return int(min(14 - top, 40)) if math.isfinite(top) else None


@remedy("larger loss", rules=("update-too-small", "no-gradient", "dtype-underflow", "vanishing-gradient", "loss-scale"),
        causes=("tiny", "gradients are", "learning rate"))  # fmt: skip
def larger_loss(case: Case) -> Change | None:
    """The loss times the power of ten that lifts gradients above an adaptive optimizer's epsilon."""
    optimizer, recording = case.patient.optimizer, case.course.recording
    if optimizer is None or recording is None or not any("eps" in group for group in optimizer.param_groups):
        return None
    if not recording.sites_of("weight_grad") or not len(recording.steps):
        return None
    rms = recording.values("weight_grad", "rms", [0])
    known = rms[np.isfinite(rms) & (rms > 0)]
    epsilon = max(float(group.get("eps", 0.0)) for group in optimizer.param_groups)
    if not known.size or float(np.median(known)) > 10 * epsilon:
        return None
    factor = 10.0 ** math.ceil(math.log10(1e4 * epsilon / float(np.median(known))))

    def do(patient: Patient) -> None:
        patient.factor *= factor

    return Change((f"loss = {factor:.0e} * loss",), do, "loop", f"{factor:.0e}")
