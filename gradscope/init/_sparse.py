"""Sparse weights: each unit listens to a few inputs only."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.init._fans import Fans
from gradscope.init._variance_scaling import ready

NONZEROS = 15
"""Of Martens (2010)."""


def martens_sparse_(
    tensor: Tensor,
    nonzeros: int = NONZEROS,
    std: float = 1.0,
    *,
    fans: Fans | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill a weight in place: in each row `nonzeros` entries N(0, std²), at random places, the others 0.

    A unit then sums as many inputs however wide the layer is. `torch.nn.init.sparse_` limits columns instead, what an
    input is heard by, and draws the places from the global random state whatever its `generator`.

    Args:
        tensor: (out, in, *kernel), at least two dimensions.
        nonzeros: incoming connections of each unit; all where there are fewer inputs.
        std: of the entries that are not 0.
        fans: not looked at; schemes take them.
        generator: draws places and entries.

    Source: Martens (2010), section 5: 15 connections, N(0, 1).

    Raises:
        ValueError: fewer than two dimensions, or nonzeros below 1.

    >>> weight = martens_sparse_(torch.empty(50, 200), generator=torch.Generator().manual_seed(0))
    >>> (weight != 0).sum(1).unique()
    tensor([15])
    """
    if tensor.dim() < 2:
        raise ValueError(f"martens_sparse_ takes a tensor of 2 or more dimensions, not shape {tuple(tensor.shape)}")
    if nonzeros < 1:
        raise ValueError(f"nonzeros={nonzeros!r} must be at least 1")
    if not ready(tensor, generator):
        return tensor
    rows = tensor.shape[0]
    cols = tensor.numel() // rows
    with torch.no_grad():
        order = torch.rand(rows, cols, generator=generator, dtype=torch.float32, device=tensor.device)
        places = order.topk(min(nonzeros, cols), dim=1, sorted=False).indices
        entries = torch.empty(places.shape, dtype=torch.float32, device=tensor.device).normal_(
            0.0, std, generator=generator
        )
        dense = torch.zeros(rows, cols, dtype=torch.float32, device=tensor.device).scatter_(1, places, entries)
        return tensor.copy_(dense.reshape(tensor.shape))
