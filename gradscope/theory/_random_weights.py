"""Random weights: the mean-field recursions, and the spread of networks of finite width about them.

Let y_l = ln(mean of h_l² over the n_l units) - ln q_l for one input. Given y_l, h_l points anywhere on its
sphere, so that f(h_l)² fluctuates about a mean that follows y_l, less what the fixed norm takes away:

    ln mean f(h_l)² = … + a y_l + u_l,      Var u_l  = (κ_f - 2a²)/n_l,     a = d ln E[f²]/d ln q
    ln mean δ_l²    = … + c y_l + w_l + ν_l + ln mean δ_{l+1}²,
                                            Var w_l  = (κ_b - 2c² - 2)/n_l, c = d ln E[f'²]/d ln q
                                            Cov(u_l, w_l) = (κ_fb - 2ac)/n_l

δ_l is the gradient of h_l, (κ_f, κ_b, κ_fb) the relative (co)variances of f² and (f' g)² (`LayerMoments`). The
terms -2a² and -2c² are those of the norm of h_l (f²/E[f²] has covariance 2a with z²), the -2 that of the norm of
the gradient that arrives at f(h_l); ν_l is what the matrix does to that norm, and with it

    y_{l+1} = r (a y_l + u_l) + v_{l+1},    r = the share of σ_w² E[f²] in q_{l+1} (1 without biases).

Independent entries give Var v = 2/n_l and Var ν = 2/n_l: the outputs are n independent Gaussians. An
orthogonal square matrix keeps norms: Var ν = 0, and Var v = 2(1 - r²)/n_l comes from the biases alone; from
many dimensions to few, one projects: + 2/few - 2/many. The input has |x|² given, so y_1 = v_1; the gradient
put in at the output has 2/n. For independent weights without biases this is Var y_l = Var x_l + 2/n with
x_{l+1} = a x_l + u'_l, Var u'_l = κ_f/n: 5/n per ReLU layer (Hanin & Nica 2020); orthogonal ones give ReLU 3/n.

Backward, the weights count as independent of those of the forward pass: exact to this order in 1/n.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradscope.activations import Activation
from gradscope.theory import _softmax
from gradscope.theory._expectation import Expectation
from gradscope.theory._layers import Layers, expectation
from gradscope.theory._moments import LayerMoments, layer_moments

Array = NDArray[np.float64]

LARGEST_AMPLIFICATION = 2.0
"""Above this growth of a deviation in ln q on its way to the output, the curve is called unstable."""


def random_weights(activation: Activation, layers: Layers, *, orthogonal: bool) -> Expectation:
    """The expectation for independent or orthogonal weights."""
    depth = layers.depth
    log_q = np.full(depth, np.nan)
    share = np.full(depth, np.nan)  # r
    moments: list[LayerMoments] = []
    log_signal = np.log(layers.input_mean_square)
    with np.errstate(divide="ignore"):
        log_bias = np.log(layers.bias_variance)
    for layer in range(depth):
        log_weights = layers.log_forward[layer] + log_signal
        log_q[layer] = np.logaddexp(log_weights, log_bias[layer])
        share[layer] = np.exp(log_weights - log_q[layer])
        if layer == depth - 1:
            break
        units = float(layers.fan_out[layer])
        if not activation.elementwise and not _softmax.holds(log_q[layer], units):
            break
        found = (
            layer_moments(activation, float(log_q[layer]))
            if activation.elementwise
            else _softmax.layer_moments(float(log_q[layer]), units)
        )
        moments.append(found)
        log_signal = found.log_f2
    passed = len(moments)  # activations passed; depth - 1 unless softmax's limit fails on the way
    known = {name: np.full(depth - 1, np.nan) for name in LayerMoments.__dataclass_fields__}
    for name, column in known.items():
        column[:passed] = [getattr(one, name) for one in moments]

    log_e = np.full(depth - 1, np.nan)
    log_p = np.zeros(depth)
    for layer in reversed(range(depth - 1)):
        log_e[layer] = log_p[layer + 1] + layers.log_backward[layer + 1]
        log_p[layer] = log_e[layer] + known["log_d2"][layer]
    forward_var, backward_var = _spread(layers, known, share, orthogonal)
    kind = "mean field" if activation.elementwise else _softmax.LABEL
    return expectation(
        log_q,
        known["log_f2"],
        log_p,
        log_e,
        forward_var,
        backward_var,
        f"{kind}, orthogonal weights" if orthogonal else kind,
        stable=bool(_amplification(share[1:] * known["f_slope"]) <= LARGEST_AMPLIFICATION),
        valid=np.arange(depth) < (depth if passed == depth - 1 else passed),
    )


def _spread(layers: Layers, known: dict[str, Array], share: Array, orthogonal: bool) -> tuple[Array, Array]:
    """(Var y_l, Var ln mean δ_l²), as the module's docstring derives."""
    units = layers.fan_out
    into, out_of = 1.0 / layers.fan_out, 1.0 / layers.fan_in
    if orthogonal:
        noise = 2.0 * share**2 * np.maximum(into - out_of, 0.0) + 2.0 * (1.0 - share**2) * into
        noise_back = 2.0 * np.maximum(out_of - into, 0.0)[1:]
    else:
        noise, noise_back = 2.0 * into, 2.0 / units[:-1]
    a, c = known["f_slope"], known["d_slope"]
    var_u = np.maximum(known["kappa_f"] - 2.0 * a**2, 0.0) / units[:-1]
    var_w = np.maximum(known["kappa_b"] - 2.0 * c**2 - 2.0, 0.0) / units[:-1]
    cov = (known["kappa_fb"] - 2.0 * a * c) / units[:-1]

    var_y = noise.copy()
    for layer in range(layers.depth - 1):
        var_y[layer + 1] += share[layer + 1] ** 2 * (a[layer] ** 2 * var_y[layer] + var_u[layer])
    backward = np.full(layers.depth, 2.0 / units[-1])
    own, weight = 0.0, 0.0  # variance of what enters from this layer on; the factor of y_{l+1} in ln mean δ_l²
    for layer in reversed(range(layers.depth - 1)):
        r = share[layer + 1]
        own += weight**2 * (r**2 * var_u[layer] + noise[layer + 1]) + 2.0 * weight * r * cov[layer]
        own += var_w[layer] + noise_back[layer]
        weight = c[layer] + weight * r * a[layer]
        backward[layer] += weight**2 * var_y[layer] + own
    return var_y, backward


def _amplification(slopes: Array) -> float:
    """The largest |product| of the slopes from some layer to the end, at least 1; NaN slopes are left out."""
    grown = largest = 1.0
    for slope in slopes[np.isfinite(slopes)][::-1]:
        grown *= abs(float(slope))
        largest = max(largest, grown)
    return largest
