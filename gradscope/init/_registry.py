"""The registry of schemes: the in-place functions by name, their variance and their paper.

A new scheme is one row of `_SCHEMES`; the command line's choices, the docs and the parametrised tests are
made from it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradscope import activations
from gradscope.init import _matrices
from gradscope.init._fans import Fans, tensor_fans
from gradscope.init._named import (
    GLOROT_NORMAL,
    GLOROT_UNIFORM,
    HE_NORMAL,
    HE_UNIFORM,
    LECUN_NORMAL,
    LECUN_UNIFORM,
)
from gradscope.init._scheme import Scheme, Shape
from gradscope.init._sparse import NONZEROS, martens_sparse_
from gradscope.init._variance_scaling import VarianceScaling, ready
from gradscope.recording._errors import unknown_name

# nn.Linear calls kaiming_uniform_(a=√5); in its own order of operations, so that the bits are the same.
_SQRT5_GAIN = math.sqrt(2.0 / (1.0 + math.sqrt(5.0) ** 2))


def torch_default_limit(fan_in: float) -> float:
    """The limit of the uniform weights that torch gives a Linear or a convolution: 1/√fan_in."""
    return math.sqrt(3.0) * (_SQRT5_GAIN / math.sqrt(fan_in))


def _torch_default_(tensor: Tensor, *, fans: Fans | None = None, generator: torch.Generator | None = None) -> Tensor:
    if not ready(tensor, generator):
        return tensor
    limit = torch_default_limit((fans or tensor_fans(tensor)).fan_in)
    with torch.no_grad():
        return tensor.uniform_(-limit, limit, generator=generator)


def _naive_normal_(tensor: Tensor, *, fans: Fans | None = None, generator: torch.Generator | None = None) -> Tensor:
    if not ready(tensor, generator):
        return tensor
    with torch.no_grad():
        return tensor.normal_(0.0, 1.0, generator=generator)


def _identity_(tensor: Tensor, *, groups: int = 1, generator: torch.Generator | None = None) -> Tensor:
    return _matrices.identity_(tensor, groups=groups)


def _scaled(name: str, rule: VarianceScaling, paper: str) -> Scheme:
    return Scheme(name, rule, rule.variance, paper)


def _orthogonal_variance(fans: Fans, shape: Shape | None) -> float:
    rows, cols = fans if shape is None else (shape[0], math.prod(shape[1:]))
    return 1.0 / max(rows, cols)


def _scaled_orthogonal_variance(fans: Fans, shape: Shape | None) -> float:
    return 1.0 / (fans.fan_in if shape is None else math.prod(shape[1:]))


def _delta_orthogonal_variance(fans: Fans, shape: Shape | None) -> float | None:
    if shape is None:
        return None  # the fans do not tell the channels from the taps
    return 1.0 / (max(shape[:2]) * math.prod(shape[2:]))


_GLOROT = "Glorot & Bengio (2010), eq. 16"
_HE = "He et al. (2015), eq. 10"
_LECUN = "LeCun, Bottou, Orr & Müller (1998), 4.6"

_SCHEMES = (
    _scaled("glorot_normal", GLOROT_NORMAL, _GLOROT),
    _scaled("glorot_uniform", GLOROT_UNIFORM, _GLOROT),
    _scaled("he_normal", HE_NORMAL, _HE),
    _scaled("he_uniform", HE_UNIFORM, _HE),
    _scaled("lecun_normal", LECUN_NORMAL, _LECUN),
    _scaled("lecun_uniform", LECUN_UNIFORM, _LECUN),
    Scheme(
        "orthogonal",
        _matrices.orthogonal_,
        _orthogonal_variance,
        "Saxe, McClelland & Ganguli (2014)",
        matrix=True,
    ),
    Scheme(
        "scaled_orthogonal",
        _matrices.scaled_orthogonal_,
        _scaled_orthogonal_variance,
        "Saxe, McClelland & Ganguli (2014); the factor: pytorch#10672",
        matrix=True,
    ),
    Scheme(
        "delta_orthogonal",
        _matrices.delta_orthogonal_,
        _delta_orthogonal_variance,
        "Xiao et al. (2018), algorithm 1",
        matrix=True,
    ),
    Scheme(
        "hadamard",
        _matrices.hadamard_,
        lambda fans, shape: None,
        "Zhao, Schäfer & Anandkumar (2022), ZerO, as in the authors' code",
        matrix=True,
    ),
    Scheme(
        "martens_sparse",
        martens_sparse_,
        lambda fans, shape: min(1.0, NONZEROS / (fans.fan_in if shape is None else math.prod(shape[1:]))),
        "Martens (2010), section 5",
    ),
    Scheme("identity", _identity_, lambda fans, shape: None, "Le, Jaitly & Hinton (2015)", matrix=True),
    Scheme(
        "torch_default",
        _torch_default_,
        lambda fans, shape: 1.0 / (3.0 * fans.fan_in),
        "torch.nn.Linear.reset_parameters: U(±1/√fan_in)",
    ),
    Scheme("naive_normal", _naive_normal_, lambda fans, shape: 1.0, "N(0, 1) at any width: what not to do"),
)
_BY_NAME = {scheme.name: scheme for scheme in _SCHEMES}

ALIASES = {
    "xavier_normal": "glorot_normal",
    "xavier_uniform": "glorot_uniform",
    "kaiming_normal": "he_normal",
    "kaiming_uniform": "he_uniform",
}
"""torch's names for the same schemes."""


def scheme_names() -> tuple[str, ...]:
    """Names of all schemes, without the aliases."""
    return tuple(_BY_NAME)


def get_scheme(scheme: str | Scheme | VarianceScaling) -> Scheme:
    """The scheme of that name or alias; a `Scheme` passes through, a `VarianceScaling` becomes one.

    Raises:
        ValueError: an unknown name; the sentence has the nearest match.

    >>> get_scheme("kaiming_normal").name, get_scheme(VarianceScaling(2.0, "fan_avg", "uniform")).name
    ('he_normal', 'variance_scaling(2, fan_avg, uniform)')
    """
    if isinstance(scheme, Scheme):
        return scheme
    if isinstance(scheme, VarianceScaling):
        for known in _SCHEMES:
            if known.fill == scheme:
                return known
        return _scaled(f"variance_scaling({scheme.scale:g}, {scheme.mode}, {scheme.distribution})", scheme, "")
    if isinstance(scheme, str) and ALIASES.get(scheme, scheme) in _BY_NAME:
        return _BY_NAME[ALIASES.get(scheme, scheme)]
    raise unknown_name("scheme", scheme, (*_BY_NAME, *ALIASES))


def recommend(activation: str | activations.Activation | None) -> Scheme:
    """The scheme recommended for the weights before an activation.

    Glorot for none, tanh, logistic and softmax; He for ReLU and its variants (ELU, GELU, SiLU and Mish
    included); LeCun for SELU. The reasons stand in `gradscope.activations`.

    Raises:
        ValueError: an unknown activation.

    >>> [recommend(name).name for name in ("tanh", "gelu", "selu")]
    ['glorot_normal', 'he_normal', 'lecun_normal']
    """
    return get_scheme(activations.get(activation).scheme)
