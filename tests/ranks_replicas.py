"""Checks of GradScope over replicas: DistributedDataParallel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradscope import GradScope
from gradscope.recording import Recording
from tests.ranks_checks import check
from tests.ranks_training import (
    MAKES,
    WAYS,
    Training,
    assert_alike,
    assert_everywhere_the_same,
    assert_noted_alike,
    assert_recorded_as_one,
    assert_undisturbed,
    net,
    on_a_clock,
    recorded,
    watched,
    whole_batch,
)

VIEWS: dict[str, Any] = {"gradient_as_bucket_view": True}
STATIC: dict[str, Any] = {"static_graph": True}
UNUSED: dict[str, Any] = {"find_unused_parameters": True}


@check
def ddp_is_recorded_as_one_process_however_steps_are_closed(rank: int, size: int) -> None:
    for close, options in (
        ("optimizer", {}),
        ("step", VIEWS),
        ("neither", {}),
        ("neither", VIEWS),
        ("neither", STATIC),
        ("neither", VIEWS | STATIC),
    ):
        assert_recorded_as_one(net, DistributedDataParallel(net(), **options), Training(close).of(rank, size))


@check
def accumulated_and_clipped_gradients_are_recorded_averaged_once(rank: int, size: int) -> None:
    # Not with static_graph: torch itself fails where no_sync comes first.
    for close, options in (("optimizer", {}), ("step", VIEWS), ("neither", {}), ("neither", VIEWS | UNUSED)):
        how = Training(close, micro=2, clip=0.05).of(rank, size)
        assert_recorded_as_one(net, DistributedDataParallel(net(), **options), how)


@check
def ranks_agree_on_the_steps_that_a_budget_allows(rank: int, size: int) -> None:
    auto = {"every": "auto", "budget": 0.02}
    for close in WAYS:
        model = DistributedDataParallel(net())
        with on_a_clock(model.module[0], cost=0.002 * (rank + 1)) as optimizer:
            how = Training(close, steps=160, optimizer=optimizer, scope=auto).of(rank, size)
            recording = watched(model, how).recording
        interval = round(0.002 * size / 0.01 / 0.02)  # of the last rank, for which it costs most
        assert recording.steps.tolist() == [*range(20), *range(30, 160, interval)], (close, recording.steps)
        assert recording.notes("ranks_merged").tolist() == [size] * len(recording.steps)


def with_spare() -> nn.Module:
    """With a layer that is there, and trained, but never used."""
    model = net()
    model[1].spare = nn.Linear(3, 2)
    return model


@check
def a_layer_that_is_never_used_is_recorded_as_in_one_process(rank: int, size: int) -> None:
    for close in ("optimizer", "neither"):
        ddp = DistributedDataParallel(with_spare(), **UNUSED)
        assert_recorded_as_one(with_spare, ddp, Training(close).of(rank, size), ["1.spare"])


class Mixture(nn.Module):
    """Every rank uses one expert, another in each step; a single process (rank None) uses those of all ranks."""

    def __init__(self, rank: int | None, size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ranks, self.calls = range(size) if rank is None else [rank], 0
        self.gate = nn.Linear(4, 8)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(size + 1))
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = zip(self.ranks, self.gate(x).chunk(len(self.ranks)), strict=True)
        hidden = [self.experts[(rank + self.calls) % len(self.experts)](part) for rank, part in parts]
        self.calls += 1
        return self.head(torch.cat(hidden))  # type: ignore[no-any-return]


@check
def ranks_that_use_different_experts_record_all_of_them(rank: int, size: int) -> None:
    for close in ("optimizer", "neither"):
        how = Training(close)
        expected = recorded(Mixture(None, size), how)
        got = recorded(DistributedDataParallel(Mixture(rank, size), **UNUSED), how.of(rank, size))
        # One process runs the experts one after the other, and so sees more of what follows what.
        assert_alike(got, expected, but_for=["depth", "activation_after"])
        assert_noted_alike(got, expected)
        assert_everywhere_the_same(got)


@check
def training_in_ddp_is_not_disturbed(rank: int, size: int) -> None:
    for close, options in zip(WAYS, ({}, VIEWS, STATIC), strict=True):
        assert_undisturbed(lambda o=options: DistributedDataParallel(net(), **o), Training(close).of(rank, size))
    assert_undisturbed(MAKES["replicas"], Training(micro=2, clip=0.05).of(rank, size))


@check
def sites_that_were_chosen_histograms_and_functions_merge_too(rank: int, size: int) -> None:
    for make in MAKES.values():
        chosen = {"sites": ["1.*"], "every": 2, "histograms": True, "functional": True}
        expected = recorded(net(), Training("neither", scope=chosen))
        got = recorded(make(), Training("neither", scope=chosen).of(rank, size))
        assert_alike(got, expected)
        off = total = 0
        for site in expected.sites:
            for step in (0, 1):
                mine, theirs = (r.histogram(site.signal, site.name, step)[1] for r in (got, expected))
                assert mine.sum() == theirs.sum()
                off, total = off + np.abs(mine - theirs).sum(), total + theirs.sum()
        assert off <= total // 1000  # an entry that rounds over the edge of a bin


@check
def a_step_that_the_scaler_skips_is_skipped_on_all_ranks(rank: int, size: int) -> None:
    """One row of one rank's batch overflows."""
    for name, make in MAKES.items():
        for close in ("optimizer", "neither"):
            expected, got = _scaled(net(), Training(close)), _scaled(make(), Training(close).of(rank, size))
            assert expected.skipped.tolist() == [False, True, False], name
            assert_alike(got, expected)
            assert_noted_alike(got, expected)


def _scaled(model: nn.Module, how: Training) -> Recording:
    optimizer, scaler = how.optimizer(model.parameters()), torch.amp.GradScaler("cpu", init_scale=1024.0)
    rank, size = how.part
    with GradScope(model, optimizer if how.close == "optimizer" else None, scaler=scaler) as scope:
        for step in range(3):
            optimizer.zero_grad()
            x = whole_batch(step)
            if step == 1:
                x[-1] = 1e37
            scaler.scale(model(x.chunk(size)[rank]).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    return scope.recording
