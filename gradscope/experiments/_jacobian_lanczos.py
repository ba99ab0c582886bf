"""A matrix's singular values from its products alone: Golub–Kahan bidiagonalisation and the quadrature it gives.

    A V_k = U_k B_k,   Aᵀ U_k = V_k B_kᵀ + β_k v_{k+1} e_kᵀ        B_k upper bidiagonal: α on the diagonal, β above

The singular values θ of B_k, with the squares of the first entries of its right singular vectors as weights, are the
Gauss quadrature of k nodes of the spectral measure that v₁ sees (Golub & Meurant 2010, chapter 3):
Σ w θ² = |A v₁|² and Σ w θ⁴ = |AᵀA v₁|² exactly, and averaged over random v₁ they give the density (stochastic Lanczos
quadrature; Ubaru, Chen & Saad 2017). The largest θ nears the largest singular value from below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Quadrature:
    """Gauss quadratures of a batch of matrices, each from one starting vector.

    Attributes:
        nodes: singular values θ, falling, `(batch, steps)`.
        weights: of them, `(batch, steps)`, which sum to 1.
        residual: |Aᵀ u − θ v| of the largest: a singular value lies so near to it, `(batch,)`.
    """

    nodes: Array
    weights: Array
    residual: Array


def quadrature(forward: Product, backward: Product, start: Tensor, steps: int, precision: float) -> Quadrature:
    """The Gauss quadrature of `steps` nodes that one starting vector for each matrix gives.

    Args:
        forward: v → A v for each matrix of the batch, `(batch, columns)` → `(batch, rows)`.
        backward: u → Aᵀu.
        start: v₁, `(batch, columns)`, float64; any length but 0.
        steps: nodes; at most the smaller side of A.
        precision: of the products, relative: what is smaller than about that is rounding, and counts as 0.
    """
    left: list[Tensor] = []
    right = [start / start.norm(dim=1, keepdim=True)]
    diagonal, above = list[Tensor](), list[Tensor]()
    scale = torch.zeros(start.shape[0], dtype=torch.float64, device=start.device)
    for _ in range(steps):
        u = forward(right[-1]).double()
        u, alpha = _new_direction(u, left, 30.0 * precision * scale)
        scale = torch.maximum(scale, alpha)
        v, beta = _new_direction(backward(u).double(), right, 30.0 * precision * scale)
        scale = torch.maximum(scale, beta)
        left.append(u)
        right.append(v)
        diagonal.append(alpha)
        above.append(beta)
    alphas, betas = (torch.stack(part, 1).cpu().numpy() for part in (diagonal, above))
    matrix = np.zeros((*alphas.shape, steps))
    index = np.arange(steps)
    matrix[:, index, index] = alphas
    matrix[:, index[:-1], index[1:]] = betas[:, :-1]
    rows, nodes, columns = np.linalg.svd(matrix)
    return Quadrature(nodes, np.square(columns[:, :, 0]), betas[:, -1] * np.abs(rows[:, -1, 0]))


def _new_direction(vector: Tensor, basis: list[Tensor], rounding: Tensor) -> tuple[Tensor, Tensor]:
    """What of a vector is new beside an orthonormal basis, of length 1, and its length; both 0 where it is rounding.

    Twice, for what the first subtraction leaves is rounded (Parlett's "twice is enough"): without it θ come back as
    copies of themselves.
    """
    if basis:
        known = torch.stack(basis)
        for _ in range(2):
            vector = vector - torch.einsum("kb,kbn->bn", torch.einsum("kbn,bn->kb", known, vector), known)
    length = vector.norm(dim=1)
    length = torch.where(length > rounding, length, torch.zeros_like(length))
    return vector / torch.where(length > 0.0, length, torch.ones_like(length))[:, None] * (length > 0.0)[
        :, None
    ], length
