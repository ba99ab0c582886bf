"""What theory expects of a plain chain's Jacobian, from the weights and the lengths that it has.

With J = Π D_l W_l from n₀ inputs, D_l the slopes at pre-activations of length q_l, over the n₀ eigenvalues s² of JᵀJ:

    mean = Π n_l·mean W_l²·E[f_l'²]
    variance/mean² = Σ_l (n₀/n_l)·(E[f_l'⁴]/E[f_l'²]² − 1 + g_l),      g_l = 1 independent, 0 orthogonal weights

For equal widths that is eq. 20 of Pennington, Schoenholz & Ganguli (2017). For others: N = J Jᵀ becomes D W N Wᵀ D,
with E[(W N Wᵀ)_ij²] = v²·tr N² off the diagonal and v²·(tr N)² on it (v the variance of a weight), hence
tr N²/(tr N)² grows by Σ D⁴/(Σ D²)² in each layer.

The variance is that of a wide network: in one of n units with L independent layers it strays by tens of per cent where
L²/n is not small (linear, L = 40, n = 400: 35 to 57 for 40).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.activations import Activation
from gradscope.experiments._jacobian_chain import NoChainError, chain_of
from gradscope.experiments._jacobian_products import undisturbed
from gradscope.hooks._tensors import floating_tensors
from gradscope.theory import JacobianMoments
from gradscope.theory._moments import layer_moments

_ORTHOGONAL = 1e-3
"""So near to the identity W Wᵀ·n/|W|² is of an orthogonal matrix, entry by entry."""


def expected_moments(model: nn.Module, inputs: Any, activation: Activation | None) -> JacobianMoments | None:
    """The moments of s² that theory expects, None where the model is no chain of Linear layers on `(batch, entries)`.

    Args:
        model: any module.
        inputs: as `jacobian_spectrum` takes them.
        activation: what stands between the layers, in place of what is found there.
    """
    x = next(floating_tensors(inputs), None)
    if x is None:
        return None
    try:
        with undisturbed(model):
            chain = chain_of(model, inputs, activation)
    except NoChainError:
        return None
    first = chain.links[0].inputs
    if not chain.whole or first.numel() != x.numel() or not torch.equal(first.reshape(x.shape), x):
        return None
    log_mean, variance = 0.0, 0.0
    entries = first[0].numel()
    for link in chain.links:
        weight, q = link.module.weight, float(link.output.detach().double().square().mean())
        found = activation if activation is not None and link.activation.name != "identity" else link.activation
        if not isinstance(weight, Tensor) or weight.dim() != 2 or link.output.dim() != 2 or not q > 0.0:
            return None
        if not found.elementwise or (link.notes and activation is None):
            return None
        wide = weight.detach().double()
        if not wide.any():
            return None
        moments = layer_moments(found, math.log(q))
        units, spread = wide.shape[0], (moments.kappa_b + 1.0) / 3.0 - 1.0
        log_mean += math.log(units * float(wide.square().mean())) + moments.log_d2
        variance += entries / units * (spread + (0.0 if _is_orthogonal(wide) else 1.0))
    return JacobianMoments(math.exp(log_mean), variance)


def _is_orthogonal(weight: Tensor) -> bool:
    """Whether a matrix is square and a number times an orthogonal one."""
    rows, columns = weight.shape
    if rows != columns or rows == 1:
        return False
    product = weight @ weight.T / weight.square().sum() * rows
    return bool((product - torch.eye(rows, dtype=product.dtype, device=product.device)).abs().max() < _ORTHOGONAL)
