"""What a sweep's settings may be: each check returns the setting's canonical form or says what is allowed.

A check raises ValueError with the end of a sentence that begins with the setting's name.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

from gradscope import activations

SCHEMES = (
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "orthogonal",
    "scaled_orthogonal",
    "delta_orthogonal",
    "hadamard",
    "martens_sparse",
    "identity",
    "torch_default",
    "naive_normal",
    "edge_of_chaos",
    "lsuv",
)
"""The names in `gradscope.init`'s registry, and the schemes of whole models that mean something in a plain network;
known here without importing torch (a test compares them)."""

_ALIASES = {"xavier": "glorot", "kaiming": "he"}  # torch's names of the same schemes
_LARGEST = 2**63 - 1  # what a TOML integer and a torch seed can hold


def nearest(word: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the known name nearest to a word, or nothing where none is near.

    >>> nearest("depht", ["depth", "width"])
    "; did you mean 'depth'?"
    """
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def scheme(name: object) -> str:
    """A scheme's canonical name: `kaiming_normal_` is `he_normal`."""
    wanted = name.strip().lower().removesuffix("_") if isinstance(name, str) else ""
    family, _, rest = wanted.partition("_")
    canonical = f"{_ALIASES.get(family, family)}_{rest}" if rest else wanted
    if canonical not in SCHEMES:
        known = [*SCHEMES, *(f"{alias}_{shape}" for alias in _ALIASES for shape in ("normal", "uniform"))]
        raise ValueError(f"must be one or more of {', '.join(SCHEMES)}, not {name!r}{nearest(name, known)}")
    return canonical


def activation(name: Any) -> str:
    """An activation's canonical name, with its parameters where they are not the default."""
    if not isinstance(name, str):
        raise ValueError(f"must be one or more of {', '.join(activations.names())}, not {name!r}")
    return activations.get(name).name


def several(check: Callable[[Any], str]) -> Callable[[object], tuple[str, ...]]:
    """Checks one name or a list of them, none twice."""

    def check_all(value: object) -> tuple[str, ...]:
        given = list(value) if isinstance(value, (list, tuple)) else [value]
        if not given:
            raise ValueError(f"must name at least one, not {value!r}")
        found = tuple(check(name) for name in given)
        for name in found:
            if found.count(name) > 1:
                raise ValueError(f"must name each once, but {given!r} names {name!r} {found.count(name)} times")
        return found

    return check_all


def _whole(value: Any, minimum: int) -> int | None:
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
    return number if number is not None and minimum <= number <= _LARGEST else None


def whole(minimum: int) -> Callable[[object], int]:
    """Checks one whole number."""

    def check(value: object) -> int:
        number = _whole(value, minimum)
        if number is None:
            raise ValueError(f"must be a whole number of at least {minimum}, not {value!r}")
        return number

    return check


def wholes(minimum: int) -> Callable[[object], tuple[int, ...]]:
    """Checks one whole number or a list of them, none twice."""

    def check(value: object) -> tuple[int, ...]:
        given = list(value) if isinstance(value, (list, tuple)) else [value]
        found = tuple(number for item in given if (number := _whole(item, minimum)) is not None)
        if not found or len(found) < len(given) or len(set(found)) < len(found):
            raise ValueError(
                f"must be a whole number of at least {minimum}, or a list of different ones, not {value!r}"
            )
        return found

    return check


def one_of(*allowed: str) -> Callable[[object], str]:
    """Checks a choice."""

    def check(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"must be {' or '.join(map(repr, allowed))}, not {value!r}{nearest(value, allowed)}")
        return str(value)

    return check


def device(value: object) -> str:
    """Checks a torch device's name; whether the machine has it is seen when a sweep starts."""
    if not isinstance(value, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", value):
        hint = nearest(value, ("cpu", "cuda", "gpu")).replace("gpu", "cuda")
        raise ValueError(f"must be 'cpu', 'cuda' or 'cuda:N' with N a device's number, not {value!r}{hint}")
    return value
