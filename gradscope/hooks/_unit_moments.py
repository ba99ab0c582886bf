"""Unit moments of one tensor, reduced where it lives: a few numbers, no host read, no tensor kept.

Everything is reduced in float64, in pieces, so that what is copied stays small. The tensor is seen as (samples,
positions, units); each sum is over pieces of which nothing is cut that it takes a mean over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.activations import Activation
from gradscope.hooks._layout import Layout
from gradscope.hooks._slopes import OF_INPUT, OF_OUTPUT, Parameters, base_name, largest_slope
from gradscope.recording._unit_moments import MOST_READS

PIECE_ENTRIES = 2**21
"""Entries that are reduced at once: 16 MiB in float64, and as much again for what is taken from them."""

SATURATED_SLOPE = 0.01
"""Of the largest slope of a bounded activation: below it an entry is saturated."""

NOT_APPLICABLE = -1


@dataclass(frozen=True)
class UnitReading:
    """What was read of one tensor.

    Attributes:
        entries: of the tensor.
        units: size of its unit axis.
        samples: size of its batch axis.
        dead_reads: over how many reads a unit was silent that counts as dead.
        numbers: `(6,)` float64 on its device: silent and dead units, saturated entries, mean square slope,
            batch_spread, unit_spread.
    """

    entries: int
    units: int
    samples: int
    dead_reads: int
    numbers: Tensor

    def row(self, numbers: Tensor) -> tuple[float, ...]:
        """In the order of the columns of `UnitMoments`, given the numbers on the host."""
        silent, dead, saturated, slope, batch_spread, unit_spread = numbers.tolist()
        return (
            *(self.entries, self.units, self.samples, silent, dead, self.dead_reads, saturated),
            *(slope, 1 - batch_spread, batch_spread, unit_spread),
        )


@dataclass(frozen=True)
class Pointwise:
    """What the slope of a pointwise activation is told from.

    Attributes:
        activation: which it is.
        given: what its slope depends on beside the tensor.
        tensor: its input, or its output.
        of_output: it is the output.
    """

    activation: Activation
    given: Parameters
    tensor: Tensor
    of_output: bool


class Silence:
    """For how many reads each unit of each site has been silent, in a small vector on the site's device."""

    def __init__(self) -> None:
        self._reads: dict[int, tuple[int, Tensor]] = {}

    def update(self, site: int, silent: Tensor) -> tuple[Tensor, int]:
        """After one more read: how many units are dead, and over how many reads that is."""
        reads, since = self._reads.get(site, (0, torch.zeros_like(silent, dtype=torch.int32)))
        if since.shape != silent.shape or since.device != silent.device:  # another model by now
            reads, since = 0, torch.zeros_like(silent, dtype=torch.int32)
        since = torch.where(silent, since + 1, torch.zeros_like(since))
        reads = min(reads + 1, MOST_READS)
        self._reads[site] = reads, since
        return torch.count_nonzero(since >= reads), reads


def read_units(tensor: Tensor, layout: Layout, pointwise: Pointwise | None, silence: Silence, site: int) -> UnitReading:
    """Read one floating tensor that is not empty."""
    with torch.no_grad():
        x = _seen(tensor, layout)
        samples, _, units = x.shape
        scale = _scale(x)
        total, alive = x.new_zeros((), dtype=torch.float64), x.new_zeros(units, dtype=torch.bool)
        between_units = between_samples = total
        for piece in _pieces(x, 0, 1):
            wide = _wide(piece, scale)
            alive = alive | (wide != 0).any(dim=1).any(dim=0)
            total = total + wide.square().sum()
            if units > 1:
                between_units = between_units + (wide - wide.mean(dim=2, keepdim=True)).square_().sum()
        for piece in _pieces(x, 1, 2) if samples > 1 else ():
            wide = _wide(piece, scale)
            between_samples = between_samples + (wide - wide.mean(dim=0, keepdim=True)).square_().sum()
        silent = ~alive
        dead, reads = silence.update(site, silent)
        saturated, slope = _slopes(pointwise, layout, total)
        numbers = (
            torch.count_nonzero(silent),
            dead,
            saturated,
            slope,
            between_samples / total * (samples / (samples - 1)) if samples > 1 else torch.full_like(total, torch.nan),
            between_units / total if units > 1 else torch.full_like(total, torch.nan),
        )
        return UnitReading(tensor.numel(), units, samples, reads, torch.stack([n.double() for n in numbers]))


def _slopes(pointwise: Pointwise | None, layout: Layout, like: Tensor) -> tuple[Tensor, Tensor]:
    """Saturated entries and the mean squared slope."""
    if pointwise is None:
        return torch.full_like(like, NOT_APPLICABLE), torch.full_like(like, torch.nan)
    functions = OF_OUTPUT if pointwise.of_output else OF_INPUT
    function = functions[base_name(pointwise.activation)]
    largest = largest_slope(pointwise.activation)
    saturated, squares = torch.zeros_like(like), torch.zeros_like(like)
    z = _seen(pointwise.tensor, layout)
    for piece in _pieces(z, 0, 1):
        wide = piece.double()
        slope = function(wide, pointwise.given)
        squares = squares + torch.where(torch.isfinite(wide), slope, torch.nan).square_().sum()
        if largest is not None:
            saturated = saturated + torch.count_nonzero(slope < SATURATED_SLOPE * largest)
    return saturated if largest is not None else torch.full_like(like, NOT_APPLICABLE), squares / z.numel()


def _seen(tensor: Tensor, layout: Layout) -> Tensor:
    """The tensor as `(samples, positions, units)`, without a copy where its memory allows."""
    x = tensor.detach()
    batch, units = layout.batch, layout.units
    others = [axis for axis in range(x.dim()) if axis not in (batch, units)]
    x = x.permute(*([] if batch is None else [batch]), *others, *([] if units is None else [units]))
    samples = 1 if batch is None else tensor.shape[batch]
    return x.reshape(samples, -1, 1 if units is None else tensor.shape[units])


def _pieces(x: Tensor, *axes: int) -> Iterator[Tensor]:
    """Cut along these axes, the first one first, into pieces that are small, or cannot be cut any more."""
    if x.numel() <= PIECE_ENTRIES or not axes:
        yield x
        return
    axis, *further = axes
    each = max(1, PIECE_ENTRIES * x.shape[axis] // x.numel())
    for piece in x.split(each, dim=axis):
        yield from _pieces(piece, *further)


def _scale(x: Tensor) -> Tensor | None:
    """What a float64 tensor's entries are divided by, for their squares may leave float64; others' cannot."""
    if x.dtype is not torch.float64:
        return None
    low, high = x.aminmax()
    largest = torch.maximum(-low, high).nan_to_num(1.0, 1.0)
    return largest.clamp_min(torch.finfo(torch.float64).tiny)


def _wide(piece: Tensor, scale: Tensor | None) -> Tensor:
    return piece.double() if scale is None else piece / scale
