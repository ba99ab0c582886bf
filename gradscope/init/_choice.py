"""Which scheme a parameter gets: one for all, the recommended one, or one per pattern of names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gradscope.init._registry import get_scheme, recommend, scheme_names
from gradscope.init._scheme import Scheme
from gradscope.init._variance_scaling import VarianceScaling
from gradscope.recording._errors import unknown_name

SchemeLike = str | Scheme | VarianceScaling
AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """A rule that applies to a parameter.

    Attributes:
        scheme: the scheme, None for the one recommended for the activation that follows.
        by_name: the parameter was named in full, not by a pattern with wildcards.
    """

    scheme: Scheme | None
    by_name: bool = False

    @property
    def is_torch_default(self) -> bool:
        """Whether each module is to get what torch itself gives it, biases included."""
        return self.scheme is not None and self.scheme.name == "torch_default"

    def resolve(self, activation: str | None) -> Scheme:
        """The scheme before this activation; None, nothing follows, is the identity."""
        return self.scheme or recommend(activation)


class Choices:
    """The argument `scheme` of `initialize`, checked.

    Raises:
        ValueError: an unknown scheme, or a pattern that no parameter matches.
    """

    def __init__(self, scheme: SchemeLike | Mapping[str, SchemeLike], parameters: Iterable[str]) -> None:
        self._patterns = {"*": scheme} if not isinstance(scheme, Mapping) else dict(scheme)
        self._schemes = {pattern: _parse(value) for pattern, value in self._patterns.items()}
        names = list(parameters)
        for pattern in self._schemes if isinstance(scheme, Mapping) else ():
            if not any(fnmatchcase(name, pattern) for name in names):
                near = difflib.get_close_matches(pattern, names, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ValueError(f"scheme: no parameter matches the pattern {pattern!r}{hint}")

    def of(self, parameter: str) -> Choice | None:
        """The first rule whose pattern matches, None where none does."""
        for pattern, scheme in self._schemes.items():
            if fnmatchcase(parameter, pattern):
                return Choice(scheme, by_name=pattern == parameter)
        return None


def _parse(scheme: SchemeLike) -> Scheme | None:
    if scheme == AUTO:
        return None
    whole = _model_scheme_names()
    if isinstance(scheme, str) and scheme in whole:
        raise ValueError(f"scheme: {scheme!r} is for a whole model; it cannot be given to one pattern of names")
    if not isinstance(scheme, str | Scheme | VarianceScaling):
        raise unknown_name("scheme", scheme, (AUTO, *scheme_names(), *whole, "a Scheme", "a VarianceScaling"))
    try:
        return get_scheme(scheme)
    except ValueError:
        raise unknown_name("scheme", scheme, (AUTO, *scheme_names(), *whole)) from None


def _model_scheme_names() -> tuple[str, ...]:
    from gradscope.init._model_schemes import MODEL_ALIASES, MODEL_SCHEMES  # they take steps, which take choices

    return (*MODEL_SCHEMES, *MODEL_ALIASES)
