"""Weights drawn or set as one matrix: orthogonal, delta-orthogonal, identity, Hadamard.

A weight (out, in, *kernel) counts as the matrix (out, in·prod(kernel)). With `groups` a convolution is that
many matrices on top of each other, each filled by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gradscope.init._variance_scaling import ready


def orthogonal_(
    tensor: Tensor, gain: float = 1.0, *, groups: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Fill a weight in place with gain times a (semi-)orthogonal matrix, uniform among all such.

    With rows ≥ cols every input keeps its norm, and its mean square becomes cols/rows of what it was; with
    rows < cols a random input keeps its mean square. The same numbers as `torch.nn.init.orthogonal_`;
    float16 and bfloat16, which torch refuses, are computed in float32 and rounded. Of a convolution it is the
    flattened kernel that is orthogonal, not the convolution: see `delta_orthogonal_`.

    Source: Saxe, McClelland & Ganguli (2014); signs as in Mezzadri (2007), so that Q is uniform.

    Raises:
        ValueError: fewer than two dimensions, or groups that do not divide the first.

    >>> weight = orthogonal_(torch.empty(3, 5), generator=torch.Generator().manual_seed(0))
    >>> torch.allclose(weight @ weight.T, torch.eye(3), atol=1e-6)
    True
    """
    _check(tensor, "orthogonal_", 2, 99)
    return _by_group(tensor, groups, generator, lambda part: part.copy_(_orthogonal(part, gain, generator)))


def scaled_orthogonal_(tensor: Tensor, *, groups: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Fill a weight in place with a (semi-)orthogonal matrix times √max(1, rows/cols): every mean square is kept.

    An orthogonal matrix of more rows than columns keeps the norm, which is then spread over more units: without the
    factor the mean square of a Linear's outputs is in/out of its inputs' (pytorch#10672).

    Raises:
        ValueError: fewer than two dimensions, or groups that do not divide the first.

    >>> weight = scaled_orthogonal_(torch.empty(64, 16), generator=torch.Generator().manual_seed(0))
    >>> torch.allclose(weight.T @ weight, 4 * torch.eye(16), atol=1e-5)
    True
    """
    _check(tensor, "scaled_orthogonal_", 2, 99)

    def fill(part: Tensor) -> None:
        rows = part.shape[0]
        part.copy_(_orthogonal(part, math.sqrt(max(1.0, rows * rows / part.numel())), generator))

    return _by_group(tensor, groups, generator, fill)


def hadamard_(tensor: Tensor, *, groups: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Set a weight in place to ZerO's: nothing is drawn, and yet no rank is lost where the layer widens.

    With rows ≤ cols ones on the main diagonal; else the first columns of the Hadamard matrix of the next power of 2,
    each of norm √(rows/power). Of a kernel it is the middle tap.

    Source: Zhao, Schäfer & Anandkumar (2022), with the authors' code's factor of the Hadamard matrix.

    Raises:
        ValueError: not 2 to 5 dimensions, or groups that do not divide the first.

    >>> hadamard_(torch.empty(4, 2))
    tensor([[ 0.5000,  0.5000],
            [ 0.5000, -0.5000],
            [ 0.5000,  0.5000],
            [ 0.5000, -0.5000]])
    """
    _check(tensor, "hadamard_", 2, 5)

    def fill(part: Tensor) -> None:
        tap = _centre(part.zero_())
        rows, cols = tap.shape
        if rows <= cols:
            tap.diagonal().fill_(1.0)
        else:
            tap.copy_(_hadamard(rows, cols, tap))

    return _by_group(tensor, groups, None, fill)


def _hadamard(rows: int, cols: int, like: Tensor) -> Tensor:
    """Columns of Sylvester's matrix: those of the smallest one that has as many, again and again."""
    small = torch.ones(1, 1, dtype=torch.float32, device=like.device)
    while small.shape[0] < cols:
        small = torch.cat([torch.cat([small, small], 1), torch.cat([small, -small], 1)])
    times = -(-rows // small.shape[0])
    power = 2 ** math.ceil(math.log2(rows))
    return small.repeat(times, 1)[:rows, :cols] / math.sqrt(power)


def delta_orthogonal_(
    tensor: Tensor, gain: float = 1.0, *, groups: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Fill a convolution's weight in place: zero but for the centre tap, an orthogonal (out, in) matrix.

    Under circular padding and stride 1 such a convolution with out ≥ in keeps every norm exactly; with
    out < in the rows of the tap are orthonormal. A weight of two dimensions is a kernel of one tap.

    Source: Xiao et al. (2018), algorithm 1.

    Raises:
        ValueError: not 2 to 5 dimensions, or groups that do not divide the first.

    >>> weight = delta_orthogonal_(torch.empty(4, 4, 3, 3), generator=torch.Generator().manual_seed(0))
    >>> torch.allclose(weight[:, :, 1, 1] @ weight[:, :, 1, 1].T, torch.eye(4), atol=1e-6)
    True
    """
    _check(tensor, "delta_orthogonal_", 2, 5)

    def fill(part: Tensor) -> None:
        tap = _centre(part.zero_())
        tap.copy_(_orthogonal(tap, gain, generator))

    return _by_group(tensor, groups, generator, fill)


def identity_(tensor: Tensor, gain: float = 1.0, *, groups: int = 1) -> Tensor:
    """Set a weight in place so that the layer passes on its input: eye, or a Dirac kernel for a convolution.

    A rectangular matrix has ones on its main diagonal: as many inputs as possible are kept. A kernel's one
    sits at index size // 2, as in `torch.nn.init.dirac_`.

    Source: Le, Jaitly & Hinton (2015), for recurrent weights.

    Raises:
        ValueError: not 2 to 5 dimensions, or groups that do not divide the first.

    >>> identity_(torch.empty(2, 3))
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """
    _check(tensor, "identity_", 2, 5)
    return _by_group(tensor, groups, None, lambda part: _centre(part.zero_()).diagonal().fill_(gain))


def _check(tensor: Tensor, function: str, fewest: int, most: int) -> None:
    if not fewest <= tensor.dim() <= most:
        allowed = f"{fewest} or more" if most > 5 else f"{fewest} to {most}"
        raise ValueError(f"{function} takes a tensor of {allowed} dimensions, not shape {tuple(tensor.shape)}")


def _by_group(
    tensor: Tensor, groups: int, generator: torch.Generator | None, fill: Callable[[Tensor], object]
) -> Tensor:
    if groups < 1 or tensor.shape[0] % groups:
        raise ValueError(f"groups={groups} must divide the first dimension of shape {tuple(tensor.shape)}")
    if ready(tensor, generator):
        with torch.no_grad():
            for part in tensor.chunk(groups):
                fill(part)
    return tensor


def _orthogonal(like: Tensor, gain: float, generator: torch.Generator | None) -> Tensor:
    rows = like.shape[0]
    wide = rows < like.numel() // rows
    # QR has no half precision. The draw's layout and the thin QR of the tall side are torch's own.
    dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
    drawn = like.new_empty((rows, like.numel() // rows), dtype=dtype).normal_(0.0, 1.0, generator=generator)
    q, r = torch.linalg.qr(drawn.t() if wide else drawn)
    q *= torch.diagonal(r).sign()
    matrix: Tensor = (q.t() if wide else q) * gain
    return matrix.reshape(like.shape)


def _centre(weight: Tensor) -> Tensor:
    """The (out, in) matrix of a kernel's middle tap: a view."""
    for size in weight.shape[2:]:
        weight = weight.select(2, size // 2)
    return weight
