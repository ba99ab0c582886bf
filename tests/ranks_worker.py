"""One rank of the tests in test_hooks_ranks.py: runs checks by name, together with its peers.

`python -m tests.ranks_worker RANK SIZE MEETING RESULT CHECK …` meets the other ranks by the file MEETING, runs each
check and writes to RESULT what each raised, or "ok". A check asserts on every rank; what it says is its test's name.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from gradscope.hooks._distributed import local_part, parameters_at_rest, unwrapped
from gradscope.hooks._ranks import RankLost, Ranks, Table
from gradscope.recording import Moments, Signal, Site
from gradscope.recording._moments import COLUMNS
from tests import ranks_replicas, ranks_sharded, ranks_trouble  # noqa: F401  (they register their checks)
from tests.ranks_checks import CHECKS, check

# What the checks are made of


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 6), nn.Tanh()), nn.Linear(6, 1))


def batch(rank: int) -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(rank))


def values(rank: int, name: str, size: int = 50) -> np.ndarray:
    """What a rank sees at a site, of a scale of its own."""
    seed = [rank, *name.encode()]
    return np.random.default_rng(seed).normal(loc=rank, scale=10.0 ** (3 * rank), size=size)


def table(
    rank: int, names: list[str], own: Any = True, signal: Signal = "activation", depth: int = 1, **extra: Any
) -> Table:
    sites = tuple(Site(signal, name, name, "Linear", depth=depth + i, shape=(50,)) for i, name in enumerate(names))
    moments = Moments.concat([Moments.from_array(values(rank, name)) for name in names])
    return Table(sites, moments, np.broadcast_to(own, len(names)).copy(), **extra)


def assert_close(got: Moments, of: list[np.ndarray]) -> None:
    """Counts and extremes exact; mean and std within a few float64 roundings of the largest entry."""
    expected = Moments.concat([Moments.from_array(x) for x in of])
    for name in ("count", "zeros", "nans", "infs", "min", "max"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    # A merge rounds a few times, each relative to the extremes of what it merges.
    bound = 16 * np.finfo(np.float64).eps * np.fmax(abs(expected.min), abs(expected.max))
    assert (abs(got.mean - expected.mean) <= bound).all()
    assert (abs(got.std - expected.std) <= bound).all()


def assert_bits(got: Moments, expected: Moments) -> None:
    for name in COLUMNS:
        assert getattr(got, name).tobytes() == getattr(expected, name).tobytes(), name


def assert_same_everywhere(merged: dict[Signal, Table]) -> None:
    """To the bit, on all ranks: sites, order, columns."""
    mine = [
        (s, t.sites, [getattr(t.moments, c).tobytes() for c in COLUMNS], t.own.tobytes(), _bytes(t.histograms))
        for s, t in merged.items()
    ]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    assert all(other == mine for other in everyone)


def _bytes(array: np.ndarray | None) -> bytes:
    return b"" if array is None else array.tobytes()


def world(timeout: float = 10.0) -> Ranks:
    ranks = Ranks.of(net(), dist.group.WORLD, timeout)
    assert ranks is not None
    return ranks


def lost(call: Callable[[], Any]) -> str:
    with pytest.raises(RankLost) as caught:
        call()
    return str(caught.value)


# Two ranks


@check
def activations_merge_to_those_of_the_global_batch(rank: int, size: int) -> None:
    ranks = world()
    merged = ranks.merge(3, {"activation": table(rank, ["a", "b"])})["activation"]
    assert [site.name for site in merged.sites] == ["a", "b"]
    assert merged.own.all()
    assert_close(merged.moments, [np.concatenate([values(r, n) for r in range(size)]) for n in "ab"])
    assert_same_everywhere({"activation": merged})
    ranks.close()


@check
def a_replicas_row_stays_as_its_one_contributor_has_it_to_the_bit(rank: int, size: int) -> None:
    odd = Moments.concat([Moments.from_array(x) for x in ([-0.0, -0.0], [5e-324], [np.nan, 1e308, -1e308], [])])
    odd.mean[0] = -0.0
    sites = tuple(Site("weight", f"w{i}", "m", "Linear", depth=i) for i in range(4))
    moments = odd if rank == 0 else Moments.concat([Moments.from_array([7.0])] * 4)
    ranks = world()
    merged = ranks.merge(0, {"weight": Table(sites, moments, np.full(4, rank == 0))})
    assert_bits(merged["weight"].moments, odd)
    assert_same_everywhere(merged)
    ranks.close()


@check
def counts_beyond_float64_stay_exact(rank: int, size: int) -> None:
    count = 2**60 + 1 + rank
    one = Moments.from_array([1.0, 2.0])
    moments = Moments(**{c: getattr(one, c) for c in COLUMNS} | {"count": [count], "zeros": [2**53 + 1]})
    histograms = np.full((1, 64), 2**54 + 1)
    ranks = world()
    site = (Site("activation", "a", "a", "Linear"),)
    merged = ranks.merge(0, {"activation": Table(site, moments, np.array([True]), histograms)})["activation"]
    assert merged.moments.count.tolist() == [sum(2**60 + 1 + r for r in range(size))]
    assert merged.moments.zeros.tolist() == [size * (2**53 + 1)]
    assert merged.histograms is not None
    assert (merged.histograms == size * (2**54 + 1)).all()
    ranks.close()


@check
def ranks_that_saw_different_sites_merge_to_their_union(rank: int, size: int) -> None:
    """As experts of a mixture do; a histogram that one rank did not count is none; order is by depth."""
    ranks = world()
    counts = np.ones((2, 64), dtype=np.int64)
    for step in range(3):
        expert = f"expert{(rank + step) % size}"
        tables: dict[Signal, Table] = {
            "activation": table(rank, ["gate", expert], depth=5 - 4 * rank),
            "weight": table(rank, [f"w{rank}", "w"], own=[True, rank == 1], signal="weight", histograms=counts),
        }
        if rank == 1:
            tables["update"] = table(rank, ["u"], signal="update")
            tables["weight_grad"] = table(rank, ["g"], own=False, signal="weight_grad")
        merged = ranks.merge(step, tables)
        assert list(merged) == ["activation", "weight", "update", "weight_grad"]
        activation, weight = merged["activation"], merged["weight"]
        # Rank 0's sites count where both have one: its gate has depth 5, rank 1's other expert 2.
        assert [s.name for s in activation.sites] == [f"expert{(1 + step) % size}", "gate", f"expert{step % size}"]
        assert [s.depth for s in activation.sites] == [2, 5, 6]
        assert_close(
            activation.moments,
            [
                values(1, activation.sites[0].name),
                np.concatenate([values(0, "gate"), values(1, "gate")]),
                values(0, activation.sites[2].name),
            ],
        )
        assert [s.name for s in weight.sites] == ["w0", "w1", "w"]
        assert_bits(weight.moments.take([2]), Moments.from_array(values(1, "w")))
        assert weight.histograms is not None
        assert (weight.histograms == 1).all()
        assert_bits(merged["update"].moments, Moments.from_array(values(1, "u")))
        assert_bits(merged["weight_grad"].moments, Moments.from_array(values(1, "g")))  # nobody's, hence its holder's
        assert_same_everywhere(merged)
    ranks.close()


@check
def a_row_without_entries_that_nobody_contributes_drops_out(rank: int, size: int) -> None:
    sites = tuple(Site("update", n, "m", "Linear") for n in "ab")
    ranks = world()
    merged = ranks.merge(0, {"update": Table(sites, Moments.empty(2), np.array([False, rank == 1]))})
    assert [site.name for site in merged["update"].sites] == ["b"]
    assert ranks.merge(1, {"update": Table(sites[:1], Moments.empty(1), np.array([False]))}) == {}
    assert ranks.merge(2, {}) == {}
    ranks.close()


@check
def more_lists_of_sites_than_are_remembered_still_merge(rank: int, size: int) -> None:
    ranks = world()
    for step in list(range(70)) * 2:
        merged = ranks.merge(step, {"activation": table(rank, [f"a{step}", f"r{rank}"])})["activation"]
        assert [site.name for site in merged.sites] == [f"a{step}", "r0", "r1"]
        assert merged.moments.count.tolist() == [100, 50, 50]
    ranks.close()


@check
def a_merge_of_megabytes_does_not_block(rank: int, size: int) -> None:
    """All send before they receive: more than a socket's buffers hold."""
    rows = 6000
    sites = tuple(Site("activation", f"layers.{i}", "m", "Linear") for i in range(rows))
    counts = np.arange(rows * 64).reshape(rows, 64)
    ranks = world()
    for step in range(2):
        given = Table(sites, Moments.concat([Moments.from_array([float(rank)])] * rows), np.ones(rows, bool), counts)
        merged = ranks.merge(step, {"activation": given})["activation"]
        assert (merged.moments.mean == (size - 1) / 2).all()
        np.testing.assert_array_equal(merged.histograms, size * counts)
    ranks.close()


@check
def ranks_at_different_steps_are_lost_and_say_which(rank: int, size: int) -> None:
    ranks = world()
    ranks.merge(0, {"activation": table(rank, ["a"])})
    sentence = lost(lambda: ranks.merge(1 + rank, {"activation": table(rank, ["a"])}))
    other = 1 - rank
    assert sentence == f"rank {other} is at step {1 + other} where rank {rank} is at step {1 + rank}"
    assert ranks.lost == sentence
    began = time.monotonic()
    assert lost(lambda: ranks.merge(9, {})) == sentence
    assert time.monotonic() - began < 0.5


@check
def a_late_rank_is_lost_after_the_timeout(rank: int, size: int) -> None:
    ranks = world(timeout=1.0)
    began = time.monotonic()
    if rank == 1:
        time.sleep(2.5)
    sentence = lost(lambda: ranks.merge(0, {"activation": table(rank, ["a"])}))
    took = time.monotonic() - began
    if rank == 0:
        assert sentence == "rank 1 did not answer within 1 s"
        assert 0.9 < took < 5.0
    else:
        assert sentence.startswith("rank 0 is gone")


@check
def a_rank_that_never_comes_is_told_at_the_first_merge(rank: int, size: int) -> None:
    if rank == 0:
        began = time.monotonic()
        ranks = world(timeout=1.0)
        assert time.monotonic() - began < 8.0
        assert ranks.rank == 0
        assert ranks.size == 2
        assert lost(lambda: ranks.merge(0, {})).startswith("ranks 0, 1 did not meet within 1 s")
    dist.barrier()
    from gradscope.hooks import _exchange

    _exchange._made.clear()  # only this test has one rank meet alone
    _exchange._made[0, 1] = 1000


@check
def ranks_may_meet_again_and_again(rank: int, size: int) -> None:
    for step in range(4):
        ranks = world()
        merged = ranks.merge(step, {"activation": table(rank, ["a"])})
        assert merged["activation"].moments.count.tolist() == [50 * size]
        ranks.close()
        ranks.close()
    assert "left" in lost(lambda: ranks.merge(9, {}))


@check
def wrappers_are_looked_through(rank: int, size: int) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = net()
    wrapped = DistributedDataParallel(model)
    assert unwrapped(wrapped) is model
    assert unwrapped(DistributedDataParallel(wrapped)) is model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own: FSDP1 is deprecated
        flat = nn.Sequential(FullyShardedDataParallel(net(), device_id=torch.device("cpu")))
    with pytest.raises(ValueError, match=r"^model\.0 is a FullyShardedDataParallel \(FSDP1\).*fully_shard"):
        unwrapped(flat)


@check
def who_trains_together_is_found_by_the_model(rank: int, size: int) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    assert Ranks.of(net()) is None
    assert Ranks.of(net(), None) is None
    alone = [dist.new_group([r]) for r in range(size)][rank]
    assert Ranks.of(DistributedDataParallel(net(), process_group=alone)) is None
    mesh = init_device_mesh("cpu", (size,))
    halved = fully_shard(net(), mesh=mesh)
    halved.set_gradient_divide_factor(1.0)
    found = {
        "ddp": Ranks.of(DistributedDataParallel(net())),
        "fsdp": Ranks.of(fully_shard(net(), mesh=mesh)),
        "fsdp, summed": Ranks.of(halved),
        "tensor": Ranks.of(parallelize_module(net(), mesh, {"0": ColwiseParallel()})),
        "by hand": Ranks.of(net(), dist.group.WORLD),
    }
    facts = {name: (r.rank, r.size, r.averaged_over, r.sharded) for name, r in found.items() if r is not None}
    assert facts == {
        "ddp": (rank, size, size, False),
        "fsdp": (rank, size, size, True),
        "fsdp, summed": (rank, size, 1, True),
        "tensor": (rank, size, 1, True),
        "by hand": (rank, size, size, False),
    }
    with pytest.raises(TypeError, match="process_group is of type str"):
        Ranks.of(net(), "world")


@check
def a_gathered_parameter_is_read_where_it_lies(rank: int, size: int) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    twice = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(twice, twice), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    fully_shard(model[1], reshard_after_forward=False, mesh=init_device_mesh("cpu", (size,)))
    fully_shard(model, reshard_after_forward=False, mesh=init_device_mesh("cpu", (size,)))
    at_rest, gathered, within = list(parameters_at_rest(model)), [], []
    assert [(n, id(p)) for n, _, p in at_rest] == [(n, id(p)) for n, p in model.named_parameters()]
    assert all(getattr(owner, name.rpartition(".")[2]) is p for name, owner, p in at_rest)
    model.register_forward_hook(lambda *_: gathered.extend(model.parameters()))
    model.register_forward_hook(lambda *_: within.extend(parameters_at_rest(model)))
    for trains in (True, False):
        with torch.set_grad_enabled(trains):
            loss = model(batch(rank)).sum()
        assert not any(isinstance(p, DTensor) for p in gathered)
        assert [(n, id(p)) for n, _, p in within] == [(n, id(p)) for n, _, p in at_rest]
        assert [(n, id(p)) for n, _, p in parameters_at_rest(model)] == [(n, id(p)) for n, _, p in at_rest]
        if trains:
            loss.backward()
            gathered.clear()
            within.clear()


@check
def the_model_inside_a_ddp_learns_of_it_in_its_forward(rank: int, size: int) -> None:
    model, found = net(), []
    hook = model.register_forward_pre_hook(lambda *_: found.append(Ranks.of(model)))
    assert Ranks.of(model) is None
    DistributedDataParallel(model)(batch(rank))
    hook.remove()
    assert found[0] is not None
    assert found[0].size == size
    assert Ranks.of(model) is None


@check
def merged_gradients_of_activations_are_those_of_the_global_mean(rank: int, size: int) -> None:
    ddp = DistributedDataParallel(net())
    ranks = Ranks.of(ddp)
    assert ranks is not None
    local, whole = _gradient_of_first(ddp.module, ddp, batch(rank)), net()
    expected = _gradient_of_first(whole, whole, torch.cat([batch(r) for r in range(size)])).double().numpy()
    seen = Moments.from_array(local.double().numpy() / ranks.averaged_over)
    site = (Site("activation_grad", "0", "0", "Linear"),)
    merged = ranks.merge(0, {"activation_grad": Table(site, seen, np.array([True]))})["activation_grad"].moments
    # Both are float32 sums of the same few terms, in another order.
    assert merged.count[0] == expected.size
    np.testing.assert_allclose([merged.mean[0], merged.std[0]], [expected.mean(), expected.std()], rtol=1e-5)


def _gradient_of_first(model: nn.Module, called: nn.Module, x: torch.Tensor) -> torch.Tensor:
    seen = []
    first = model.get_submodule("0")
    handle = first.register_forward_hook(lambda m, a, y: (y.register_hook(seen.append), None)[1])
    called(x).square().mean().backward()
    handle.remove()
    return seen[0]  # type: ignore[no-any-return]


@check
def a_callback_queued_by_a_callback_reads_averaged_gradients(rank: int, size: int) -> None:
    """Which is when the scope reads them: a post-accumulate hook comes before DDP has averaged."""
    queue = torch.autograd.Variable._execution_engine.queue_callback
    for options in (
        {},
        {"static_graph": True},
        {"gradient_as_bucket_view": True},
        {"find_unused_parameters": True},
        {"static_graph": True, "gradient_as_bucket_view": True},
    ):
        ddp, seen = DistributedDataParallel(net(), **options), []
        single = net()
        single(torch.cat([batch(r) for r in range(size)])).square().mean().backward()

        def read(ddp: nn.Module = ddp, seen: list[torch.Tensor] = seen) -> None:
            seen.extend(p.grad.clone() for p in ddp.parameters())  # type: ignore[union-attr]

        for _ in range(2):  # DDP arranges its buckets anew after the first step
            ddp.zero_grad()
            seen.clear()
            y = ddp(batch(rank))
            y.register_hook(lambda g: queue(lambda: queue(read)))
            y.square().mean().backward()
            for got, parameter, whole in zip(seen, ddp.parameters(), single.parameters(), strict=True):
                assert torch.equal(got, parameter.grad), options
                # float32 sums of the same few terms, in another order
                torch.testing.assert_close(got, whole.grad, rtol=1e-5, atol=1e-7)


@check
def training_that_has_ended_does_not_end_the_merge(rank: int, size: int) -> None:
    """`destroy_process_group()` may come before the scope is closed. Has to be the last check of its ranks."""
    ranks = world()
    dist.barrier()
    dist.destroy_process_group()
    merged = ranks.merge(0, {"activation": table(rank, ["a"])})
    assert merged["activation"].moments.count.tolist() == [50 * size]
    ranks.close()


@check
def a_rank_that_dies_is_named_at_once(rank: int, size: int) -> None:
    """Has to be the last check of its ranks."""
    ranks = world(timeout=30.0)
    ranks.merge(0, {"activation": table(rank, ["a"])})
    if rank == size - 1:
        os._exit(0)
    began = time.monotonic()
    sentence = lost(lambda: ranks.merge(1, {"activation": table(rank, ["a"])}))
    assert sentence.startswith(f"rank {size - 1} is gone"), sentence
    assert time.monotonic() - began < 15.0  # not 30


# Four ranks


def _merged_parameters(model: nn.Module, ranks: Ranks) -> dict[str, tuple[int, float, float]]:
    """Count, mean and std of each parameter, as the ranks that own its parts give them."""
    names, moments, own = [], [], []
    for name, parameter in model.named_parameters():
        part, _ = local_part(parameter)
        assert part is not None
        names.append(Site("weight", name, name, "Linear"))
        moments.append(Moments.from_array(part.detach().numpy()))
        own.append(ranks.owns(parameter))
    merged = ranks.merge(0, {"weight": Table(tuple(names), Moments.concat(moments), np.array(own))})["weight"]
    assert_same_everywhere({"weight": merged})
    m = merged.moments
    return {s.name: (int(m.count[i]), float(m.mean[i]), float(m.std[i])) for i, s in enumerate(merged.sites)}


def _assert_whole(model: nn.Module, ranks: Ranks | None, averaged_over: int, sharded: bool = True) -> None:
    assert ranks is not None
    assert (ranks.size, ranks.averaged_over, ranks.sharded) == (4, averaged_over, sharded)
    merged = _merged_parameters(model, ranks)
    for name, parameter in net().named_parameters():
        x = parameter.detach().double().numpy()
        count, mean, std = merged[name]
        assert count == x.size, name  # each entry once
        np.testing.assert_allclose([mean, std], [x.mean(), x.std()], rtol=1e-12, atol=1e-15, err_msg=name)


@check
def every_entry_of_a_sharded_parameter_is_contributed_once(rank: int, size: int) -> None:
    from torch.distributed.fsdp import fully_shard

    for shape in ((4,), (2, 2)):  # sharded over all; sharded in pairs that are replicas (HSDP)
        model = net()
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
        fully_shard(model[2], mesh=mesh)
        fully_shard(model, mesh=mesh)
        _assert_whole(model, Ranks.of(model), averaged_over=4)


@check
def replicas_of_a_parameter_are_contributed_once(rank: int, size: int) -> None:
    model = DistributedDataParallel(net())
    _assert_whole(model.module, Ranks.of(model), averaged_over=4, sharded=False)


@check
def a_model_split_by_rows_and_columns_of_a_mesh_is_contributed_once(rank: int, size: int) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    plan = {"0": ColwiseParallel(), "2.0": RowwiseParallel()}
    both = parallelize_module(net(), mesh["tensor"], plan)
    fully_shard(both, mesh=mesh["data"])
    _assert_whole(both, Ranks.of(both), averaged_over=2)
    # Only split: the two halves of the mesh train two models.
    split = parallelize_module(net(), mesh["tensor"], plan)
    ranks = Ranks.of(split)
    assert ranks is not None
    assert (ranks.size, ranks.averaged_over, ranks.rank) == (2, 1, rank % 2)
    assert {n: c for n, (c, _, _) in _merged_parameters(split, ranks).items()} == {
        n: p.numel() for n, p in net().named_parameters()
    }


@check
def each_rank_finds_the_same_ranks_of_a_split_and_replicated_model(rank: int, size: int) -> None:
    """Each rank sees its row of the mesh (DTensors) and its column (DDP), never the whole."""
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = parallelize_module(net(), mesh["tensor"], {"0": ColwiseParallel()})
    frozen = nn.ModuleList([model, DistributedDataParallel(net(), process_group=mesh["data"].get_group())])
    ranks = Ranks.of(frozen)
    assert ranks is not None
    assert (ranks.size, ranks.rank, ranks.averaged_over) == (4, rank, 2)


@check
def two_models_on_two_pairs_of_ranks_do_not_wait_for_each_other(rank: int, size: int) -> None:
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    ranks = Ranks.of(DistributedDataParallel(net(), process_group=pairs[rank // 2]))
    assert ranks is not None
    assert (ranks.size, ranks.rank) == (2, rank % 2)
    if rank >= 2:
        time.sleep(0.3)
    merged = ranks.merge(rank // 2, {"activation": table(rank, ["a"])})["activation"].moments
    first = rank // 2 * 2
    assert_close(merged, [np.concatenate([values(first, "a"), values(first + 1, "a")])])


@check
def partial_sums_are_no_values_and_unfinished_results_are_waited_for(rank: int, size: int) -> None:
    from torch.distributed._functional_collectives import all_reduce
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh = init_device_mesh("cpu", (2, 2))
    x = torch.full((2, 3), float(rank), requires_grad=True)
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    for placements, contributes in (
        ((Shard(0), Shard(1)), True),
        ((Replicate(), Shard(0)), coordinate[0] == 0),
        ((Shard(0), Replicate()), coordinate[1] == 0),
        ((Replicate(), Replicate()), rank == 0),
    ):
        part, own = local_part(DTensor.from_local(x, mesh, placements, run_check=False))
        assert own == contributes
        assert type(part) is torch.Tensor
        assert not part.requires_grad
        assert torch.equal(part, x)
    assert local_part(DTensor.from_local(x, mesh, (Partial(), Shard(0)), run_check=False)) == (None, False)
    part, own = local_part(all_reduce(torch.ones(3), "sum", (mesh, 0)))
    assert own
    assert type(part) is torch.Tensor
    assert part.tolist() == [2.0, 2.0, 2.0]
    assert local_part(x)[0] is x


def main(rank: int, size: int, meeting: str, result: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(seconds=20)
    )
    outcome: dict[str, str] = {}
    for name in names:
        outcome[name] = "did not end"
        Path(result).write_text(json.dumps(outcome), encoding="utf-8")
        try:
            CHECKS[name](rank, size)
            outcome[name] = "ok"
        except Exception:
            outcome[name] = traceback.format_exc()
        Path(result).write_text(json.dumps(outcome), encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may still wait for a rank that a check has lost


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
