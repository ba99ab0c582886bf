"""The registry of these programs, as that of the corpus, and apart from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.faults._program import Program, Run

Maker = Callable[..., Run]
Changes = Mapping[str, Any]
PROGRAMS: dict[str, Program] = {}


def healthy(
    family: str, name: str, changes: Changes | None = None, *, steps: int = 60, goal: float | None = None
) -> Callable[[Maker], Maker]:
    """Register the maker, with these changes of its defaults, as a healthy program."""

    def register(maker: Maker) -> Maker:
        return _add(maker, Program(name, family, None, _seeded(maker, changes or {}), steps, goal=goal))

    return register


def faulty(
    family: str,
    name: str,
    fault: str,
    changes: Changes,
    *,
    cure: str,
    also: tuple[str, ...] = (),
    where: str | None = None,
    start: int = 0,
    steps: int = 60,
    twin: Changes | None = None,
    static: Callable[[Run], bool] | None = None,
) -> Callable[[Maker], Maker]:
    """Register the maker with a fault; its healthy twin has the maker's defaults, or the changes of `twin`."""

    def register(maker: Maker) -> Maker:
        made, without = _seeded(maker, changes), _seeded(maker, twin or {})
        return _add(maker, Program(name, family, fault, made, steps, also, where, start, without, cure, static=static))

    return register


def _add(maker: Maker, program: Program) -> Maker:
    if program.name in PROGRAMS:
        raise ValueError(f"two programs are called {program.name!r}")
    PROGRAMS[program.name] = program
    return maker


def _seeded(maker: Maker, changes: Changes) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        torch.manual_seed(seed)
        return maker(seed, **changes)

    return make
