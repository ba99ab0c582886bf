"""Unit moments of one tensor, reduced where it lives: a few numbers, no host read, no tensor kept.

Everything is reduced in float64, in pieces that fit a cache, so that what is copied stays small. The tensor is seen as
(samples, positions, units, positions), as its memory has it; no piece is cut where a mean is taken over it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.activations import Activation
from gradscope.hooks._layout import Layout
from gradscope.hooks._slopes import OF_INPUT, OF_OUTPUT, Parameters, base_name, largest_slope
from gradscope.recording._unit_moments import MOST_READS

PIECE_ENTRIES = {"cpu": 2**16}
"""Entries that are reduced at once: half a MiB in float64."""

ELSEWHERE_ENTRIES = 2**22
"""The same on an accelerator, where each operation costs as much as some millions of entries: 32 MiB."""

SATURATED_SLOPE = 0.01
"""Of the largest slope of a bounded activation: below it an entry is saturated."""

_NOT_APPLICABLE = -1


@dataclass(frozen=True)
class UnitReading:
    """What was read of one tensor.

    Attributes:
        entries: of the tensor.
        units: size of its unit axis.
        samples: size of its batch axis.
        dead_reads: over how many reads a unit was silent that counts as dead.
        sloped: the slope was told.
        bounded: and is that of a bounded activation.
        numbers: float64 on its device: silent and dead units; sums of squares of the entries, of what differs from
            the mean over units, and from the mean over samples; where the slope was told its sum of squares, and
            the saturated entries. (Of float64 tensors the first three sums have another unit.)
    """

    entries: int
    units: int
    samples: int
    dead_reads: int
    sloped: bool
    bounded: bool
    numbers: Tensor

    def row(self, numbers: Tensor) -> tuple[float, ...]:
        """In the order of the columns of `UnitMoments`, given the numbers on the host."""
        silent, dead, total, of_units, of_samples, *slopes = numbers.tolist()
        seen = total > 0  # neither zeros nor NaN
        unit_spread = of_units / total if seen and self.units > 1 else math.nan
        batch_spread = math.nan
        if seen and self.samples > 1:
            batch_spread = of_samples / total * (self.samples / (self.samples - 1))
        slope = slopes[0] / self.entries if self.sloped else math.nan
        saturated = slopes[1] if self.bounded else _NOT_APPLICABLE
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
        """After one more read: which units are dead, and over how many reads that is."""
        reads, before = self._reads.get(site, (0, silent))
        if not reads or before.shape != silent.shape or before.device != silent.device:  # another model by now
            reads, since = 0, silent.int()
        else:
            since = (before + 1) * silent
        reads = min(reads + 1, MOST_READS)
        self._reads[site] = reads, since
        return since >= reads, reads


def read_units(tensor: Tensor, layout: Layout, pointwise: Pointwise | None, silence: Silence, site: int) -> UnitReading:
    """Read one floating tensor that is not empty."""
    with torch.no_grad():
        x = _seen(tensor, layout)
        samples, _, units, _ = x.shape
        scale = _scale(x)
        squares, of_units, of_samples = list[Tensor](), list[Tensor](), list[Tensor]()
        for piece in _pieces(x, 0, 1, 3):
            wide = _wide(piece, scale)
            squares.append((wide * wide).sum(dim=(0, 1, 3)))
            if units > 1:
                of_units.append(_sum_of_squares(wide.sub_(wide.mean(dim=2, keepdim=True))))
        for piece in _pieces(x.reshape(samples, -1), 1) if samples > 1 else ():
            wide = _wide(piece, scale)
            of_samples.append(_sum_of_squares(wide.sub_(wide.mean(dim=0, keepdim=True))))
        of_each_unit = _sum(squares)
        silent = of_each_unit == 0 if scale is None else ~_nonzero(x)
        dead, reads = silence.update(site, silent)
        total = of_each_unit.sum()
        numbers = [silent.sum(), dead.sum(), total, _sum(of_units, total), _sum(of_samples, total)]
        largest = None if pointwise is None else largest_slope(pointwise.activation)
        if pointwise is not None:
            numbers += _slopes(pointwise, layout, largest)
        return UnitReading(
            tensor.numel(), units, samples, reads, pointwise is not None, largest is not None, _stacked(numbers)
        )


def _slopes(pointwise: Pointwise, layout: Layout, largest: float | None) -> list[Tensor]:
    """The sum of the squared slopes and, of a bounded activation, how many entries are saturated."""
    function = (OF_OUTPUT if pointwise.of_output else OF_INPUT)[base_name(pointwise.activation)]
    given = {name: v.view(-1, 1) if isinstance(v, Tensor) else v for name, v in pointwise.given.items()}
    squares, saturated = list[Tensor](), list[Tensor]()
    for piece in _pieces(_seen(pointwise.tensor, layout), 0, 1, 3):
        wide = _wide(piece, None)
        slope = function(wide, given)
        if largest is not None:
            saturated.append((slope < SATURATED_SLOPE * largest).sum())
        squares.append(_sum_of_squares(slope.contiguous()) + 0 * wide.sum())  # NaN where an entry is not finite
    return [_sum(squares), *([_sum(saturated)] if saturated else [])]


def _seen(tensor: Tensor, layout: Layout) -> Tensor:
    """The tensor as `(samples, positions, units, positions)`, without a copy where its memory allows.

    One of the two kinds of positions is of size 1: units are before all of them, or behind.
    """
    x = tensor.detach()
    batch, units = layout.batch, layout.units
    others = [axis for axis in range(x.dim()) if axis not in (batch, units)]
    of_batch, of_units = (
        [axis for axis in (batch,) if axis is not None],
        [axis for axis in (units,) if axis is not None],
    )
    samples, size = (1 if axis is None else x.shape[axis] for axis in (batch, units))
    if units is not None and x.stride(units) == 1:
        return x.permute([*of_batch, *others, *of_units]).reshape(samples, -1, size, 1)
    return x.permute([*of_batch, *of_units, *others]).reshape(samples, 1, size, -1)


def _pieces(x: Tensor, *axes: int) -> Iterator[Tensor]:
    """Cut along these axes, the first one first, into pieces that are small, or cannot be cut any more."""
    most = PIECE_ENTRIES.get(x.device.type, ELSEWHERE_ENTRIES)
    if x.numel() <= most or not axes:
        yield x
        return
    axis, *further = axes
    each = max(1, most * x.shape[axis] // x.numel())
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
    """A copy in float64, its entries one after another."""
    if scale is not None:
        return (piece / scale).contiguous()
    return piece.to(torch.float64, memory_format=torch.contiguous_format, copy=True)


def _nonzero(x: Tensor) -> Tensor:
    """Which units have any entry that is not 0, `(units,)`: not by squares, which could be 0."""
    found = [(piece != 0).any(dim=3).any(dim=1).any(dim=0) for piece in _pieces(x, 0, 1, 3)]
    return torch.stack(found).any(dim=0)


def _sum_of_squares(wide: Tensor) -> Tensor:
    flat = wide.view(-1)
    return torch.dot(flat, flat) if flat.is_cpu else flat.square().sum()


def _sum(parts: Sequence[Tensor], instead: Tensor | None = None) -> Tensor:
    """Of all pieces; where there are none, some number that is not read."""
    if not parts:
        assert instead is not None
        return instead
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(dim=0)


def _stacked(numbers: Sequence[Tensor]) -> Tensor:
    return torch.stack([number.double() for number in numbers])
