"""What a sweep found: numpy values that the report draws and the tests judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.recording._profile import Direction, decades_per_layer
from gradscope.recording._survival import LayersAlive, decades_lost, layers_alive, typical
from gradscope.recording._words import flow_sentence

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Expected:
    """The theory's profile of a plain network, as log10 of rms (decades); layer l is row l - 1.

    Attributes:
        pre: log10 rms of each layer's pre-activation, `(depth,)`.
        act: log10 rms of each activation, `(depth,)`; NaN in the last row, whose output is the model's.
        pre_grad: log10 rms of the gradient of each pre-activation, `(depth,)`, relative to rms 1 at the last.
        act_grad: log10 rms of the gradient of each activation, `(depth,)`; NaN in the last row.
        forward_var: variance over random weights of the natural log of one input's mean square of `pre`,
            `(depth,)`.
        backward_var: likewise of `pre_grad`.
        label: what the curve is, in words: `mean field`, `wide limit of softmax`, `identity weights`, …
        stable: False where the map's fixed point repels: the curve is no forecast for a single network.
        valid: per layer, False where the theory does not apply, `(depth,)`.
    """

    pre: Array
    act: Array
    pre_grad: Array
    act_grad: Array
    forward_var: Array
    backward_var: Array
    label: str
    stable: bool
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class SweepCell:
    """One pair (init, activation) at one depth and width, over seeds.

    The measured arrays are rms values `(seeds, depth)`, float64, of the batch's entries: exact zeros stay 0,
    overflowed layers are inf or NaN, and what is not there (the activation after the last layer) is NaN.
    """

    init: str
    activation: str
    family: str
    depth: int
    width: int
    pre: Array
    act: Array
    pre_grad: Array
    act_grad: Array
    expected: Expected | None

    @property
    def seeds(self) -> int:
        """How many seeds were measured."""
        return int(self.pre.shape[0])

    @property
    def forward_decades(self) -> float:
        """Decades per layer of the pre-activations: the median over seeds of each seed's slope."""
        return _median_slope(self.pre, "forward")

    @property
    def backward_decades(self) -> float:
        """Decades per layer, counted from the output, of the gradients of the pre-activations, likewise."""
        return _median_slope(self.rms("backward"), "backward")

    def rms(self, direction: Direction) -> Array:
        """Of the pre-activations (forward) or their gradients (backward), `(seeds, depth)`.

        A gradient that has passed a layer whose forward signal is not finite is NaN: the slope there is that of no
        number, and what torch makes of it (1 for ReLU, 0.01 for leaky ReLU) would be drawn as if it were measured.
        """
        return np.where(self._gradient_lost, np.nan, self.pre_grad) if direction == "backward" else self.pre

    def rms_after(self, direction: Direction) -> Array:
        """The same after the activation function, `(seeds, depth)`; NaN in the last layer, which has none."""
        return np.where(self._gradient_lost, np.nan, self.act_grad) if direction == "backward" else self.act

    @property
    def _gradient_lost(self) -> NDArray[np.bool_]:
        lost = ~np.isfinite(self.pre)
        lost[:, -1] = False  # the gradient enters behind the last layer's output
        if self.activation == "identity":  # its slope is 1 whatever comes
            lost[:] = False
        return np.asarray(np.logical_or.accumulate(lost[:, ::-1], axis=1)[:, ::-1])

    def layers_alive(self, direction: Direction) -> LayersAlive:
        """How many layers are representable in every seed, and at which one float32 dies."""
        return layers_alive(self.rms(direction), direction)

    def decades_lost(self, direction: Direction) -> float:
        """log10 of rms where the signal enters over that where it leaves or was last alive, of the median seed."""
        return decades_lost(typical(self.rms(direction)), direction)

    @property
    def forward_lost_at(self) -> int | None:
        """The first layer, from 1, whose forward signal is not finite: no gradient that passes it means anything."""
        lost = np.flatnonzero(~np.isfinite(typical(self.pre)))
        return int(lost[0]) + 1 if lost.size and self._gradient_lost.any() else None

    def sentence(self, direction: Direction) -> str:
        """What becomes of the signal, in words: `gradient shrinks 4.7×10³⁰ over 50 layers`."""
        if direction == "backward" and (lost := self.forward_lost_at) is not None and self.depth > lost:
            return f"no gradient: the forward signal overflows float32 at layer {lost}"
        return flow_sentence(typical(self.rms(direction)), direction)


def _median_slope(rms: Array, direction: Direction) -> float:
    slopes = np.array([decades_per_layer(seed, direction) for seed in rms])
    known = slopes[np.isfinite(slopes)]
    return float(np.median(known)) if known.size else float("nan")


@dataclass(frozen=True)
class SweepResult:
    """All cells of a sweep, with its settings and facts (versions, device, seconds)."""

    config: dict[str, Any]
    cells: tuple[SweepCell, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def cell(self, init: str, activation: str, *, depth: int | None = None, width: int | None = None) -> SweepCell:
        """The one cell of a pair; depth and width are needed only where a sweep has several."""
        found = [
            c
            for c in self.cells
            if c.init == init
            and c.activation == activation
            and (depth is None or c.depth == depth)
            and (width is None or c.width == width)
        ]
        if len(found) != 1:
            have = ", ".join(sorted({f"{c.init}/{c.activation} d{c.depth} w{c.width}" for c in self.cells}))
            raise KeyError(
                f"{len(found)} cells match init={init!r}, activation={activation!r}, "
                f"depth={depth}, width={width}; the sweep has {have}"
            )
        return found[0]

    def to_json(self) -> dict[str, Any]:
        """The sweep as strict JSON, `schema` 1: NaN is null, infinities are "inf" and "-inf".

        Each cell carries what was measured, what theory expects, and both directions' findings.
        """
        from gradscope.recording._sweep_json import sweep_to_json  # it builds on this module

        return sweep_to_json(self)

    @staticmethod
    def from_json(data: Mapping[str, Any] | str) -> SweepResult:
        """The sweep that `to_json` wrote, as a dictionary or as text; ValueError where it is none."""
        from gradscope.recording._sweep_json import sweep_from_json

        return sweep_from_json(data)
