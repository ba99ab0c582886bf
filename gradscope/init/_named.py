"""Glorot, He and LeCun by name: each is one setting of `VarianceScaling`.

Called on a bare tensor they see torch's fans; `initialize` gives them the layer's true ones, and so may you:
`he_normal_(layer.weight, fans=fans(layer))`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.init._fans import Fans
from gradscope.init._variance_scaling import VarianceScaling

GLOROT_NORMAL = VarianceScaling(1.0, "fan_avg", "normal")
GLOROT_UNIFORM = VarianceScaling(1.0, "fan_avg", "uniform")
HE_NORMAL = VarianceScaling(2.0, "fan_in", "normal")
HE_UNIFORM = VarianceScaling(2.0, "fan_in", "uniform")
LECUN_NORMAL = VarianceScaling(1.0, "fan_in", "normal")
LECUN_UNIFORM = VarianceScaling(1.0, "fan_in", "uniform")

Generator = torch.Generator | None


def glorot_normal_(tensor: Tensor, *, fans: Fans | None = None, generator: Generator = None) -> Tensor:
    """N(0, 1/fan_avg), for a layer that tanh, a logistic unit or nothing follows: `xavier_normal_`.

    Source: Glorot & Bengio (2010), eq. 12: Var w = 2/(fan_in + fan_out).
    """
    return GLOROT_NORMAL(tensor, fans=fans, generator=generator)


def glorot_uniform_(tensor: Tensor, *, fans: Fans | None = None, generator: Generator = None) -> Tensor:
    """U(±r), r = √(3/fan_avg), for a layer that tanh, a logistic unit or nothing follows: `xavier_uniform_`.

    Source: Glorot & Bengio (2010), eq. 16: r = √6/√(fan_in + fan_out).
    """
    return GLOROT_UNIFORM(tensor, fans=fans, generator=generator)


def he_normal_(tensor: Tensor, *, fans: Fans | None = None, generator: Generator = None) -> Tensor:
    """N(0, 2/fan_in), for a layer that a ReLU follows: `kaiming_normal_`.

    Source: He et al. (2015), eq. 10: half of fan_in · Var w is 1.
    """
    return HE_NORMAL(tensor, fans=fans, generator=generator)


def he_uniform_(tensor: Tensor, *, fans: Fans | None = None, generator: Generator = None) -> Tensor:
    """U(±√(6/fan_in)), for a layer that a ReLU follows: `kaiming_uniform_`.

    Source: He et al. (2015), eq. 10, with a uniform distribution of the same variance.
    """
    return HE_UNIFORM(tensor, fans=fans, generator=generator)


def lecun_normal_(tensor: Tensor, *, fans: Fans | None = None, generator: Generator = None) -> Tensor:
    """N(0, 1/fan_in), for a layer that SELU follows.

    Source: LeCun, Bottou, Orr & Müller (1998), 4.6; Klambauer et al. (2017) for SELU.
    """
    return LECUN_NORMAL(tensor, fans=fans, generator=generator)


def lecun_uniform_(tensor: Tensor, *, fans: Fans | None = None, generator: Generator = None) -> Tensor:
    """U(±√(3/fan_in)): the variance of `lecun_normal_`.

    Source: LeCun, Bottou, Orr & Müller (1998), 4.6.
    """
    return LECUN_UNIFORM(tensor, fans=fans, generator=generator)


xavier_normal_ = glorot_normal_
xavier_uniform_ = glorot_uniform_
kaiming_normal_ = he_normal_
kaiming_uniform_ = he_uniform_
