"""How wide the band of several seeds is: quantiles, and what theory says of one network (`_seeds` has the formula)."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist

import numpy as np

from gradscope import activations
from gradscope.activations import Activation
from gradscope.recording import Recording, Signal, Site
from gradscope.recording._baseline import Array
from gradscope.theory import ChainLayer, chain_spread

FALSE_ALARM = 1e-4
"""Of a run of a sound model."""
RELATIVE: tuple[Signal, ...] = ("activation_grad", "weight_grad", "update")
"""Signals of which only the last site's size is compared as it is."""
_TO_DECADES = 1.0 / (2.0 * math.log(10.0))
_CLEARLY = 1.28
"""Standard scores: 1 in 10, from which the networks' own spread counts as larger than theory's."""


def half_width(own: Array, first: Array, second: Array, seeds: int, compared: int) -> Array:
    """Of the band, in decades.

    Args:
        own: standard deviation of one network by theory.
        first, second: of the networks on either side.
        seeds: on each side.
        compared: how many numbers are compared in all.
    """
    freedom, tail = 2 * seeds - 2, FALSE_ALARM / (2.0 * compared)
    normal, student = -NormalDist().inv_cdf(tail), student_quantile(tail, freedom)
    clearly = (1.0 - 2.0 / (9.0 * freedom) + _CLEARLY * math.sqrt(2.0 / (9.0 * freedom))) ** 3  # Wilson & Hilferty
    pooled = (first**2 + second**2) / 2.0
    half = np.where(pooled > clearly * own**2, student * np.sqrt(pooled), normal * own)
    return np.asarray(math.sqrt(math.pi / seeds) * half, dtype=np.float64)


def expected_spread(recording: Recording) -> dict[Signal, dict[str, float]]:
    """By signal and site, the standard deviation over networks of log10 of the rms, for a chain of these layers."""
    layers = [s for s in recording.sites_of("activation") if s.role == "pre-activation"]
    profile = recording.profile("activation", "rms", 0)
    rms = {site.name: value for site, value in zip(profile.sites, profile.values.tolist(), strict=True)}
    out: dict[Signal, dict[str, float]] = {signal: {} for signal in ("activation", *RELATIVE)}
    if not layers:
        return out
    spread = chain_spread([ChainLayer(_width(s), _log_q(rms.get(s.name, 1.0)), _activation(s)) for s in layers])
    depths = np.array([s.depth for s in layers])
    last = len(layers) - 1
    for signal in out:
        for site in recording.sites_of(signal):
            behind = int(np.searchsorted(depths, site.depth, side="right")) - 1
            before = max(behind, 0)
            if signal == "activation":
                variance = 0.0 if behind < 0 else max(spread.forward[behind], spread.forward[min(behind + 1, last)])
            elif signal == "activation_grad":
                variance = spread.backward[before] + (5.0 / _width(layers[0]) if behind < 0 else 0.0)
            else:
                variance = max(spread.weight_grad[before], spread.backward[before])
            out[signal][site.name] = math.sqrt(float(variance)) * _TO_DECADES
    return out


def _width(site: Site) -> float:
    """Channels of a convolution, else the last dimension."""
    return float(max(site.shape[1 if "Conv" in site.module_type and len(site.shape) > 2 else -1], 1))


def _log_q(rms: float) -> float:
    return 2.0 * math.log(rms) if math.isfinite(rms) and rms > 0.0 else 0.0


def _activation(site: Site) -> Activation | None:
    try:
        return None if site.activation_after is None else activations.get(site.activation_after)
    except ValueError:
        return None


@functools.lru_cache(maxsize=256)
def student_quantile(tail: float, freedom: int) -> float:
    """t with P(T > t) = tail, by bisection of the integral: T = √ν·tan θ has a density ∝ cos^(ν−1) θ.

    >>> round(student_quantile(0.025, 10), 3), round(student_quantile(1e-6, 14), 2)
    (2.228, 7.74)
    """
    nodes, weights = np.polynomial.legendre.leggauss(400)

    def beyond(theta: float) -> float:
        half = (math.pi / 2.0 - theta) / 2.0
        angle = math.pi / 2.0 - half * (1.0 - nodes)
        return float(half * np.sum(weights * np.cos(angle) ** (freedom - 1)))

    whole, low, high = 2.0 * beyond(0.0), 0.0, math.pi / 2.0
    for _ in range(200):
        middle = (low + high) / 2.0
        low, high = (middle, high) if beyond(middle) / whole > tail else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2.0)
