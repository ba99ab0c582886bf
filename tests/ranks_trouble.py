"""Checks of GradScope over ranks that are late, spoiled, by themselves, or wrapped in the wrong order."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradscope import GradScope
from gradscope.hooks import _ranks
from gradscope.hooks._ranks import Ranks
from gradscope.recording import Recording
from gradscope.recording._merge import merge_recordings
from tests.ranks_checks import check
from tests.ranks_training import (
    MAKES,
    PARAMETERS,
    RTOL,
    WAYS,
    Training,
    assert_alike,
    assert_everywhere_the_same,
    assert_noted_alike,
    mesh_of,
    net,
    on_a_clock,
    recorded,
    sharded,
    warned,
    watched,
    whole_batch,
)

PATIENCE = 0.3
"""Seconds that a rank waits for the others here."""
LATE = 1.2


@contextmanager
def impatient() -> Iterator[None]:
    """A scope made inside does not wait long for the other ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks.of, "__defaults__", ("auto", PATIENCE))
        yield


@contextmanager
def shared_directory() -> Iterator[Path]:
    """The same on all ranks; there until the last has left it."""
    with tempfile.TemporaryDirectory() as mine:
        names = [mine]
        dist.broadcast_object_list(names)
        yield Path(names[0])
        dist.barrier()


def is_last() -> bool:
    return dist.get_rank() == dist.get_world_size() - 1


def assert_joined(place: Path, expected: Recording) -> None:
    """What the ranks wrote one by one is, merged, the recording of the single process."""
    dist.barrier()
    if dist.get_rank() == 0:
        size = dist.get_world_size()
        files = sorted(place.glob("run*.gscope"))
        assert [f.name for f in files] == ["run.gscope", *(f"run.rank{r}.gscope" for r in range(1, size))]
        whole = merge_recordings(files, place / "whole.gscope")
        assert whole.notes("ranks_merged").tolist() == [size] * len(expected.steps)
        assert_alike(whole, expected)
        # Of the whole gradient, or none: a rank that is alone with its parts does not know it.
        norm, known = expected.notes("grad_norm"), whole.notes("grad_norm")
        np.testing.assert_allclose(known[~np.isnan(known)], norm[~np.isnan(known)], rtol=RTOL)


def late_at(
    step: int, made_by: Callable[..., torch.optim.Optimizer] = Training.optimizer
) -> Callable[..., torch.optim.Optimizer]:
    """The last rank comes late to one of its optimizer's steps."""

    def make(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer, steps = made_by(parameters), count()
        optimizer.register_step_pre_hook(lambda *_: time.sleep(LATE) if next(steps) == step and is_last() else None)
        return optimizer

    return make


@check
def a_late_rank_costs_no_step_and_the_files_join(rank: int, size: int) -> None:
    makes = MAKES if size == 2 else MAKES | {"parts": lambda: sharded(mesh_of(2, size // 2))}  # parts with replicas
    for name, make in makes.items():
        how = Training(steps=4, optimizer=late_at(2))
        with shared_directory() as place:
            with impatient(), warned() as said:
                scope = watched(make(), replace(how, scope={"log": place / "run.gscope"}).of(rank, size))
            (sentence,) = said
            assert sentence.startswith("GradScope no longer merges over ranks: rank "), sentence
            assert f"run{'' if rank == 0 else f'.rank{rank}'}.gscope; `gradscope-report merge`" in sentence
            assert scope.unobserved == {}
            assert scope.recording.facts["sharded"] == (name == "parts")
            assert_joined(place, recorded(net(), Training(steps=4)))


@check
def ranks_that_no_longer_merge_keep_to_the_budget_by_themselves(rank: int, size: int) -> None:
    model = DistributedDataParallel(net())
    with on_a_clock(model.module[0], cost=0.002 * (rank + 1)) as optimizer, impatient(), warned() as said:
        how = Training(steps=160, optimizer=late_at(31, optimizer), scope={"every": "auto", "budget": 0.02})
        recording = watched(model, how.of(rank, size)).recording
    assert len(said) == 1
    assert recording.steps.tolist() == [*range(20), *range(30, 160, 10 * (rank + 1))]


@check
def a_rank_that_never_joined_costs_no_step_and_the_files_join(rank: int, size: int) -> None:
    model = MAKES["parts"]()
    with shared_directory() as place:
        dist.barrier()
        if is_last():
            time.sleep(LATE)  # the others have looked for it, and left, by now
        with impatient(), warned() as said:
            watched(model, Training(scope={"log": place / "run.gscope"}).of(rank, size))
        (sentence,) = said
        assert f"did not meet within {PATIENCE} s" in sentence
        assert_joined(place, recorded(net(), Training()))


@check
def a_rank_that_fails_says_so_before_long(rank: int, size: int) -> None:
    """The others are still at work, and will not come to merge."""
    model, how = MAKES["replicas"](), Training().of(rank, size)
    optimizer, began = how.optimizer(model.parameters()), 0.0
    with warned() as said, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ranks, "_HURRY", PATIENCE)
        try:
            with GradScope(model, optimizer) as scope:
                for step in range(2):
                    model(how.batch(step)).square().mean().backward()
                    optimizer.step()
                if is_last():
                    began = time.monotonic()
                    raise ArithmeticError
                dist.barrier()
        except ArithmeticError:
            assert time.monotonic() - began < 10  # and not the minute for which it would else wait
            dist.barrier()
    assert len(said) == 1
    assert scope.recording.steps.tolist() == [0, 1]


@check
def a_pass_that_one_rank_makes_by_itself_keeps_nobody_waiting(rank: int, size: int) -> None:
    """Such as an evaluation that forgot `no_grad()`: the others go on to the next collective operation."""
    for close in WAYS:
        model, how = MAKES["replicas"](), Training(close).of(rank, size)
        optimizer = how.optimizer(model.parameters())
        with warned() as said:
            scope = GradScope(model, optimizer if close == "optimizer" else None)
            for step in range(3):
                optimizer.zero_grad()
                model(how.batch(step)).square().mean().backward()
                optimizer.step()
                if close == "step":
                    scope.step()
                if rank == 0:
                    model.module(whole_batch(9)[:1])  # type: ignore[operator]
            scope.close()
        assert said == []
        expected = recorded(net(), Training(close))
        assert_alike(scope.recording, expected)
        assert_noted_alike(scope.recording, expected)


def nan_in_the_last_part(number: int, x: torch.Tensor) -> torch.Tensor:
    if number == 2:
        x[-1, 0] = torch.nan
    return x


@check
def a_nan_on_one_rank_is_known_to_all(rank: int, size: int) -> None:
    """Averaging has spread it to all gradients: they are not where it came from."""
    for make in MAKES.values():
        for every in (1, 4):  # at 4 the step of the NaN is not due, nor are those before it
            with shared_directory() as place:
                scope = {"on_nonfinite": "warn", "every": every, "log": place / "run.gscope"}
                with warned() as said:
                    seen = watched(make(), Training(steps=4, scope=scope, spoil=nan_in_the_last_part).of(rank, size))
                first, recording = seen.first_nonfinite, seen.recording
                assert first is not None
                assert said == [first.sentence]
                assert (first.step, first.signal, first.site, first.nans) == (2, "activation", "<input>", 1)
                at_home = ("<input>", whole_batch(2).numel() // size)
                assert (first.source, first.entries) == (at_home if is_last() else ("<rank>", whole_batch(2).numel()))
                assert recording.facts["first_nonfinite"]["sentence"] == first.sentence
                assert recording.notes_at(2)["nonfinite"] == first.sentence
                assert recording.steps.tolist() == ([0, 1, 2, 3] if every == 1 else [0, 1, 2])
                assert_everywhere_the_same(recording)
                dist.barrier()
                assert [f.name for f in place.glob("*")] == ["run.gscope"]


@check
def looking_on_one_rank_does_not_wait_for_the_others(rank: int, size: int) -> None:
    for make in MAKES.values():
        model, how = make(), Training().of(rank, size)
        optimizer = how.optimizer(model.parameters())
        with warned() as said, GradScope(model, optimizer) as scope:
            for step in range(3):
                optimizer.zero_grad()
                scope(how.batch(step)).square().mean().backward()
                optimizer.step()
                if rank == 0:
                    assert scope.recording.steps.tolist() == list(range(step))
                    assert f"{step} steps" in repr(scope)
                    assert str(scope)
                    assert scope.first_nonfinite is None
        assert said == []
        assert_alike(scope.recording, recorded(net(), Training()))
        assert_everywhere_the_same(scope.recording)


@check
def a_scope_made_too_early_says_once_what_to_do(rank: int, size: int) -> None:
    for wrap, sentence, why in (
        (
            DistributedDataParallel,
            "GradScope records this rank alone, and gradients before they are averaged: "
            "give it the DistributedDataParallel, not the model inside",
            "trained in a DistributedDataParallel of which the scope does not know",
        ),
        (
            lambda model: sharded(mesh_of(size), model),
            "GradScope records this rank alone, and its parts of the parameters: "
            "give it the model after fully_shard or parallelize_module",
            "in parts on several ranks, of which the scope does not know",
        ),
    ):
        model = net()
        with warned() as said, GradScope(model) as scope:
            wrapped = wrap(model)
            for step in range(3):
                wrapped(Training().of(rank, size).batch(step)).square().mean().backward()
                scope.step()
        assert said == [sentence]
        assert scope.unobserved == {"<root>": why}
        assert scope.recording.steps.tolist() == [0, 1, 2]
        assert "ranks" not in scope.recording.facts


@check
def a_model_that_is_not_distributed_is_not_merged(rank: int, size: int) -> None:
    """Each rank trains one of its own, as often as it likes."""
    got = recorded(net(), Training(steps=1 + rank))
    assert got.steps.tolist() == list(range(1 + rank))
    assert "ranks" not in got.facts
    assert "ranks_merged" not in got.note_names


@check
def who_asks_for_no_merge_has_a_rank_by_itself_and_no_warning(rank: int, size: int) -> None:
    for close in ("optimizer", "step"):
        how = Training(close, scope={"process_group": None}).of(rank, size)
        whole, parts = recorded(MAKES["replicas"](), how), recorded(MAKES["parts"](), how)
        for recording in (whole, parts):
            assert "ranks_merged" not in recording.note_names
            assert recording.values("activation", "count")[0, 0] == whole_batch(0).numel() / size
        expected = recorded(net(), Training(close))
        assert_alike(whole, expected, PARAMETERS)  # what backward leaves on the parameters is averaged
        assert whole.notes("grad_norm") == pytest.approx(expected.notes("grad_norm"), rel=RTOL)
        assert parts.values("weight", "count").sum() < expected.values("weight", "count").sum()
        assert "grad_norm" not in parts.note_names  # it would be that of a part
