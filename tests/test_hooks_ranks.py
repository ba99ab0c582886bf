"""Ranks that train together, as real processes on gloo; what they assert is in ranks_worker.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradscope.hooks._distributed import local_part, parameters_at_rest, unwrapped
from gradscope.hooks._ranks import Ranks, Table
from gradscope.recording import Moments, Site

Outcome = dict[str, list[str]]
"""Check -> what each rank says of it."""

ROOT = Path(__file__).parents[1]
SECONDS = 120

ON_TWO = (
    "activations_merge_to_those_of_the_global_batch",
    "a_replicas_row_stays_as_its_one_contributor_has_it_to_the_bit",
    "counts_beyond_float64_stay_exact",
    "ranks_that_saw_different_sites_merge_to_their_union",
    "a_row_without_entries_that_nobody_contributes_drops_out",
    "more_lists_of_sites_than_are_remembered_still_merge",
    "a_merge_of_megabytes_does_not_block",
    "ranks_at_different_steps_are_lost_and_say_which",
    "a_late_rank_is_lost_after_the_timeout",
    "a_rank_that_never_comes_is_told_at_the_first_merge",
    "ranks_may_meet_again_and_again",
    "wrappers_are_looked_through",
    "who_trains_together_is_found_by_the_model",
    "a_gathered_parameter_is_read_where_it_lies",
    "the_model_inside_a_ddp_learns_of_it_in_its_forward",
    "merged_gradients_of_activations_are_those_of_the_global_mean",
    "a_callback_queued_by_a_callback_reads_averaged_gradients",
    "training_that_has_ended_does_not_end_the_merge",
)
ON_FOUR = (
    "every_entry_of_a_sharded_parameter_is_contributed_once",
    "replicas_of_a_parameter_are_contributed_once",
    "a_model_split_by_rows_and_columns_of_a_mesh_is_contributed_once",
    "each_rank_finds_the_same_ranks_of_a_split_and_replicated_model",
    "two_models_on_two_pairs_of_ranks_do_not_wait_for_each_other",
    "partial_sums_are_no_values_and_unfinished_results_are_waited_for",
    "a_rank_that_dies_is_named_at_once",
)


def run_on(size: int, checks: tuple[str, ...], place: Path) -> Outcome:
    """Run the checks, one after the other, on so many processes; importing torch costs each two seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    workers: list[subprocess.Popen[bytes]] = []
    results = [place / f"{rank}.json" for rank in range(size)]
    command = [sys.executable, "-m", "tests.ranks_worker"]
    with ExitStack() as stack:
        for rank, result in enumerate(results):
            arguments = [str(rank), str(size), str(place / "meeting"), str(result), *checks]
            errors = stack.enter_context((place / f"{rank}.err").open("w"))
            worker = subprocess.Popen(
                command + arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors
            )
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            workers.append(worker)
        for worker in workers:
            worker.wait(SECONDS)
    said = [json.loads(r.read_text(encoding="utf-8")) if r.exists() else {} for r in results]
    last = [(place / f"{rank}.err").read_text()[-2000:] for rank in range(size)]
    return {c: [s.get(c, f"never began; stderr: {e}") for s, e in zip(said, last, strict=True)] for c in checks}


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run_on(2, ON_TWO, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def on_four(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run_on(4, ON_FOUR, tmp_path_factory.mktemp("four"))


def assert_all_ok(said: list[str]) -> None:
    assert said == ["ok"] * len(said), "\n".join(f"rank {i}: {s}" for i, s in enumerate(said))


@pytest.mark.parametrize("check", ON_TWO)
def test_on_two_ranks(check: str, on_two: Outcome) -> None:
    assert_all_ok(on_two[check])


@pytest.mark.parametrize("check", ON_FOUR)
def test_on_four_ranks(check: str, on_four: Outcome) -> None:
    said = on_four[check]
    if check == "a_rank_that_dies_is_named_at_once":
        assert said.pop() == "did not end"
    assert_all_ok(said)


# Without a second process


def test_a_model_on_one_rank_has_no_ranks() -> None:
    assert Ranks.of(nn.Linear(2, 2)) is None


def test_a_plain_model_is_its_own_inside() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert unwrapped(model) is model


def test_parameters_at_rest_of_a_plain_model_are_its_named_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    assert [(n, id(p)) for n, _, p in parameters_at_rest(model)] == [(n, id(p)) for n, p in model.named_parameters()]


def test_a_compiled_model_has_its_own_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    compiled = torch.compile(model, backend="eager")
    assert compiled is not model
    assert unwrapped(compiled) is model


@pytest.mark.parametrize("at", ["model", "model.0"])
def test_data_parallel_is_refused_with_a_better_one(at: str) -> None:
    wrapped: nn.Module = nn.DataParallel(nn.Linear(2, 2))
    model = wrapped if at == "model" else nn.Sequential(wrapped)
    with pytest.raises(ValueError, match=rf"^{at} is a DataParallel.*DistributedDataParallel"):
        unwrapped(model)


def test_a_plain_tensor_is_its_own_local_part() -> None:
    x = torch.ones(3)
    assert local_part(x) == (x, True)


def test_a_table_of_unequal_columns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one row a site, got lengths \{'sites': 1, 'moments': 2, 'own': 1\}"):
        Table((Site("weight", "w", "m", "Linear"),), Moments.empty(2), np.array([True]))
