"""What GradScope raises and warns with, and how an unknown name is answered."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecordingError(Exception):
    """A recording cannot be read or written: missing, foreign, cut or damaged. One sentence says which."""


class GradScopeWarning(UserWarning):
    """GradScope could not observe something, or stopped observing; training goes on."""


def unknown_name(argument: str, value: object, allowed: Iterable[str]) -> ValueError:
    """The error for a name that is not in a registry: argument, value, what is allowed, nearest match.

    >>> unknown_name("stat", "rsm", ["mean", "rms"])
    ValueError("stat='rsm' is unknown (did you mean 'rms'?); allowed: mean, rms")
    """
    names = list(allowed)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return ValueError(f"{argument}={value!r} is unknown{hint}; allowed: {', '.join(names) or 'none'}")
