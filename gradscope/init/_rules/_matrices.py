"""What a weight is as a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 8


def orthogonal_size(matrix: Tensor) -> float | None:
    """s where the shorter side's vectors are orthogonal and of norm √s each; None where they are not.

    Of matrices with fewer than 8 such vectors nothing is said.
    """
    wide = matrix.detach().double()
    wide = wide if wide.shape[0] <= wide.shape[1] else wide.T
    if wide.shape[0] < _SMALLEST:
        return None
    close = 1e-3 if matrix.dtype in (torch.float32, torch.float64) else 3e-2
    first = float(wide[0].square().sum())
    if abs(float(wide[0] @ wide[1])) > close * first or first == 0.0:  # most are no such matrix: two rows tell
        return None
    gram = wide @ wide.T
    size = float(gram.diagonal().mean())
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return size if float((gram - size * identity).abs().max()) < close * size else None
