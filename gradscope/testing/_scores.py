"""What theory expects of each place of a chain, given what arrives there, and how far one network strays from it.

A layer's weights W, n × m, independent of the rows x that they are given and of the gradients δ that arrive:

    mean (W x + b)² = fan_in·mean W²·mean x² + mean b²        relative variance 2·g_x/n
    mean (Wᵀδ)²     = fan_out·mean W²·mean δ²                                  2·g_δ/m

with g = tr G²/(tr G)² of the rows' Gram matrix, between 1/rows (independent) and 1 (one row, or equal ones). An
activation f behind pre-activations whose rows r have lengths q_r and correlations c_rs, with gradients e_r of
correlations ρ_rs arriving, over n units:

    mean f(h)²        = mean_r E[f(√q_r z)²]                  (κ_f − 2a²)·Σ w_r w_s |c_rs|/n
    mean (f'(h) e)²   = mean_r e_r²·E[f'(√q_r z)²]            Σ w_r w_s |c_rs|·(κ_d − 2c² + 2κ_d ρ_rs²)/n

a = d ln E[f²]/d ln q, c = d ln E[f'²]/d ln q, κ_f and κ_d the relative variances of f² and f'², w_r the rows' shares of
the mean. The length of each row is given: that takes 2a² and 2c² away, the parts of f² and f'² along z² − 1. The other
parts of the Hermite series have covariances ∝ c_rs^k, k = 1, 3, 4, …, of which |c_rs| is a bound: the spread of a batch
is that or smaller. For one row it is exact to this order, and a layer and its activation add up to the variance of
`theory.one_step`. Theory is a limit of infinite width; 1/n² is added for its own error of relative order 1/n.

Orthogonal weights keep lengths and stray less: their scores are the smaller.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradscope.activations import Activation
from gradscope.testing._match import TheoryMatch
from gradscope.testing._places import Between, Weights
from gradscope.theory._moments import LayerMoments, layer_moments
from gradscope.theory._quadrature import density, panel_ends, positions, quadrature_weights

Array = NDArray[np.float64]

_LOWEST = 1e-300
_SPACING = 0.25
"""Of ln q between exact moments; between them cubics with the exact slopes, good to 1e-5."""

Place = tuple[float, float, float, float]
"""A measured factor, the expected one, the variance of the logarithm of their ratio, and its skewness over its
deviation."""

_CHI2 = 2.0
_NOTHING = 1e-12
_MOST_SKEWED = 3.0
"""As χ² of one square; nothing here is more so."""


def scored(
    layers: Sequence[Weights], between: Sequence[Between], activations: Sequence[Activation], w2: Sequence[float]
) -> TheoryMatch:
    """Every place of a chain against theory.

    Args:
        layers: as measured.
        between: what stands between them, one less.
        activations: what should stand there.
        w2: mean square of a weight that each layer should have.
    """
    names: list[str] = []
    places: list[tuple[Place, Place, float]] = []
    for i, layer in enumerate(layers):
        names.append(layer.layer)
        places.append(_of_weights(layer, w2[i]))
        if i < len(between):
            names.append(f"{activations[i].name} after {layer.layer}")
            places.append(_of_activation(between[i], activations[i]))
    forward, backward = (np.array([place[side] for place in places]).T for side in (0, 1))
    covariance = np.array([place[2] for place in places])
    return TheoryMatch(
        places=tuple(names),
        forward=forward[0],
        forward_expected=forward[1],
        forward_sd=np.sqrt(forward[2]),
        forward_skew=_skewness(forward),
        backward=backward[0],
        backward_expected=backward[1],
        backward_sd=np.sqrt(backward[2]),
        backward_skew=_skewness(backward),
        both_sd=np.sqrt(forward[2] + backward[2] + 2.0 * covariance),
    )


def _of_weights(layer: Weights, w2: float) -> tuple[Place, Place, float]:
    forward = (
        _factor(layer.returned, layer.given),
        _factor(w2 * layer.read + layer.b2, layer.given),
        2.0 * layer.alike / layer.units + 1.0 / layer.units**2,
        _CHI2,
    )
    backward = (
        _factor(layer.grad_returned, layer.grad_given),
        _factor(w2 * layer.grad_read, layer.grad_given),
        2.0 * layer.grad_alike / layer.units_in + 1.0 / layer.units_in**2,
        _CHI2,
    )
    return forward, backward, 0.0


def _of_activation(here: Between, activation: Activation) -> tuple[Place, Place, float]:
    n = here.units
    f2, d2 = _at_lengths(activation, here.lengths)
    grads = here.arriving * d2
    w, w_back = _shares(f2[here.sampled]), _shares(grads[here.sampled])
    log_q = float(w @ np.log(np.maximum(here.lengths[here.sampled], _LOWEST)))
    log_q = log_q if math.isfinite(log_q) else 0.0  # then the factors are not finite either, which is all that counts
    moments = layer_moments(activation, log_q)
    kappa_d = (moments.kappa_b + 1.0) / 3.0 - 1.0
    alike, alike_back = float(w @ here.alike @ w), float(w_back @ here.alike @ w_back)
    across = float(w @ here.alike @ w_back)
    both_alike = float(w_back @ (here.alike * here.grad_alike) @ w_back)
    variance = max(moments.kappa_f - 2.0 * moments.f_slope**2, 0.0) * alike / n
    own = max(kappa_d - 2.0 * moments.d_slope**2, 0.0)
    variance_back = (own * alike_back + 2.0 * kappa_d * both_alike) / n
    covariance = min(max(_mixed(moments), 0.0) * across / n, math.sqrt(variance * variance_back))
    length, arriving = float(here.lengths.mean()), float(here.arriving.mean())
    skew, skew_back = _skews(activation, log_q)
    forward = _factor(here.returned, length), _factor(float(f2.mean()), length), variance + 1.0 / n**2, skew
    backward = (
        _factor(here.grad_returned, arriving),
        _factor(float(grads.mean()), arriving),
        variance_back + 1.0 / n**2,
        skew_back,
    )
    return forward, backward, covariance


def _mixed(moments: LayerMoments) -> float:
    return moments.kappa_fb - 2.0 * moments.f_slope * moments.d_slope


@functools.lru_cache(maxsize=4096)
def _skews(activation: Activation, log_q: float) -> tuple[float, float]:
    """E[Y³]/E[Y²]² of what fluctuates in f² and in (f' g)², g ~ N(0, 1), with the norms of h and g given.

    A mean of n such has that times its own standard deviation as its skewness.

    Y = F − 1 − a·w forward and (D − 1)·g² − c·w backward, with F = f²/E[f²], D = f'²/E[f'²] and w = z² − 1.
    """
    q = math.exp(min(max(log_q, -60.0), 60.0))
    moments, ends = layer_moments(activation, math.log(q)), panel_ends(q, activation.kinks)
    z = positions(ends)
    weights, h, w = quadrature_weights(ends) * density(z), math.sqrt(q) * z, z * z - 1.0
    f, d = (np.square(function(h)) for function in (activation.function, activation.derivative))
    y = f / math.exp(moments.log_f2) - 1.0 - moments.f_slope * w
    s, c = d / math.exp(moments.log_d2) - 1.0, moments.d_slope

    def mean(values: Array) -> float:
        return float(np.sum(weights * values))

    second = 3.0 * mean(s**2) - 2.0 * c**2
    third = 15.0 * mean(s**3) - 9.0 * c * mean(s**2 * w) + 3.0 * c**2 * mean(s * w**2) - 8.0 * c**3
    forward = mean(y**3) / mean(y**2) ** 2 if mean(y**2) > _NOTHING else 0.0
    return forward, third / second**2 if second > _NOTHING else 0.0


def _skewness(places: Array) -> Array:
    return np.asarray(np.clip(places[3] * np.sqrt(places[2]), -_MOST_SKEWED, _MOST_SKEWED))


def _factor(after: float, before: float) -> float:
    """Of a mean square; where nothing arrives, what leaves."""
    return after / before if before > 0.0 else after


def _shares(parts: Array) -> Array:
    total = float(parts.sum())
    return parts / total if total > 0.0 and math.isfinite(total) else np.full(parts.size, 1.0 / parts.size)


def _at_lengths(activation: Activation, lengths: Array) -> tuple[Array, Array]:
    """E[f²] and E[f'²] at each length, by Hermite's cubics in ln q between exact values and slopes."""
    if not np.isfinite(lengths).all():
        return np.full(lengths.shape, math.nan), np.full(lengths.shape, math.nan)
    log_q = np.log(np.maximum(lengths, _LOWEST))
    low, high = float(log_q.min()), float(log_q.max())
    nodes = np.linspace(low, high, 2 + min(int((high - low) / _SPACING), 200)) if high > low else np.array([low, low])
    exact = [layer_moments(activation, float(node)) for node in nodes]
    step = (high - low) / (len(nodes) - 1)
    left = np.minimum(((log_q - low) / step).astype(int), len(nodes) - 2) if step > 0.0 else np.zeros(len(log_q), int)
    t = (log_q - nodes[left]) / step if step > 0.0 else np.zeros(len(log_q))
    found = []
    for value, slope in (("log_f2", "f_slope"), ("log_d2", "d_slope")):
        y, dy = (np.array([getattr(one, name) for one in exact]) for name in (value, slope))
        a, b, da, db = y[left], y[left + 1], step * dy[left], step * dy[left + 1]
        cubic = (1 + 2 * t) * (1 - t) ** 2 * a + t * (1 - t) ** 2 * da + t**2 * (3 - 2 * t) * b - t**2 * (1 - t) * db
        found.append(np.exp(cubic))
    return found[0], found[1]
