"""A limit for the gradient's norm, from the norms that were recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gradscope.recording._view import View


def max_norm(recording: View, quantile: float) -> float:
    """As `Recording.max_norm` says."""
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile={quantile!r} must be above 0 and at most 1")
    norms = recording.notes("grad_norm")[~recording.skipped]
    norms = norms[np.isfinite(norms)]
    if not norms.size:
        raise ValueError(
            "the recording has no finite norm of a gradient before clipping: record weight_grad of the whole model"
        )
    return float(np.quantile(norms, quantile))
