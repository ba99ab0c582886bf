"""Ranks that train together, as real processes on gloo; what they assert is in ranks_worker.py and ranks_*.py.

All checks of so many ranks run in the same processes, one after the other: to start them costs more than most checks.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradscope.hooks._distributed import local_part, parameters_at_rest, unwrapped
from gradscope.hooks._ranks import Ranks, Table
from gradscope.recording import Moments, Recording, Site
from tests.ranks_training import assert_alike

Outcome = dict[str, list[str]]
"""Check -> what each rank says of it."""

ROOT = Path(__file__).parents[1]
SECONDS = 240
"""No check waits for ever; together they take a tenth of a minute each at most."""

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
    # GradScope itself over replicas
    "ddp_is_recorded_as_one_process_however_steps_are_closed",
    "accumulated_and_clipped_gradients_are_recorded_averaged_once",
    "ranks_agree_on_the_steps_that_a_budget_allows",
    "a_layer_that_is_never_used_is_recorded_as_in_one_process",
    "ranks_that_use_different_experts_record_all_of_them",
    "training_in_ddp_is_not_disturbed",
    "sites_that_were_chosen_histograms_and_functions_merge_too",
    "a_step_that_the_scaler_skips_is_skipped_on_all_ranks",
    # over parts
    "fully_sharded_training_is_recorded_as_one_process",
    "fully_sharded_training_is_not_disturbed",
    "a_sharded_model_that_recomputes_is_recorded_as_in_one_process",
    "in_mixed_precision_sharded_signals_agree_within_its_rounding",
    "updates_that_no_optimizer_of_torch_makes_are_recorded_sharded",
    "a_split_model_is_recorded_as_one_process",
    "a_gradient_that_no_rank_has_whole_is_said_to_be_unobserved",
    # and in trouble
    "a_late_rank_costs_no_step_and_the_files_join",
    "ranks_that_no_longer_merge_keep_to_the_budget_by_themselves",
    "a_rank_that_never_joined_costs_no_step_and_the_files_join",
    "a_rank_that_fails_says_so_before_long",
    "a_pass_that_one_rank_makes_by_itself_keeps_nobody_waiting",
    "a_nan_on_one_rank_is_known_to_all",
    "looking_on_one_rank_does_not_wait_for_the_others",
    "a_scope_made_too_early_says_once_what_to_do",
    "a_model_that_is_not_distributed_is_not_merged",
    "who_asks_for_no_merge_has_a_rank_by_itself_and_no_warning",
    # the last of these processes
    "training_that_has_ended_does_not_end_the_merge",
)
ON_FOUR = (
    "every_entry_of_a_sharded_parameter_is_contributed_once",
    "replicas_of_a_parameter_are_contributed_once",
    "a_model_split_by_rows_and_columns_of_a_mesh_is_contributed_once",
    "each_rank_finds_the_same_ranks_of_a_split_and_replicated_model",
    "two_models_on_two_pairs_of_ranks_do_not_wait_for_each_other",
    "partial_sums_are_no_values_and_unfinished_results_are_waited_for",
    "parts_that_have_replicas_are_recorded_as_one_process",
    "a_model_split_and_sharded_is_recorded_as_one_process",
    "ranks_that_use_different_experts_record_all_of_them",
    "a_late_rank_costs_no_step_and_the_files_join",
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


def outcome_on(size: int, checks: tuple[str, ...], temporary: pytest.TempPathFactory) -> Outcome:
    """Where several workers share these tests, the first runs the checks for all."""
    shared = temporary.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    mine, outcome = shared / f"ranks-{size}", shared / f"ranks-{size}.json"
    try:
        mine.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 2 * SECONDS
        while not outcome.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    else:
        (mine / "outcome").write_text(json.dumps(run_on(size, checks, mine)), encoding="utf-8")
        (mine / "outcome").rename(outcome)
    return json.loads(outcome.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome_on(2, ON_TWO, tmp_path_factory)


@pytest.fixture(scope="module")
def on_four(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome_on(4, ON_FOUR, tmp_path_factory)


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


# As a user starts them

SCRIPT = """
import os, sys
import torch
import torch.distributed as dist
from gradscope import GradScope

rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
if size > 1:
    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
scope = GradScope(model, optimizer, log=sys.argv[1])
for step in range(3):
    optimizer.zero_grad()
    model(torch.randn(8, 4).chunk(size)[rank]).square().mean().backward()
    optimizer.step()
if size > 1:
    dist.destroy_process_group()
"""


def test_torchrun_of_a_script_that_closes_nothing_records_all_ranks_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, alone, together = tmp_path / "train.py", tmp_path / "alone.gscope", tmp_path / "together.gscope"
    script.write_text(SCRIPT, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, together],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "GradScope" not in ran.stderr  # no warning of ours
    monkeypatch.setattr(sys, "argv", ["train.py", str(alone)])
    runpy.run_path(str(script))["scope"].close()
    assert set(tmp_path.glob("*.gscope*")) == {alone, together}
    got, expected = Recording.load(together), Recording.load(alone)
    assert got.complete
    assert got.notes("ranks_merged").tolist() == [2, 2, 2]
    assert_alike(got, expected)


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
