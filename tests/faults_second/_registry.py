"""The registry of the second set of unseen programs; its decorators register a maker under a name, well or ill."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.faults._program import FAMILIES, Program, Run

Maker = Callable[..., Run]
Changes = Mapping[str, Any]
PROGRAMS: dict[str, Program] = {}


def healthy(
    family: str, name: str, changes: Changes | None = None, *, steps: int = 80, goal: float | None = None
) -> Callable[[Maker], Maker]:
    """The maker with these arguments, which has nothing to complain about."""

    def register(maker: Maker) -> Maker:
        _add(Program(name, family, None, _seeded(maker, changes or {}), steps, goal=goal))
        return maker

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
    steps: int = 80,
    twin: Changes | None = None,
    static: Callable[[Run], bool] | None = None,
) -> Callable[[Maker], Maker]:
    """The maker with arguments that break it; its twin has those of `twin`, else its defaults."""
    unknown = {fault, *also} - set(FAMILIES)
    if unknown:
        raise ValueError(f"{name}: {sorted(unknown)} are no families of faults; allowed are {FAMILIES}")

    def register(maker: Maker) -> Maker:
        ill, well = _seeded(maker, changes), _seeded(maker, twin or {})
        _add(Program(name, family, fault, ill, steps, also, where, start, well, cure, static=static))
        return maker

    return register


def _add(program: Program) -> None:
    if program.name in PROGRAMS:
        raise ValueError(f"two programs are called {program.name!r}")
    PROGRAMS[program.name] = program


def _seeded(maker: Maker, changes: Changes) -> Callable[[int], Run]:
    made = functools.partial(maker, **changes)

    def make(seed: int) -> Run:
        torch.manual_seed(seed)
        return made(seed)

    return make
