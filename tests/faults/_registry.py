"""Where makers of programs register what they make: the healthy program, and the same with a fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.faults._program import Program, Run

Maker = Callable[..., Run]
PROGRAMS: dict[str, Program] = {}


def healthy(
    family: str, name: str, changes: Mapping[str, Any] | None = None, *, steps: int = 60, goal: float | None = None
) -> Callable[[Maker], Maker]:
    """Register the maker, with these changes of its defaults, as a healthy program."""

    def register(maker: Maker) -> Maker:
        _add(Program(name, family, None, _seeded(maker, changes or {}), steps, goal=goal))
        return maker

    return register


def faulty(
    family: str,
    name: str,
    fault: str,
    changes: Mapping[str, Any],
    *,
    cure: str,
    also: tuple[str, ...] = (),
    where: str | None = None,
    start: int = 0,
    steps: int = 60,
    twin: Mapping[str, Any] | None = None,
    static: Callable[[Run], bool] | None = None,
) -> Callable[[Maker], Maker]:
    """Register the maker with a fault; its healthy twin has the maker's defaults, or the changes of `twin`."""

    def register(maker: Maker) -> Maker:
        without = _seeded(maker, twin or {})
        made = _seeded(maker, changes)
        _add(Program(name, family, fault, made, steps, also, where, start, without, cure, static=static))
        return maker

    return register


def _add(program: Program) -> None:
    if program.name in PROGRAMS:
        raise ValueError(f"two programs are called {program.name!r}")
    PROGRAMS[program.name] = program


def _seeded(maker: Maker, changes: Mapping[str, Any]) -> Callable[[int], Run]:
    def make(seed: int) -> Run:
        torch.manual_seed(seed)
        return maker(seed, **changes)

    return make
