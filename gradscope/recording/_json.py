"""JSON in and out: facts, notes and sites as data, never as code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

_DEEPEST = 50


def to_plain(value: Any) -> Any:
    """The value as JSON knows it: numpy becomes numbers and lists, keys become str, and so does the unknown.

    >>> to_plain({"lr": np.float32(0.5), "shape": (2, 3), "device": slice(1)})
    {'lr': 0.5, 'shape': [2, 3], 'device': 'slice(None, 1, None)'}
    """
    return _plain(value, ())


def _plain(value: Any, within: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):  # a subclass (an enum, numpy's float64) becomes what it stands for
            return kind(value)
    if isinstance(value, (np.generic, np.ndarray)):
        plain = value.tolist()
        return float(plain) if isinstance(plain, np.longdouble) else _plain(plain, within)
    if id(value) not in within and len(within) < _DEEPEST:  # else it contains itself
        if isinstance(value, Mapping):
            return {str(k): _plain(v, (*within, id(value))) for k, v in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [_plain(v, (*within, id(value))) for v in value]
    try:
        return str(value)
    except Exception:  # whatever a stranger's __str__ raises, a fact must not stop a training
        return f"<{type(value).__name__}>"


_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_PLAIN = frozenset((str, int, float, bool, type(None)))


def dumps(value: Any) -> bytes:
    """ASCII bytes of the plain value; NaN and infinities as Python's json writes and reads them."""
    return _ENCODE(value if _is_flat(value) else to_plain(value)).encode("ascii")


def _is_flat(value: Any) -> bool:
    """Names with plain values, as most notes are: known to be as JSON wants them without a copy."""
    return type(value) is dict and _PLAIN.issuperset(map(type, value.values())) and set(map(type, value)) <= {str}


def loads(data: bytes) -> Any:
    """The value that `dumps` wrote."""
    return json.loads(data.decode("ascii"))
