"""The second set of unseen programs: each fault hurts, each healthy program learns, and no name is used twice."""

from __future__ import annotations

import pytest

from tests.faults import PROGRAMS as CORPUS
from tests.faults._program import FAMILIES, Program, has_learned, is_worse, train
from tests.faults_second import PROGRAMS
from tests.faults_unseen import PROGRAMS as UNSEEN

FAULTY = [program for program in PROGRAMS.values() if program.fault is not None]
HEALTHY = [program for program in PROGRAMS.values() if program.fault is None]


def test_there_are_enough_of_both_kinds_and_of_every_family() -> None:
    assert len(FAULTY) >= 50
    assert len(HEALTHY) >= 60
    assert {program.fault for program in FAULTY} == set(FAMILIES)


def test_no_program_shares_its_name_with_one_of_the_other_sets() -> None:
    assert not set(PROGRAMS) & (set(CORPUS) | set(UNSEEN))


@pytest.mark.parametrize("program", HEALTHY, ids=str)
def test_a_healthy_program_learns(program: Program) -> None:
    assert has_learned(program, train(program.make(0), program.steps))


@pytest.mark.parametrize("program", FAULTY, ids=str)
def test_a_fault_hurts(program: Program) -> None:
    assert program.twin is not None
    run, twin = program.make(0), program.twin(0)
    losses, healed = train(run, program.steps), train(twin, program.steps)
    shown = program.static is not None and program.static(run) and not program.static(twin)
    assert shown or is_worse(program, losses, healed)


@pytest.mark.parametrize("program", [program for program in FAULTY if program.start], ids=str)
def test_before_a_late_fault_starts_the_program_is_its_twin(program: Program) -> None:
    assert program.twin is not None
    start = program.start
    assert train(program.make(0), start) == train(program.twin(0), start)
