"""The expected profile of a plain network: checks the arguments and picks the theory that applies."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gradscope import activations
from gradscope.activations import Activation
from gradscope.theory import _softmax
from gradscope.theory._expectation import Expectation
from gradscope.theory._identity_weights import identity_weights
from gradscope.theory._layers import Layers
from gradscope.theory._random_weights import random_weights

Array = NDArray[np.float64]
Weights = Literal["independent", "orthogonal", "identity"]
PerLayer = float | Sequence[float] | Array


def propagate(
    activation: str | Activation | None,
    depth: int,
    *,
    weight_variance: PerLayer,
    fan_in: PerLayer,
    fan_out: PerLayer | None = None,
    bias_variance: PerLayer = 0.0,
    input_mean_square: float = 1.0,
    weights: Weights = "independent",
) -> Expectation:
    """The signal of a plain network, both ways and layer by layer, with the spread of single networks.

    The network is h_1 = W_1 x + b_1, h_{l+1} = W_{l+1} f(h_l) + b_{l+1}, its output is h_depth, and there a
    gradient of independent N(0, 1) entries is put in. With σ_w² = fan_in·weight_variance of layer l + 1:

        q_{l+1} = σ_w²·E[f(√q_l z)²] + σ_b²,   p_l = p_{l+1}·(fan_out/fan_in)·σ_w²·E[f'(√q_l z)²]

    (Poole et al. 2016; Schoenholz et al. 2017). All is carried as logarithms: nothing under- or overflows.

    - `weights="independent"`: zero-mean entries of the given variance, as by Glorot, He, LeCun or N(0, 1).
    - `"orthogonal"`: a Haar-distributed matrix times a gain; (semi-)orthogonal where the fans differ. Same
      means, less spread, since the matrix keeps norms.
    - `"identity"`: W = √(fan_in·weight_variance)·I: each unit iterates f by itself, so that h_l is no
      longer Gaussian: E is taken over the composed function and the product of its slopes.
    - softmax: the wide limit f ≈ e^z/(n·e^{q/2}) over the n = fan_out units, while 2·e^{2q} ≤ n (the next term is
      about -2·e^{2q}/n). At this edge, at any width, E[f²] is a quarter and the gradient's factor 35 to 45 % below
      the limit. From the first layer where it fails, `valid` is False, and what rests on that layer is NaN.

    `stable` is False where a deviation of ln q in some layer more than doubles by the output. To first order it is
    multiplied by Π a_l, a_l = d ln q_{l+1}/d ln q_l, on its way; a_l = 1 for identity and the ReLU family
    without bias, below 1 near an attracting fixed point, above 1 where the fixed point repels (GELU, SiLU,
    Mish under He): there one network may stray from the mean by orders of magnitude. With identity weights it is
    False where the mean is carried by inputs too rare for one network of this width: a relative variance above 1.

    `forward_var` and `backward_var` are of the order 1/width: see `_random_weights` and `_identity_weights`
    for their terms. They are given |x|², taken as exactly input_mean_square per unit.

    Args:
        activation: a name as `activations.get` takes it.
        depth: number of linear layers, at least 1.
        weight_variance: variance of one weight; above 0; a number, or one for each layer.
        fan_in: inputs that one unit sums; likewise.
        fan_out: units that one input feeds, taken as the number of units of the layer for the spread;
            likewise; default fan_in.
        bias_variance: variance of one bias; 0 or more; likewise.
        input_mean_square: mean of x² over the input's entries; above 0.
        weights: `independent`, `orthogonal` or `identity`.

    Raises:
        ValueError: an argument out of its range, or identity weights with biases or fans that differ.
        ArithmeticError: identity weights with a gain that makes the iterates chaotic.

    >>> he = propagate("relu", 50, weight_variance=2 / 256, fan_in=256)
    >>> [round(10 ** float(he.pre[layer]), 6) for layer in (0, 49)]  # rms: He's weights keep it
    [1.414214, 1.414214]
    >>> round(float(he.forward_var[-1]), 4)  # 5/256 for each ReLU, 2/256 for the last layer
    0.9648
    """
    found = activations.get(activation)
    layers = checked_layers(depth, weight_variance, fan_in, fan_out, bias_variance, input_mean_square)
    if weights not in get_args(Weights):
        near = difflib.get_close_matches(str(weights), get_args(Weights), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"weights={weights!r} must be independent, orthogonal or identity{hint}")
    if weights == "identity":
        if (
            np.any(layers.bias_variance)
            or np.any(layers.fan_in != layers.fan_in[0])
            or np.any(layers.fan_out != layers.fan_in[0])
        ):
            raise ValueError("weights='identity' needs equal fans in all layers and bias_variance=0")
        return identity_weights(found, layers) if found.elementwise else _softmax.identity_weights(layers)
    return random_weights(found, layers, orthogonal=weights == "orthogonal")


def checked_layers(
    depth: int,
    weight_variance: Any,
    fan_in: Any,
    fan_out: Any = None,
    bias_variance: Any = 0.0,
    input_mean_square: Any = 1.0,
) -> Layers:
    """The layers of these numbers, each one number or one for each layer.

    Raises:
        ValueError: one is out of its range.
    """
    try:
        layers = operator.index(depth)
    except TypeError:
        layers = 0
    if layers < 1:
        raise ValueError(f"depth={depth!r} must be a whole number, at least 1")
    return Layers(
        _per_layer("weight_variance", weight_variance, layers),
        _per_layer("fan_in", fan_in, layers),
        _per_layer("fan_out", fan_in if fan_out is None else fan_out, layers),
        _per_layer("bias_variance", bias_variance, layers, zero=True),
        float(_per_layer("input_mean_square", input_mean_square, 1)[0]),
    )


def _per_layer(name: str, value: Any, depth: int, zero: bool = False) -> Array:
    """One number per layer, each above 0 (or, with `zero`, at least 0)."""
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.array(math.nan)
    if numbers.ndim == 0:
        numbers = np.full(depth, numbers)
    if numbers.shape != (depth,):
        raise ValueError(f"{name} has shape {numbers.shape}; give a number or one for each of {depth} layers")
    if not np.all(np.isfinite(numbers) & ((numbers >= 0.0) if zero else (numbers > 0.0))):
        raise ValueError(f"{name}={value!r} must be finite and {'at least' if zero else 'above'} 0")
    return numbers
