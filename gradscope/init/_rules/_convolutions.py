"""Convolutions: fans by the shape alone, and kernels that are orthogonal as a matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gradscope.diagnosis import SEVERITIES, Direction, Finding
from gradscope.init._audit_weight import Weight
from gradscope.init._audited import Audited, audit_rule
from gradscope.init._rules._matrices import orthogonal_size
from gradscope.init._rules._words import NOTABLE, count, names, severity

_MODES = ("fan_in", "fan_out", "fan_avg")
_DIRECTIONS: dict[str, Direction] = {"fan_in": "forward", "fan_out": "backward", "fan_avg": "both"}
_GAINS = (2.0, 1.0, 1.0 / 3.0)  # He, Glorot and LeCun, torch's default


@audit_rule("swapped-fans")
def swapped_fans(audited: Audited) -> Iterator[Finding]:
    """Transposed, strided and grouped convolutions set by the fans that torch reads off the shape."""
    by_shape = ((w, _by_shape(w)) for w in audited.weights if isinstance(w.module, _ConvNd))
    found = [(weight, *how) for weight, how in by_shape if how is not None]
    if not found:
        return
    rows = []
    for stretch in dict.fromkeys(audited.stretch_of(weight) for weight, _, _ in found):
        rows.append((sum(0.5 * abs(math.log10(off)) for w, off, _ in found if w in stretch.weights), stretch))
    decades, stretch = max(rows, key=lambda row: (-SEVERITIES.index(severity(*row)), row[0]))
    weight, off, mode = max(found, key=lambda one: abs(math.log(one[1])))
    kind = type(weight.module).__name__
    yield Finding(
        "swapped-fans",
        severity(decades, stretch),
        f"The weights of {count(len(found), 'convolution')} were set by the {mode} that torch reads off their shape; "
        f"for a {kind} with its stride and groups it is {1 / off:.3g} times the true one. The mean square that "
        f"{weight.name} passes {'on' if mode != 'fan_out' else 'back'} is {off:.3g} times what was meant.",
        audited.initialize,
        "pytorch#7865, pytorch#23854",
        direction=_DIRECTIONS[mode],
        sites=tuple(one[0].name for one in found),
        value=off,
        unit="factor on the mean square",
        expected=1.0,
    )


def _by_shape(weight: Weight) -> tuple[float, str] | None:
    """(true fan)/(torch's fan) and which fan it was, where only torch's explains the variance."""
    true, by_torch = weight.fans, weight.torch_fans
    gains = {*_GAINS, weight.needed}
    if any(weight.has(gain / true.fan_in) for gain in gains):
        return None
    # By the true fan_out, which of a transposed convolution is what torch calls fan_in: there it was not meant.
    modes = ("fan_avg",) if isinstance(weight.module, _ConvTransposeNd) else ("fan_out", "fan_avg")
    if any(weight.has(gain / getattr(true, mode)) for gain in (weight.usual, weight.needed) for mode in modes):
        return None
    for gain in _GAINS:
        for mode in _MODES:
            off = getattr(true, mode) / getattr(by_torch, mode)
            if max(off, 1.0 / off) > NOTABLE and weight.has(gain / getattr(by_torch, mode)):
                return off, mode
    return None


@audit_rule("orthogonal-kernel")
def orthogonal_kernel(audited: Audited) -> Iterator[Finding]:
    """`orthogonal_` on a convolution: the flattened kernel keeps norms, the convolution does not.

    On a constant picture, away from its borders, the convolution is the sum of its taps, a matrix (out, in).
    """
    found: list[tuple[Weight, float, float]] = []
    for w in audited.weights:
        module = w.module
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or module.groups > 1 or w.value[0, 0].numel() < 2:
            continue
        size = orthogonal_size(w.value.reshape(w.value.shape[0], -1))
        if size is None:
            continue
        singular = torch.linalg.svdvals(w.value.double().flatten(2).sum(-1)) / math.sqrt(size)
        largest, smallest = float(singular[0]), float(singular[-1])
        if largest > NOTABLE * smallest:  # a delta-orthogonal kernel is orthogonal as a matrix too
            found.append((w, largest, smallest))
    if found:
        weight, largest, smallest = max(found, key=lambda one: one[1])
        gains = [(w.path, round(math.sqrt(w.forward), 4)) for w, _, _ in found]
        yield Finding(
            "orthogonal-kernel",
            "note",
            f"As a flattened matrix {count(len(found), 'kernel', 'is')} orthogonal, which makes no convolution so: at "
            f"{weight.name} a constant picture is scaled by {smallest:.2g} to {largest:.2g}, where an orthogonal "
            "convolution keeps every norm.",
            f"for name, gain in {gains!r}: gradscope.init.delta_orthogonal_(model.get_parameter(name), gain)",
            "Xiao et al. (2018), 2.5; pytorch#48144",
            direction="both",
            sites=names([w for w, _, _ in found]),
            value=largest,
            unit="largest singular value at frequency 0",
            expected=1.0,
        )
