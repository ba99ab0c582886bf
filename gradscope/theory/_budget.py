"""How deep a plain network can be: the decades that are lost, and the layer at which a number format gives up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradscope.theory._expectation import Expectation

Array = NDArray[np.float64]


@dataclass(frozen=True)
class NumberFormat:
    """A floating-point format, by log10 of its numbers.

    Attributes:
        name: as torch calls it.
        smallest: log10 of the smallest number above 0.
        normal: log10 of the smallest with all its digits.
        largest: log10 of the largest.
    """

    name: str
    smallest: float
    normal: float
    largest: float


def _format(name: str, digits: int, lowest: int, highest: int) -> NumberFormat:
    """Of a significand of so many bits after the point, and exponents between these two."""
    log2 = np.log10(2.0)
    return NumberFormat(name, (lowest - digits) * log2, lowest * log2, (highest + 1) * log2)


FORMATS = {
    one.name: one
    for one in (
        _format("float32", 23, -126, 127),
        _format("bfloat16", 7, -126, 127),
        _format("float16", 10, -14, 15),
    )
}


@dataclass(frozen=True)
class Loss:
    """Where a profile leaves a format; layers count from 1, None where it does not.

    Attributes:
        format: whose.
        direction: `forward` (pre-activations) or `backward` (their gradients).
        imprecise: the first layer, in the direction of the signal, whose rms lies below the smallest normal number.
        gone: the first whose rms rounds to 0.
        squares_gone: the first whose mean square does: sums of squares, norms and variances computed in the format.
        overflows: the first whose rms is above the largest number.
    """

    format: str
    direction: Literal["forward", "backward"]
    imprecise: int | None
    gone: int | None
    squares_gone: int | None
    overflows: int | None


@dataclass(frozen=True)
class DepthBudget:
    """What a network's depth costs.

    Attributes:
        depth: number of linear layers.
        forward: decades of the pre-activations' mean square between the first layer and the last.
        backward: decades of their gradients' mean square between the last layer and the first.
        losses: by format and direction.
    """

    depth: int
    forward: float
    backward: float
    losses: tuple[Loss, ...]

    def __str__(self) -> str:
        both = f"activation variance {_change(self.forward)}, gradient variance {_change(self.backward)}"
        lines = [f"{self.depth} layers: {both}"]
        for loss in self.losses:
            parts = [
                f"{words} from layer {layer} on"
                for words, layer in (
                    ("loses digits", loss.imprecise),
                    ("is 0", loss.gone),
                    ("squares are 0", loss.squares_gone),
                    ("overflows", loss.overflows),
                )
                if layer is not None
            ]
            if parts:
                lines.append(f"  {loss.format}, {loss.direction}: {', '.join(parts)}")
        return "\n".join(lines)


def depth_budget(expected: Expectation, *, output_grad_rms: float = 1.0) -> DepthBudget:
    """What the depth of a network costs, by its expected profile.

    Args:
        expected: as `propagate` gives it.
        output_grad_rms: rms of the gradient at the output; of a mean loss over b inputs and k classes about
            1/(b·√k).

    Raises:
        ValueError: output_grad_rms is not above 0.

    >>> from gradscope.theory import propagate
    >>> lost = depth_budget(propagate("sigmoid", 50, weight_variance=1 / 256, fan_in=256))
    >>> round(lost.backward, 1)
    -61.5
    """
    if not (np.isfinite(output_grad_rms) and output_grad_rms > 0.0):
        raise ValueError(f"output_grad_rms={output_grad_rms!r} must be finite and above 0")
    depth = int(expected.pre.size)
    grads = expected.pre_grad + np.log10(output_grad_rms)
    losses = []
    for one in FORMATS.values():
        losses.append(_loss(one, "forward", expected.pre, list(range(1, depth + 1))))
        losses.append(_loss(one, "backward", grads[::-1], list(range(depth, 0, -1))))
    return DepthBudget(
        depth=depth,
        forward=2.0 * float(expected.pre[-1] - expected.pre[0]),
        backward=2.0 * float(expected.pre_grad[0] - expected.pre_grad[-1]),
        losses=tuple(losses),
    )


def _loss(one: NumberFormat, direction: Literal["forward", "backward"], log_rms: Array, layers: list[int]) -> Loss:
    def first(where: NDArray[np.bool_]) -> int | None:
        found = np.flatnonzero(where)
        return layers[int(found[0])] if found.size else None

    half = np.log10(2.0)  # what lies below half of the smallest number is rounded to 0
    return Loss(
        format=one.name,
        direction=direction,
        imprecise=first(log_rms < one.normal),
        gone=first(log_rms < one.smallest - half),
        squares_gone=first(2.0 * log_rms < one.smallest - half),
        overflows=first(log_rms > one.largest),
    )


def _change(decades: float) -> str:
    if abs(decades) < 0.05:
        return "is kept"
    return f"{'grows by' if decades > 0.0 else 'loses'} {abs(decades):.1f} decades"
