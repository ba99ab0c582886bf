"""Gradient clipping, seen from both sides: a few entries of every gradient before and after tell the factor.

Clipping by norm multiplies all gradients by one number c, so after/before is c wherever before is not 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gradscope.hooks._distributed import local_part
from gradscope.hooks._tensors import is_distributed
from gradscope.recording import Moments

_SAMPLES = 8


@dataclass
class ClipSamples:
    """By parameter, entries of its gradient as the last backward left it, and as the optimizer found it."""

    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)
    """By parameter, the machine epsilon of its gradient: the samples may be wider, once they are on the host."""
    read_after: bool = False
    """The gradients' moments were taken where `after` was, not where `before` was."""
    after_scaled: bool = False
    """`after` still carries the gradient scaler's factor, as `before` always does."""

    def coefficient(self, scale: float) -> float | None:
        """After over before, without the scaler's factor: NaN where it is not one number, None where nothing tells."""
        names = [n for n in self.after if n in self.before and self.after[n].shape == self.before[n].shape]
        if not names:
            return None
        before = np.concatenate([self.before[n].double().cpu().numpy() for n in names])
        after = np.concatenate([self.after[n].double().cpu().numpy() for n in names])
        rounding = np.concatenate([np.full(len(self.before[n]), self.rounding[n]) for n in names])
        if not (np.isfinite(before).all() and np.isfinite(after).all()):
            return None
        used = np.abs(before) > 0
        if not used.any():
            return None
        ratio = after[used] / before[used] * (1.0 if self.after_scaled else scale)
        coefficient = float(ratio[np.argmax(np.abs(before[used]))])
        # Each ratio has the rounding of one product, relative to entries that are not subnormal.
        allowed = 4 * rounding[used] * abs(coefficient) + 1e-30 / np.abs(before[used])
        return coefficient if (np.abs(ratio - coefficient) <= allowed).all() else math.nan


def sample(gradient: Tensor | None) -> Tensor | None:
    """A copy of up to eight entries of a gradient, from its beginning to its end; None where it has none to give."""
    if gradient is None:
        return None
    gradient = gradient.detach()
    if is_distributed(gradient):
        local, _ = local_part(gradient)
        if local is None:
            return None
        gradient = local
    if gradient.layout is not torch.strided or gradient.numel() == 0:
        return None
    flat = gradient.reshape(-1) if gradient.is_contiguous() else gradient.as_strided((1,), (1,))
    return flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].clone()


def total_norm(moments: Moments) -> float:
    """The 2-norm of all entries of all rows together: inf or NaN where an entry is."""
    if moments.nans.any():
        return math.nan
    if moments.infs.any():
        return math.inf
    filled = moments.count > 0
    rms = np.hypot(moments.mean[filled], moments.std[filled])
    largest = float(rms.max(initial=0.0))
    if largest == 0:
        return 0.0
    return largest * math.sqrt(float(np.sum(moments.count[filled] * np.square(rms / largest))))
