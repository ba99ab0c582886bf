"""`assert_matches_theory`: does each layer of a network do what the theory of random weights says it does?"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from torch import nn

from gradscope import activations
from gradscope.activations import Activation
from gradscope.testing._explain import explained
from gradscope.testing._match import TheoryMatch
from gradscope.testing._measure import measured
from gradscope.testing._places import Between, Weights
from gradscope.testing._scores import scored

_ALIKE = 3
"""So many layers of one shape are needed for one of them to be the odd one."""


def assert_matches_theory(
    model: nn.Module,
    inputs: Any,
    *,
    z: float = 5.0,
    activation: str | Activation | Sequence[str | Activation] | None = None,
    sigma_w2: float | Sequence[float] | None = None,
) -> TheoryMatch:
    """Fail where a layer of a freshly initialized network is not what theory expects from the layer before it.

    For plain chains: `Linear` or convolution layers, one elementwise activation between each two, as modules or
    functions. What follows the last layer does not matter, the gradient enters there. Each place is judged by what
    arrives at it, forward and backward, so that no deviation adds up and any depth will do: a factor is compared with
    the expected one in standard deviations of random networks of that width.

    What it can see: with one input, a ReLU layer of n units whose output is scaled by s has scores of about
    6·(s^⅔ − 1)/√(4/n) together (s = 1.5, n = 128: 10), a factor between two layers about 6·(s^⅔ − 1)/√(8/n). Inputs
    that are not alike give larger scores; a batch is judged by a bound on its spread that is right for equal inputs. Of
    two activations with the same second moments (SELU and the identity at q = 1) it cannot tell one from the other.

    Weights are independent numbers of mean 0 by that theory: it holds at initialization, not after training. Dropout
    that is on, and factors, are let through to be judged. Layers of one shape are expected to have weights of one mean
    square, the median of theirs where there are three of them or more, else their own; and the same activation is
    expected behind all layers where most have it.

    Args:
        model: any module; afterwards it is as before.
        inputs: a tensor, a tuple (positional arguments) or a mapping (keyword arguments).
        z: the largest score that passes, in standard deviations.
        activation: what should stand between the layers, one or one for each gap. Operations that are not known count
            as it, so that an activation of your own can be tested: `theory.activation_of(function)`.
        sigma_w2: what fan_in·(mean square of a weight) should be, one number or one for each layer: of He's weights 2.

    Returns:
        All factors, measured and expected, with their scores; `print` shows the table.

    Raises:
        AssertionError: a place is off: the first in the direction the signal flows, and what could be wrong there.
        ValueError: the model is no plain chain of two layers at least (the message names what it met), or an argument
            is not as above.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    >>> match = assert_matches_theory(model, torch.randn(8, 64))
    >>> match.places
    ('0', 'tanh after 0', '2')
    """
    __tracebackhide__ = True
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is of type {type(model).__name__}; assert_matches_theory takes a torch.nn.Module")
    if not (math.isfinite(z) and z > 0.0):
        raise ValueError(f"z={z!r} must be finite and above 0")
    several = [] if activation is None else [activation] if isinstance(activation, str | Activation) else [*activation]
    given = [activations.get(one) for one in several]
    layers, between = measured(model, inputs, given[0] if given else None)
    bends = _expected_activations(between, given)
    w2 = _expected_w2(layers, sigma_w2)
    match = scored(layers, between, bends, w2)
    fault = match.fault(z)
    if fault is not None:
        raise AssertionError(explained(match, *fault, z, layers, between, bends, w2))
    return match


def _expected_activations(between: Sequence[Between], given: Sequence[Activation]) -> list[Activation]:
    """Those given; else what stands in most places, where that is one thing, else what stands in each."""
    if len(given) > 1 and len(given) != len(between):
        raise ValueError(f"activation has {len(given)} entries; the model has {len(between)} places between two layers")
    if given:
        return [*given] if len(given) == len(between) else [given[0]] * len(between)
    found = [place.found for place in between]
    name, count = Counter(one.name for one in found).most_common(1)[0]
    if 2 * count <= len(found):
        return found
    return [next(one for one in found if one.name == name)] * len(found)


def _expected_w2(layers: Sequence[Weights], sigma_w2: float | Sequence[float] | None) -> list[float]:
    """Mean square of one weight of each layer."""
    if sigma_w2 is None:
        by_shape: dict[tuple[int, ...], list[float]] = defaultdict(list)
        for layer in layers:
            if math.isfinite(layer.w2):
                by_shape[layer.shape].append(layer.w2)
        return [
            statistics.median(by_shape[layer.shape]) if len(by_shape[layer.shape]) >= _ALIKE else layer.w2
            for layer in layers
        ]
    numbers = [*sigma_w2] if isinstance(sigma_w2, Sequence) else [sigma_w2] * len(layers)
    if len(numbers) != len(layers) or not all(math.isfinite(one) and one > 0.0 for one in numbers):
        raise ValueError(
            f"sigma_w2={sigma_w2!r} must be one number above 0, or one for each of the model's {len(layers)} layers"
        )
    return [one / math.prod(layer.shape[1:]) for one, layer in zip(numbers, layers, strict=True)]
