"""Gradient clipping, seen from both sides: a few entries of every gradient before and after tell the factor.

Clipping by norm multiplies all gradients by one number c, so after/before is c wherever before is not 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.hooks._distributed import local_part
from gradscope.hooks._tensors import is_distributed
from gradscope.recording import Moments

if TYPE_CHECKING:
    from gradscope.hooks._together import Together

SAMPLES = 8


_IN_NUMPY = frozenset({torch.float32, torch.float64, torch.float16})


class Few:
    """A few entries of the gradients of parameters that are read together.

    Attributes:
        of: those parameters.
        values: `(parameters, 8)`.
        read: `(parameters,)`, of which there are any.
    """

    def __init__(self, of: Together, parameters: int) -> None:
        self.of = of
        self.values = np.zeros((parameters, SAMPLES))
        self.read = np.zeros(parameters, dtype=bool)

    def put(self, places: Sequence[int], values: NDArray[np.float64]) -> None:
        """Those of some of the parameters."""
        self.values[places] = values
        self.read[places] = True


@dataclass
class ClipSamples:
    """By parameter, entries of its gradient as the last backward left it, and as the optimizer found it."""

    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)
    """By parameter, the machine epsilon of its gradient: the samples may be wider, once they are on the host."""
    together_before: Few | None = None
    together_after: Few | None = None
    together_rounding: NDArray[np.float64] | None = None
    read_after: bool = False
    """The gradients' moments were taken where `after` was, not where `before` was."""
    after_scaled: bool = False
    """`after` still carries the gradient scaler's factor, as `before` always does."""

    @property
    def begun(self) -> bool:
        """There are entries from before."""
        return bool(self.before) or self.together_before is not None

    @property
    def ended(self) -> bool:
        """There are entries from after."""
        return bool(self.after) or self.together_after is not None

    def forget_after(self) -> None:
        """What an optimizer found was of another backward."""
        self.after, self.together_after = {}, None

    def coefficient(self, scale: float) -> float | None:
        """After over before, without the scaler's factor: NaN where it is not one number, None where nothing tells."""
        parts = [
            (_numbers(self.before[n]), _numbers(self.after[n]), np.full(self.before[n].numel(), self.rounding[n]))
            for n in self.after
            if n in self.before and self.after[n].shape == self.before[n].shape
        ]
        first, last = self.together_before, self.together_after
        if first is not None and last is not None and first.of is last.of and self.together_rounding is not None:
            both = first.read & last.read
            rounding = np.repeat(self.together_rounding[both], SAMPLES)
            parts.append((first.values[both].ravel(), last.values[both].ravel(), rounding))
        if not parts:
            return None
        before, after, precision = map(np.concatenate, zip(*parts, strict=True))
        if not (np.isfinite(before).all() and np.isfinite(after).all()):
            return None
        size = np.abs(before)
        used = size > 0
        if not used.any():
            return None
        size, precision = size[used], precision[used]
        ratio = after[used] / before[used] * (1.0 if self.after_scaled else scale)
        coefficient = float(ratio[np.argmax(size)])
        # Each ratio has the rounding of one product, relative to entries that are not subnormal.
        allowed = 4 * precision * abs(coefficient) + 1e-30 / size
        return coefficient if (np.abs(ratio - coefficient) <= allowed).all() else math.nan


def _numbers(entries: Tensor) -> NDArray[np.float64]:
    return entries.double().cpu().numpy()


def sample(gradient: Tensor | None) -> Tensor | None:
    """A copy of up to eight entries of a gradient, from its beginning to its end; None where it has none to give."""
    if gradient is None:
        return None
    if gradient.requires_grad:
        gradient = gradient.detach()
    if is_distributed(gradient):
        local, _ = local_part(gradient)
        if local is None:
            return None
        gradient = local
    if gradient.layout is not torch.strided or gradient.numel() == 0:
        return None
    if gradient.is_cpu and gradient.is_contiguous() and gradient.dtype in _IN_NUMPY and not gradient.is_neg():
        entries = gradient.numpy().reshape(-1)  # no operation of torch
        return torch.from_numpy(entries[:: max(1, len(entries) // SAMPLES)][:SAMPLES].copy())
    flat = gradient.reshape(-1) if gradient.is_contiguous() else gradient.as_strided((1,), (1,))
    return flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].clone()


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
