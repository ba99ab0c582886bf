"""Which of several ranks this process is, as `torchrun` says in the environment. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass

_MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """This process' rank, how many ranks there are, and its number among those of its machine."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0


def launch() -> Launch:
    """This process' place; alone where not all that ranks need to meet is in the environment."""
    if not all(name in os.environ for name in _MEETING):
        return Launch()
    return Launch(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0")))
