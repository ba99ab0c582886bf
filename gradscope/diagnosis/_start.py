"""How each layer's first weights compare with what the activation behind them needs."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from gradscope import activations, theory
from gradscope.diagnosis._evidence import Evidence, Layer

_DEFAULT = 1.0 / 3.0
"""fan_in · variance of `nn.Linear`'s and the convolutions' default weights."""


@dataclass(frozen=True)
class Start:
    """The first weights of a layer.

    Attributes:
        layer: whose.
        scale: fan_in · mean square of its weight: 1 is LeCun's, 2 is He's.
        forward: log10 of the factor on the rms of the signal, of the layer and the activation behind it.
        backward: log10 of that on its gradient's.
        is_default: whether they are torch's default, as far as their size and extremes tell.
        activation: the activation behind it; `identity` where none is known.
    """

    layer: Layer
    scale: float
    forward: float
    backward: float
    is_default: bool
    activation: str


def starts(evidence: Evidence) -> tuple[Start, ...]:
    """Those of the layers whose fan is known and whose weights are not zero; empty where weights were not recorded.

    The signal's size is followed through layers in a row, from 1 at the first and anew behind each norm or residual
    sum: for tanh and its like, what a layer keeps depends on it.
    """
    return evidence.once(_starts)


def _starts(evidence: Evidence) -> tuple[Start, ...]:
    if not evidence.from_the_start or not evidence.has("weight"):
        return ()
    rms, largest = evidence.by_layer("weight")[0], evidence.by_layer("weight", "abs_max")[0]
    spread = evidence.by_layer("weight", "std")[0]
    predicted = _activations(evidence) if evidence.facts.get("source") == "theory" else {}
    breaks = [s.depth for s in evidence.sites("activation") if s.role in ("norm", "block")]
    found: list[Start] = []
    log_q, before = 0.0, "identity"
    for i, layer in enumerate(evidence.layers):
        site = layer.site
        fans = [s for s in (site, layer.weight) if s is not None and s.fan_in]
        if site is None or site.role != "pre-activation" or not fans or not rms[i] > 0:
            continue
        if found and any(found[-1].layer.depth < depth < layer.depth for depth in breaks):
            log_q, before = 0.0, "identity"
        fan_in, fan_out = float(fans[0].fan_in or 1.0), float(fans[0].fan_out or fans[0].fan_in or 1.0)
        scale = fan_in * float(rms[i]) ** 2
        arriving = log_q + math.log10(_forward(before, _rounded(log_q)))
        log_q_next = arriving + math.log10(scale)
        activation = site.activation_after or predicted.get(site.depth + 1, "identity")
        kept = _forward(activation, _rounded(log_q_next))
        is_default = (
            not float(largest[i]) > (1 + 1e-5) / math.sqrt(fan_in)  # a prediction has no extremes
            and abs(scale / _DEFAULT - 1) < _tolerance(int(np.prod(layer.weight.shape)))
            and float(spread[i]) > 0
        )
        slope = _backward(activation, _rounded(log_q_next))
        found.append(
            Start(
                layer,
                scale,
                (math.log10(scale) + math.log10(kept)) / 2,
                math.log10(scale * fan_out / fan_in * slope) / 2 if slope > 0 else -math.inf,
                is_default,
                activation,
            )
        )
        log_q, before = log_q_next, activation
    return tuple(found)


def _activations(evidence: Evidence) -> dict[int, str]:
    """Of a prediction, whose sites do not tell what follows them: the activation modules, by depth."""
    modules = ((s.depth, activations.of_module(s.module_type)) for s in evidence.sites("activation"))
    return {depth: activation.name for depth, activation in modules if activation is not None}


def _rounded(log_q: float) -> float:
    return round(min(max(log_q, -30.0), 30.0), 1)


@functools.cache
def _forward(activation: str, log_q: float) -> float:
    """E f² over q at mean square q: 1 where f is not known."""
    try:
        return max(theory.second_moment(activation, 10**log_q) / 10**log_q, 1e-30)
    except ValueError:
        return 1.0


@functools.cache
def _backward(activation: str, log_q: float) -> float:
    """E f'² at mean square q: 1 where f is not known."""
    try:
        return theory.slope_moment(activation, 10**log_q)
    except ValueError:
        return 1.0


def _tolerance(entries: int) -> float:
    """Five standard deviations of the mean square of so many uniform numbers, relative: √(4/5 / n)."""
    return 5 * math.sqrt(0.8 / max(entries, 1))
