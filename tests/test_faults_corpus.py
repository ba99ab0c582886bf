"""The corpus is what it says: healthy programs learn, faulty ones do worse than their twins or show their defect."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.faults import FAMILIES, PROGRAMS, Program, has_learned, is_worse, of_half, split, train

FAULTY = [p for p in PROGRAMS.values() if p.fault is not None]
HEALTHY = [p for p in PROGRAMS.values() if p.fault is None]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("program", HEALTHY, ids=str)
def test_a_healthy_program_learns(program: Program) -> None:
    losses = train(program.make(0), program.steps)
    assert has_learned(program, losses), losses


@pytest.mark.parametrize("program", FAULTY, ids=str)
def test_a_faulty_program_does_worse_than_its_twin_or_shows_its_defect(program: Program) -> None:
    assert program.twin is not None
    run = program.make(0)
    losses = train(run, program.steps)
    if program.static is None:
        twin = train(program.twin(0), program.steps)
        assert is_worse(program, losses, twin), (losses, twin)
    else:
        assert program.static(run)
        healthy = program.twin(0)
        train(healthy, program.steps)
        assert not program.static(healthy)


@pytest.mark.parametrize("name", ["mlp-relu-4-default", "late-labels-random"])
def test_a_program_is_the_same_each_time_it_is_made(name: str) -> None:
    program = PROGRAMS[name]
    assert train(program.make(3), program.steps) == train(program.make(3), program.steps)


@pytest.mark.parametrize("program", [p for p in FAULTY if p.start > 0], ids=str)
def test_a_late_fault_changes_nothing_before_it_starts(program: Program) -> None:
    assert program.twin is not None
    assert 0 < program.start < program.steps
    assert train(program.make(0), program.start) == train(program.twin(0), program.start)


def test_the_corpus_is_large_varied_and_of_known_families() -> None:
    assert len(FAULTY) >= 55
    assert len(HEALTHY) >= 55
    assert {family for p in FAULTY for family in p.accepted} <= set(FAMILIES)
    assert {p.fault for p in FAULTY} == set(FAMILIES)
    assert all(p.cure for p in FAULTY)


def test_the_halves_are_alike_and_do_not_overlap() -> None:
    for kind in (FAULTY, HEALTHY):
        tune = [p for p in kind if split(p) == "tune"]
        assert abs(2 * len(tune) - len(kind)) <= 1
    names = [{p.name for p in of_half(half)} for half in ("tune", "held")]
    assert not names[0] & names[1]
    assert names[0] | names[1] == set(PROGRAMS)


def test_a_place_is_found_by_site_parameter_or_module_and_by_any_call() -> None:
    program = PROGRAMS["rnn-40-saturated"]
    assert program.is_where("act#17")
    assert program.is_where("cell")
    assert not program.is_where("head")


@pytest.mark.parametrize("program", [p for p in FAULTY if p.where is not None], ids=str)
def test_the_place_of_a_fault_is_a_module_or_parameter_and_not_all_of_them(program: Program) -> None:
    run = program.make(0)
    watched = run.watched or run.model
    names = [
        "<root>",
        "<input>",
        *(name for name, _ in watched.named_modules() if name),
        *dict(watched.named_parameters()),
    ]
    assert any(map(program.is_where, names))
    assert not all(map(program.is_where, names))
