"""One table: each activation's name, function, slope, saturation and recommended scheme.

A new activation is one row of `_TABLE`; the choices of the command line, the docs' tables and the tests are
made from it. Torch classes and functions are named as strings: this module never imports torch.

Recommended schemes, and why (weights of variance gain²/fan; χ is the gradient's second moment per layer):

- `glorot_normal` (Glorot & Bengio 2010) for identity, softmax and what saturates on both sides. Tanh,
  softsign, hardtanh and sin have slope 1 at 0, so that 1/fan is their edge of chaos: χ → 1 as q → 0. With
  He's 2/fan their gradients explode: sin settles where q = 1 - e^(-2q), q = 0.797, and there
  χ = 1 + e^(-2q) = 1.203, 10⁴ over 50 layers. Sigmoid and hardsigmoid lose their gradient under either;
  Glorot is the field's convention.
- `he_normal` (He et al. 2015) for ReLU and its later variants: leaky ReLU, PReLU, ReLU6, ELU, CELU, GELU,
  SiLU, Mish, hardswish. Softplus too, a ReLU with a bump at 0: under 2/fan its q grows like l^(2/3) and its
  χ tends to 1 from below, while 1/fan would at least halve the gradient's second moment at every layer.
- `lecun_normal` for SELU, whose fixed point, mean 0 and variance 1, needs weights of variance 1/fan_in
  (Klambauer et al. 2017).
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope import _activation_functions as f
from gradscope._activation import Activation

__all__ = ["Activation", "get", "names", "of_functional", "of_module"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Row:
    """A row of the table: an activation whose parameters may still be chosen."""

    name: str
    function: Callable[..., Array]
    derivative: Callable[..., Array]
    scheme: str
    aliases: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    functionals: tuple[str, ...] = ()
    kinks: Callable[..., tuple[float, ...]] = tuple
    elementwise: bool = True
    defaults: Mapping[str, float] = field(default_factory=dict, hash=False)
    torch_names: Mapping[str, str] = field(default_factory=dict, hash=False)  # torch's argument -> ours
    forms: Mapping[str, str] = field(default_factory=dict, hash=False)  # torch's approximate= -> row name


_HE, _GLOROT, _LECUN = "he_normal", "glorot_normal", "lecun_normal"
_F, _T, _M = "torch.nn.functional.", "torch.", "torch.Tensor."
_GELU_FORMS = {"none": "gelu", "erf": "gelu", "tanh": "gelu_tanh"}


def _kink_at_zero(slope: float) -> tuple[float, ...]:
    return () if slope == 1.0 else (0.0,)


def _everywhere(name: str) -> tuple[str, ...]:
    return _F + name, _T + name, _M + name


_TABLE: tuple[_Row, ...] = (
    _Row("identity", f.identity, f.identity_slope, _GLOROT, ("none", "linear"), ("torch.nn.Identity",)),
    _Row("tanh", f.tanh, f.tanh_slope, _GLOROT, (), ("torch.nn.Tanh",), _everywhere("tanh")),
    _Row(
        "sigmoid", f.sigmoid, f.sigmoid_slope, _GLOROT, ("logistic",), ("torch.nn.Sigmoid",),
        (*_everywhere("sigmoid"), "torch.special.expit"),
    ),
    _Row(
        "softmax", f.softmax, f.softmax_slope, _GLOROT, (), ("torch.nn.Softmax", "torch.nn.Softmax2d"),
        (*_everywhere("softmax"), "torch.special.softmax"), elementwise=False,
    ),
    _Row(
        "relu", f.leaky_relu, f.leaky_relu_slope, _HE, ("rectifier",), ("torch.nn.ReLU",),
        _everywhere("relu"), lambda: (0.0,),
    ),
    _Row(
        "leaky_relu", f.leaky_relu, f.leaky_relu_slope, _HE, ("lrelu",), ("torch.nn.LeakyReLU",),
        (_F + "leaky_relu",), _kink_at_zero, defaults={"slope": 0.01},
        torch_names={"negative_slope": "slope"},
    ),
    _Row(
        "prelu", f.leaky_relu, f.leaky_relu_slope, _HE, (), ("torch.nn.PReLU",),
        (_F + "prelu", _T + "prelu"), _kink_at_zero, defaults={"slope": 0.25},
        torch_names={"weight": "slope"},
    ),
    _Row(
        "relu6", functools.partial(f.hardtanh, low=0.0, high=6.0),
        functools.partial(f.hardtanh_slope, low=0.0, high=6.0), _HE, (), ("torch.nn.ReLU6",),
        (_F + "relu6",), lambda: (0.0, 6.0),
    ),
    _Row(
        "elu", f.elu, f.elu_slope, _HE, (), ("torch.nn.ELU",), (_F + "elu",), _kink_at_zero,
        defaults={"alpha": 1.0}, torch_names={"alpha": "alpha"},
    ),
    _Row(
        "celu", f.celu, f.celu_slope, _HE, (), ("torch.nn.CELU",), (_F + "celu", _T + "celu"),
        lambda alpha: (), defaults={"alpha": 1.0}, torch_names={"alpha": "alpha"},
    ),
    _Row(
        "selu", f.selu, f.selu_slope, _LECUN, (), ("torch.nn.SELU",), (_F + "selu", _T + "selu"),
        lambda: (0.0,),
    ),
    _Row(
        "gelu", f.gelu, f.gelu_slope, _HE, ("gelu_erf",), ("torch.nn.GELU",), (_F + "gelu",),
        forms=_GELU_FORMS,
    ),
    _Row(
        "gelu_tanh", f.gelu_tanh, f.gelu_tanh_slope, _HE, ("gelu_new",), ("torch.nn.GELU",),
        (_F + "gelu",),
    ),
    _Row("silu", f.silu, f.silu_slope, _HE, ("swish",), ("torch.nn.SiLU",), (_F + "silu",)),
    _Row("mish", f.mish, f.mish_slope, _HE, (), ("torch.nn.Mish",), (_F + "mish",)),
    _Row(
        "softplus", f.softplus, f.softplus_slope, _HE, (), ("torch.nn.Softplus",), (_F + "softplus",),
        lambda beta: (), defaults={"beta": 1.0}, torch_names={"beta": "beta"},
    ),
    _Row("softsign", f.softsign, f.softsign_slope, _GLOROT, (), ("torch.nn.Softsign",), (_F + "softsign",)),
    _Row(
        "hardtanh", f.hardtanh, f.hardtanh_slope, _GLOROT, (), ("torch.nn.Hardtanh",), (_F + "hardtanh",),
        lambda low, high: (low, high), defaults={"low": -1.0, "high": 1.0},
        torch_names={"min_val": "low", "max_val": "high"},
    ),
    _Row(
        "hardsigmoid", f.hardsigmoid, f.hardsigmoid_slope, _GLOROT, (), ("torch.nn.Hardsigmoid",),
        (_F + "hardsigmoid",), lambda: (-3.0, 3.0),
    ),
    _Row(
        "hardswish", f.hardswish, f.hardswish_slope, _HE, (), ("torch.nn.Hardswish",), (_F + "hardswish",),
        lambda: (-3.0, 3.0),
    ),
    _Row("sin", f.sin, f.sin_slope, _GLOROT, ("sine",), (), (_T + "sin", _M + "sin")),
)  # fmt: skip


def _key(name: str) -> str:
    return re.sub(r"[\s_\-]", "", name.lower())


_ROWS = {row.name: row for row in _TABLE}
_BY_NAME = {_key(name): row for row in _TABLE for name in (row.name, *row.aliases)}
# Where two rows share a torch name (GELU) the first is torch's default; `forms` finds the other.
_BY_MODULE = {path.rpartition(".")[2]: row for row in reversed(_TABLE) for path in row.modules}
_BY_FUNCTIONAL = {path.rpartition(".")[2]: row for row in reversed(_TABLE) for path in row.functionals}


def names() -> tuple[str, ...]:
    """Canonical names of all activations, in the table's order."""
    return tuple(_ROWS)


def get(name: str | Activation | None) -> Activation:
    """The activation of that name, alias or parametrised form; case, `_` and `-` do not matter.

    None is the identity, an `Activation` passes through.

    Raises:
        ValueError: unknown name, or a parameter that the activation does not take.

    >>> get("Logistic").name, get("leaky_relu(0.2)").params, get("GELU(tanh)").name
    ('sigmoid', {'slope': 0.2}, 'gelu_tanh')
    """
    if isinstance(name, Activation):
        return name
    if name is None:
        return _build(_ROWS["identity"])
    match = re.fullmatch(r"\s*([^()]+?)\s*(?:\((.*)\))?\s*", name) if isinstance(name, str) else None
    row = _BY_NAME.get(_key(match[1])) if match else None
    if match is None or row is None:
        known = [n for r in _TABLE for n in (r.name, *r.aliases)]
        near = difflib.get_close_matches(str(name).lower().partition("(")[0].strip(), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        if callable(name):
            hint = "a function of your own comes as gradscope.theory.activation_of(function). "
        raise ValueError(f"activation={name!r} is unknown; {hint}Known are {', '.join(names())}.")
    given = [part.strip() for part in match[2].split(",")] if match[2] and match[2].strip() else []
    if row.forms and len(given) == 1 and given[0].lower() in row.forms:
        return _build(_ROWS[row.forms[given[0].lower()]])
    return _build(row, *_parameters(name, row, given))


def of_module(class_name: str, **attributes: Any) -> Activation | None:
    """The activation that a torch module class computes, or None where it is not one of the table.

    `attributes` are the module's own, by torch's names; what the activation does not use is ignored, so
    `of_module(type(m).__name__, **vars(m))` works. PReLU's `weight` may hold one slope per channel: their
    root mean square gives the same second moments.

    >>> of_module("LeakyReLU", negative_slope=0.2, inplace=True).name
    'leaky_relu(0.2)'
    >>> of_module("GELU", approximate="tanh").name, of_module("Linear")
    ('gelu_tanh', None)
    """
    return _of_torch(_BY_MODULE.get(class_name), attributes)


def of_functional(name: str, **arguments: Any) -> Activation | None:
    """The activation that a torch function computes, or None; `relu_` and `torch.relu` are `relu`.

    `arguments` are the call's keyword arguments by torch's names; others are ignored.

    >>> of_functional("leaky_relu_", negative_slope=0.2).name
    'leaky_relu(0.2)'
    """
    return _of_torch(_BY_FUNCTIONAL.get(name.rpartition(".")[2].rstrip("_")), arguments)


def _of_torch(row: _Row | None, arguments: Mapping[str, Any]) -> Activation | None:
    if row is None:
        return None
    if row.forms and "approximate" in arguments:
        row = _ROWS[row.forms[arguments["approximate"]]]
    values = dict(row.defaults)
    for theirs, ours in row.torch_names.items():
        if theirs in arguments:
            given = np.asarray(arguments[theirs], dtype=np.float64).ravel()
            values[ours] = float(given[0]) if given.size == 1 else float(np.sqrt(np.mean(given**2)))
    return _build(row, *values.values())


def _parameters(name: str, row: _Row, given: list[str]) -> tuple[float, ...]:
    """The row's parameters, from `0.2` or `slope=0.2`, in their order."""
    values = dict(row.defaults)
    allowed = ", ".join(f"{key}={value:g}" for key, value in row.defaults.items()) or "none"
    if row.forms:
        allowed = " or ".join(row.forms)
    if len(given) > len(values):
        raise ValueError(f"activation={name!r}: too many parameters for {row.name} (allowed: {allowed}).")
    for position, text in enumerate(given):
        key, equals, number = text.rpartition("=")
        key = key.strip() if equals else list(values)[position]
        try:
            values[key] = float(number) if key in row.defaults else math.nan
        except ValueError:
            values[key] = math.nan
        if not math.isfinite(values[key]):
            raise ValueError(f"activation={name!r}: {text!r} is no parameter of {row.name} (allowed: {allowed}).")
    return tuple(values.values())


def _digits(value: float) -> str:
    """As short as it reads back exactly."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


@functools.cache
def _build(row: _Row, *values: float) -> Activation:
    params = dict(zip(row.defaults, values, strict=True))
    if params.get("alpha") == 0.0 or params.get("beta", 1.0) <= 0.0:
        raise ValueError(f"{row.name}: alpha must not be 0 and beta must be above 0, got {params}.")
    if not params.get("low", 0.0) < params.get("high", 1.0):
        raise ValueError(f"{row.name}: low must be below high, got {params}.")
    plain = params == dict(row.defaults)
    return Activation(
        name=row.name if plain else f"{row.name}({', '.join(map(_digits, values))})",
        function=functools.partial(row.function, **params) if params else row.function,
        derivative=functools.partial(row.derivative, **params) if params else row.derivative,
        aliases=row.aliases,
        modules=row.modules,
        functionals=row.functionals,
        kinks=row.kinks(*params.values()),
        elementwise=row.elementwise,
        scheme=row.scheme,
        params=params,
    )
