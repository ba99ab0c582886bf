"""The unseen programs are what they say: healthy ones learn, faulty ones do worse than twins or show their defect."""

from __future__ import annotations

import math

import pytest

from tests.faults import FAMILIES, Program, has_learned, is_worse, train
from tests.faults import PROGRAMS as SEEN
from tests.faults._program import first, last
from tests.faults_unseen import PROGRAMS
from tests.test_faults_corpus import one_thread  # noqa: F401  (a fixture of every test)

FAULTY = [p for p in PROGRAMS.values() if p.fault is not None]
HEALTHY = [p for p in PROGRAMS.values() if p.fault is None]
LATE = [p for p in FAULTY if p.start > 0]
PLACED = [p for p in FAULTY if p.where is not None]


@pytest.mark.parametrize("program", HEALTHY, ids=str)
def test_a_healthy_unseen_program_learns(program: Program) -> None:
    losses = train(program.make(0), program.steps)
    assert has_learned(program, losses), losses


@pytest.mark.filterwarnings("ignore:std")  # of torch, about the spread of one number
@pytest.mark.parametrize("program", FAULTY, ids=str)
def test_a_faulty_unseen_program_does_worse_than_its_twin_or_shows_its_defect(program: Program) -> None:
    assert program.twin is not None
    run, healthy = program.make(0), program.twin(0)
    losses, twin = train(run, program.steps), train(healthy, program.steps)
    assert all(map(math.isfinite, twin)), twin
    assert last(twin) < first(twin), twin  # else a fault of both could pass as the difference between them
    if program.static is None:
        assert is_worse(program, losses, twin), (losses, twin)
    else:
        assert program.static(run)
        assert not program.static(healthy)


@pytest.mark.parametrize("program", LATE, ids=str)
def test_a_late_unseen_fault_changes_nothing_before_it_starts(program: Program) -> None:
    assert program.twin is not None
    assert 0 < program.start < program.steps
    assert train(program.make(0), program.start) == train(program.twin(0), program.start)


def test_the_unseen_programs_are_many_of_known_families_and_none_of_the_corpus() -> None:
    assert len(HEALTHY) >= 50
    assert len(FAULTY) >= 40
    assert {family for p in FAULTY for family in p.accepted} <= set(FAMILIES)
    assert all(p.cure for p in FAULTY)
    assert not set(PROGRAMS) & set(SEEN)


@pytest.mark.parametrize("name", ["unet-bce", "hf-vit-digits", "stochastic-depth-mish", "gumbel-softmax-codes"])
def test_an_unseen_program_is_the_same_each_time_it_is_made(name: str) -> None:
    assert train(PROGRAMS[name].make(3), 5) == train(PROGRAMS[name].make(3), 5)


@pytest.mark.parametrize("program", PLACED, ids=str)
def test_the_place_of_an_unseen_fault_is_somewhere_and_not_everywhere(program: Program) -> None:
    model = program.make(0).model
    modules = [name or "<root>" for name, _ in model.named_modules()]
    names = [*modules, "<input>", *dict(model.named_parameters())]
    assert any(map(program.is_where, names))
    assert not all(map(program.is_where, names))
