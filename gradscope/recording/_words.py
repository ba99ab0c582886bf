"""What a profile says in one sentence."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gradscope.recording._profile import Direction, in_flow, representable
from gradscope.recording._survival import decades_lost

KEEPS = np.log10(2.0)
"""Within a factor of two over the whole network, a signal keeps its size."""

_NOUN: dict[Direction, str] = {"forward": "signal", "backward": "gradient"}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def flow_sentence(rms: ArrayLike, direction: Direction) -> str:
    """What becomes of a signal with this rms `(layers,)`, from input to output, as it flows.

    Layers are numbered from 1 at the input; a gradient runs down from the last.

    >>> flow_sentence([1.0, 1.01, 1.02], "forward")
    'signal keeps its size (×1.02 over 3 layers)'
    >>> flow_sentence([2e-31, 1e-10, 1.0], "backward")
    'gradient shrinks 5×10³⁰ over 3 layers'
    >>> flow_sentence([0.0, 0.0, 1e-30, 1.0], "backward")
    'gradient is gone (0 in float32) from layer 2 down'
    """
    flow, noun = in_flow(rms, direction), _NOUN[direction]
    if not flow.size:
        return f"{noun} was not measured"
    dead = np.flatnonzero(~representable(flow))
    if dead.size:
        return f"{noun} {_death(flow[dead[0]])} {_from_layer(int(dead[0]), len(flow), direction)}"
    grown = -decades_lost(flow, "forward")
    over = f"over {len(flow)} layer{'s' if len(flow) > 1 else ''}"
    if abs(grown) <= KEEPS:
        return f"{noun} keeps its size (×{10**grown:.3g} {over})"
    return f"{noun} {'grows' if grown > 0 else 'shrinks'} {times(abs(grown))} {over}"


def times(decades: float) -> str:
    """A factor of ten to that power, for reading.

    >>> times(1.08), times(30.67)
    ('12-fold', '4.7×10³⁰')
    """
    if abs(decades) < 3:
        return f"{10**decades:.2g}-fold" if decades < 2 else f"{10**decades:.0f}-fold"
    power = int(np.floor(decades))
    digits = f"{10 ** (decades - power):.1f}".removesuffix(".0")
    if digits == "10":
        digits, power = "1", power + 1
    return f"{digits}×10{str(power).translate(_SUPERSCRIPT)}"


def _death(rms: float) -> str:
    if not np.isfinite(rms):
        return "overflows float32"
    return "is gone (0 in float32)" if rms == 0 else "is gone (under 10⁻³⁶)"


def _from_layer(passed: int, layers: int, direction: Direction) -> str:
    if passed == 0:
        return "where it enters"
    return f"from layer {passed + 1} up" if direction == "forward" else f"from layer {layers - passed} down"
