"""The theory's curve beside a recorded profile: what a prediction says of the same sites, and how far networks stray.

Forward the curve has a scale of its own. A gradient's scale is that of the loss, of which the prediction knows nothing:
there the curve is shifted to meet the measured gradient at the last layer, and only its shape is compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope import activations
from gradscope.recording import Profile, Recording, Signal, Site
from gradscope.report._curves import slope_of
from gradscope.report._run_curves import Line, log10
from gradscope.theory import ChainLayer, chain_spread, spread_band

Array = NDArray[np.float64]

_CONVOLUTION = re.compile(r"Conv\w*?([123])d$")


@dataclass(frozen=True, eq=False)
class ExpectedCurve:
    """What theory expects at the sites that a profile's line joins.

    Attributes:
        sites: their names, in order of execution.
        depth: `(sites,)`.
        log10_rms: expected, `(sites,)`.
        low, high: between them lie 95 % of single networks of these widths, for one input; NaN where no spread is
            known, `(sites,)`.
        decades_per_layer: slope of the curve, in the direction the signal flows.
        scaled: the curve was shifted to meet the measured gradient at the last layer.
    """

    sites: tuple[str, ...]
    depth: NDArray[np.int64]
    log10_rms: Array
    low: Array
    high: Array
    decades_per_layer: float
    scaled: bool

    def data(self) -> dict[str, Any]:
        """The curve as plain values for `index.json`."""
        return {
            "sites": list(self.sites),
            "depth": self.depth.tolist(),
            "log10_rms": self.log10_rms.tolist(),
            "log10_low": self.low.tolist(),
            "log10_high": self.high.tolist(),
            "decades_per_layer": self.decades_per_layer,
            "scaled_to_the_last_layer": self.scaled,
        }


def has_common_sites(recording: Recording, expected: Recording) -> bool:
    """Whether a prediction says anything of what was recorded."""
    signals: tuple[Signal, ...] = ("activation", "activation_grad", "weight", "weight_grad")
    return any(_names(recording, signal) & _names(expected, signal) for signal in signals)


def _names(recording: Recording, signal: Signal) -> set[str]:
    """Of a signal's sites, without the inputs, which every model has."""
    return {site.name for site in recording.sites_of(signal) if site.role != "input"}


def expected_curve(expected: Recording, line: Line) -> ExpectedCurve | None:
    """The theory beside one line of a profile; None where the two have no site, or no gradient, in common.

    Args:
        expected: what `gradscope.predict` gave for the same model.
        line: a profile of the recording, best of its first step: theory holds at initialization.
    """
    p = line.profile
    known = _known(expected, p.signal)
    shown = [site for site, layer in zip(p.sites, p.layers, strict=True) if layer and site.name in known]
    if not shown:
        return None
    backward = p.direction == "backward"
    shift = _gradient_scale(p, known) if backward else 0.0
    if shift is None:
        return None
    values = np.array([known[site.name] for site in shown]) + shift
    low, high = spread_band(values, _variances(expected, p.signal, shown))
    return ExpectedCurve(
        sites=tuple(site.name for site in shown),
        depth=np.array([site.depth for site in shown], dtype=np.int64),
        log10_rms=values,
        low=low,
        high=high,
        decades_per_layer=slope_of(values[::-1] if backward else values),
        scaled=backward,
    )


def _known(expected: Recording, signal: Signal) -> dict[str, float]:
    """log10 of the rms that is expected of each site, where there is one."""
    if not expected.recorded(signal).any():
        return {}
    p = expected.profile(signal)
    logs = log10(p.values).tolist()
    return {site.name: value for site, value in zip(p.sites, logs, strict=True) if np.isfinite(value)}


def _gradient_scale(p: Profile, known: dict[str, float]) -> float | None:
    """log10 of the measured over the expected gradient of the last layer that has both.

    A weight's gradient has a scale of its own: it is summed over the batch, coherently where the samples are alike.
    """
    for site, value, layer in zip(p.sites[::-1], log10(p.values)[::-1].tolist(), p.layers[::-1], strict=True):
        if layer and np.isfinite(value) and site.name in known:
            return float(value) - known[site.name]
    return None


def _variances(expected: Recording, signal: Signal, shown: list[Site]) -> Array:
    """Of the log of the mean square at each site, by the spread of the chain of layers that the prediction has."""
    sites, chain = _chain(expected)
    if not chain or signal not in ("activation", "activation_grad", "weight_grad"):
        return np.full(len(shown), np.nan)
    spread = chain_spread(chain)
    by_signal = {"activation": spread.forward, "activation_grad": spread.backward, "weight_grad": spread.weight_grad}
    found = by_signal[signal].tolist()
    if signal == "weight_grad":  # of a parameter, that of its module's first call
        known = {site.module: one for site, one in reversed(list(zip(sites, found, strict=True)))}
        return np.array([known.get(site.module, np.nan) for site in shown])
    known = {site.name: one for site, one in zip(sites, found, strict=True)}
    return np.array([known.get(site.name, np.nan) for site in shown])


def _chain(expected: Recording) -> tuple[list[Site], list[ChainLayer]]:
    """The linear layers in order of execution, each with its width and the norm and activation behind it.

    Branches count as if they stood one behind the other, which makes the band of a residual network too wide.
    """
    sites, chain = list[Site](), list[ChainLayer]()
    if not expected.recorded("activation").any():
        return sites, chain
    p = expected.profile("activation")
    with np.errstate(divide="ignore"):
        log_squares = (2.0 * np.log(p.values)).tolist()
    for site, log_q in zip(p.sites, log_squares, strict=True):
        if site.role == "pre-activation" and site.output == 0:
            sites.append(site)
            chain.append(ChainLayer(_width(site), log_q))
        elif chain and chain[-1].activation is None:
            last = chain[-1]
            if site.role == "norm":
                # What comes next is linear unless an activation is seen.
                chain[-1] = ChainLayer(last.width, log_q, None, normed=True)
            elif site.role == "activation":
                chain[-1] = ChainLayer(last.width, last.log_q, activations.of_module(site.module_type), last.normed)
    return sites, [_linear_behind_norm(layer) for layer in chain]


def _linear_behind_norm(layer: ChainLayer) -> ChainLayer:
    if layer.normed and layer.activation is None:
        return ChainLayer(layer.width, layer.log_q, activations.get("identity"), normed=True)
    return layer


def _width(site: Site) -> float:
    """Units of a layer's output: the channels of a convolution, else the last dimension."""
    found = _CONVOLUTION.search(site.module_type)
    if found and len(site.shape) > int(found[1]):
        return float(site.shape[-1 - int(found[1])])
    return float(site.shape[-1]) if site.shape else 1.0
