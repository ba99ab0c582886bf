"""Biases: where they are louder than what the weights pass on, and where they make an even start uneven.

A bias b beside weights that pass on the mean square fan_in·E[w²]·m is the same for every input. Two inputs that have
nothing in common then have pre-activations of correlation b²/(b² + fan_in·E[w²]·m): above 1/2 where the bias is the
larger part. torch's default has b² = 1/(3·fan_in) beside m/3: no matter at first, but larger once m is below 1/fan_in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradscope.diagnosis import Finding
from gradscope.init._audit_weight import Weight
from gradscope.init._audited import Audited, audit_rule
from gradscope.init._rules._gain import OTHER_CAUSES
from gradscope.init._rules._passage import passage
from gradscope.init._rules._words import for_each

_FEWEST = 8
"""Biases whose mean square means something, and inputs beside which a bias need not be as large as one of them."""


@audit_rule("loud-bias")
def loud_bias(audited: Audited) -> Iterator[Finding]:
    """Biases larger than what the weights pass on; where the weights are why, their own rule says it."""
    explained = audited.sites(*OTHER_CAUSES, "gain-mismatch")
    found: dict[str, tuple[float, bool]] = {}
    beside: dict[str, None] = {}  # all biases of such a row: with one at zero the next may be the loudest
    for stretch in audited.stretches:
        for w, share in zip(stretch.row, passage(stretch.row, biases=True).bias_share, strict=True):
            few = w.bias is None or min(w.bias.numel(), w.fans.fan_in) < _FEWEST
            if share > 1.0 and not few and w.name not in explained:
                found.setdefault(_bias(w), (share, stretch.closed))
                beside |= dict.fromkeys(_bias(one) for one in stretch.row if one.bias_square > 0.0)
    if found:
        name, (share, _) = max(found.items(), key=lambda one: one[1][0])
        yield Finding(
            "loud-bias",
            "note" if all(closed for _, closed in found.values()) else "warning",
            f"The mean square of {name} is {share:.3g} times what its weights pass on: two inputs that have nothing in "
            f"common have pre-activations with a correlation of {share / (1.0 + share):.2f}. {_layers(len(found))} so.",
            for_each(tuple(beside), "nn.init.zeros_({})"),
            "Schoenholz et al. (2017), eq. 5",
            direction="forward",
            sites=tuple(found),
            value=share,
            unit="mean square of the biases, over that of the signal",
            limit=1.0,
            limit_from="half of the pre-activation is then the same for every input",
        )


@audit_rule("uneven-start")
def uneven_start(audited: Audited) -> Iterator[Finding]:
    """Weights set to zero so that a branch or a head begins even, beside biases that were left at torch's default."""
    found = [w for w in audited.weights if w.plain and w.square == 0.0 and _is_default(w)]
    if found:
        rms = math.sqrt(found[0].bias_square)
        yield Finding(
            "uneven-start",
            "note",
            f"The weights of {found[0].path} are zero but its biases are torch's default, U(±1/√fan_in), of rms "
            f"{rms:.3g}: what is to begin as nothing begins as a random constant. A head prefers some classes by it, a "
            "residual branch shifts the stream.",
            for_each(tuple(map(_bias, found)), "nn.init.zeros_({})"),
            "Zhang et al. (2019), Fixup",
            direction="forward",
            sites=tuple(map(_bias, found)),
            value=rms,
            unit="rms of the biases",
            expected=0.0,
        )


def _bias(weight: Weight) -> str:
    return f"{weight.module_name}.bias".lstrip(".")


def _layers(count: int) -> str:
    return "One layer is" if count == 1 else f"{count} layers are"


def _is_default(weight: Weight) -> bool:
    """Whether the biases are within torch's limit and differ: a constant, or a prior of classes, was set."""
    bias = weight.bias
    if bias is None or bias.numel() < 2:
        return False
    largest = float(bias.abs().max())
    return float(bias.double().std()) > 0.0 and largest <= weight.torch_fans.fan_in**-0.5 * (1.0 + 1e-6)
