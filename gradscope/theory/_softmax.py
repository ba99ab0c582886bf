"""Softmax in the wide limit, where its denominator is a number: f ≈ e^z/(n·e^{q/2}) over n units, z ~ N(0, q).

Then E[f²] = E[f'²] = e^q/n², and the Jacobian is diagonal to leading order: f' = s(1 - s) ≈ s, and s·sᵀ mixes into
each unit's gradient no more than Σ s² ≈ e^q/n of the others' mean square. The first correction to E[f²] is, by the
delta method on mean e^{2h}/(mean e^h)²,

    (3 (e^q - 1) - 2 (e^{2q} - 1))/n :

the limit holds while 2·e^{2q} ≤ n. In the spread the denominator's fluctuation partly cancels the numerator's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gradscope.theory._expectation import Expectation
from gradscope.theory._identity_weights import representative
from gradscope.theory._layers import Layers, expectation
from gradscope.theory._moments import LayerMoments
from gradscope.theory._quadrature import density, panel_ends, positions, quadrature_weights

Array = NDArray[np.float64]

LABEL = "wide limit of softmax"


def holds(log_q: float, units: float) -> bool:
    """Whether the limit is good enough at variance q over so many units: 2·e^{2q} ≤ n."""
    return log_q < 50.0 and math.log(2.0) + 2.0 * math.exp(log_q) <= math.log(units)


def layer_moments(log_q: float, units: float) -> LayerMoments:
    """The moments of f ≈ e^z/(n e^{q/2}); f' is f.

    Heavy tails: at q = 2, n = 256 the relative variance of mean f² is 11, and the logarithm's is not. It is matched
    to the log-normal of that relative variance, ln(1 + κ/n), times n here as `LayerMoments` counts per unit.
    """
    q = math.exp(log_q)
    denominator = 4.0 * math.expm1(q) - 4.0 * math.expm1(2.0 * q)  # its variance, and its covariance with f²
    kappa = math.expm1(4.0 * q) + denominator
    kappa_b = 3.0 * math.exp(4.0 * q) - 1.0 + denominator
    log_f2 = q - 2.0 * math.log(units)
    spread, spread_b = (units * math.log1p(k / units) for k in (kappa, kappa_b))
    return LayerMoments(log_f2, log_f2, q, q, spread, spread_b, spread)


def identity_weights(layers: Layers) -> Expectation:
    """The expectation for W = g·I: numerators follow each unit's own input, denominators are numbers.

    s = e^h/(e^h + (n - 1) E e^h): of the denominator the unit's own term stays, or the rare large h would leave
    [0, 1] and the next softmax overflow. After one softmax all h are so near to equal that each further one returns
    1/n. The gradient of h_l is v·Π g s_k: of the Jacobian diag(s) - s·sᵀ the second part takes out the
    gradient's mean, which the softmax above has taken out before.
    """
    units, depth, log_gain = float(layers.fan_in[0]), layers.depth, layers.log_forward
    ends = panel_ends(np.exp(log_gain[0]) * layers.input_mean_square)
    z = positions(ends)
    weights = quadrature_weights(ends) * density(z)

    def mean(values: Array) -> Array:
        return np.asarray(np.sum(values * weights, axis=(-2, -1)))

    log_q = np.full(depth, np.nan)
    log_slope2, shares = np.full((2, depth - 1, *z.shape), np.nan)
    forward_var = np.zeros(depth)
    h = np.exp(0.5 * log_gain[0]) * np.sqrt(layers.input_mean_square) * z
    passed = 0
    for layer in range(depth):
        log_q[layer] = np.log(mean(h * h))
        if layer == depth - 1 or not holds(log_q[layer], units):
            break
        passed += 1
        grown = np.exp(h)
        others = (units - 1.0) * mean(grown)
        share = grown / (grown + others)
        log_slope2[layer] = 2.0 * np.log(share)
        shares[layer] = share / mean(share)
        h = np.exp(0.5 * log_gain[layer + 1]) * share
        forward_var[layer + 1] = _log_variance(mean, z, share**2, shares[layer], 1.0) / units

    log_d2 = np.zeros((depth, *z.shape))
    log_d2[:-1] = np.cumsum((log_slope2 + log_gain[1:, None, None])[::-1], axis=0)[::-1]
    top = np.max(log_d2, axis=(1, 2))
    passed_shares = np.cumsum(shares[::-1], axis=0)[::-1]
    log_p, backward_var = np.zeros(depth), np.full(depth, 2.0 / units)
    for layer in range(depth - 1):
        square = np.exp(log_d2[layer] - top[layer])
        log_p[layer] = np.log(mean(square)) + top[layer]
        backward_var[layer] = _log_variance(mean, z, square, passed_shares[layer], 3.0) / units
    forward_var, backward_var = np.log1p(forward_var), np.log1p(backward_var)
    forward_var[passed + 1 :] = np.nan
    return expectation(
        log_q,
        log_q[1:] - log_gain[1:],
        log_p,
        log_p[1:] + log_gain[1:],
        forward_var,
        backward_var,
        f"{LABEL}, identity weights",
        stable=representative(forward_var, backward_var),
        valid=np.arange(depth) < (depth if passed == depth - 1 else passed),
    )


def _log_variance(mean: Callable[[Array], Array], z: Array, square: Array, shares: Array, kurtosis: float) -> float:
    """Variance per unit of ln Σ square·v² - 2 Σ_k ln Σ e^{h_k}, the norm of z given; E v⁴ = kurtosis."""
    square = square / mean(square)
    others = 2.0 * (shares - mean(shares))
    slope = 0.5 * mean((square - others) * (z * z - 1.0))
    found = kurtosis * mean(square**2) - 1.0 + mean(others * (others - 2.0 * square)) - 2.0 * slope**2
    return max(float(found), 0.0)  # not -1e-19 where all units are equal
