"""Which of several ranks this process is, as `torchrun` says in the environment. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass

from gradscope.experiments._config import SettingsError

_MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """This process' rank, how many ranks there are, and its number among those of its machine."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0


def launch() -> Launch:
    """This process' place; alone where not all that ranks need to meet is in the environment.

    Raises:
        SettingsError: a variable is not what `torchrun` would set.
    """
    if not all(os.environ.get(name) for name in _MEETING):
        return Launch()
    ranks = _whole("WORLD_SIZE", 1)
    _whole("MASTER_PORT", 0, 65535)
    return Launch(_whole("RANK", 0, ranks - 1), ranks, _whole("LOCAL_RANK", 0) if "LOCAL_RANK" in os.environ else 0)


def _whole(name: str, least: int, most: int | None = None) -> int:
    """A variable's number."""
    text = os.environ[name]
    number = int(text) if text.strip().isascii() and text.strip().isdigit() else -1
    if number < least or (most is not None and number > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise SettingsError(f"the environment variable {name} must be a whole number {allowed}, not {text!r}.")
    return number
