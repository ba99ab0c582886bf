"""Checks of GradScope over parts: fully_shard, tensor parallel, both."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

from gradscope import GradScope
from gradscope.recording import Recording
from tests.ranks_checks import check
from tests.ranks_training import (
    PARAMETERS,
    RTOL,
    WAYS,
    Block,
    Training,
    assert_alike,
    assert_everywhere_the_same,
    assert_noted_alike,
    assert_recorded_as_one,
    assert_undisturbed,
    by_site,
    mesh_of,
    net,
    recorded,
    sharded,
    whole_batch,
)

BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


@check
def fully_sharded_training_is_recorded_as_one_process(rank: int, size: int) -> None:
    mesh = mesh_of(size)
    for reshard, how in (
        (True, Training("optimizer")),
        (False, Training("neither")),
        (False, Training("optimizer", steps=2, micro=2, clip=0.05)),
        (True, Training("step", steps=2, micro=2, clip=0.05)),
        (True, Training("neither", steps=2, micro=2, clip=0.05)),
    ):
        assert_recorded_as_one(net, sharded(mesh, reshard_after_forward=reshard), how.of(rank, size))


class Checkpointed(Block):
    """Its forward is run again in the backward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)  # type: ignore[no-any-return]


def checkpointed() -> nn.Module:
    model = net()
    model[1].__class__ = Checkpointed
    return model


@check
def fully_sharded_training_is_not_disturbed(rank: int, size: int) -> None:
    mesh = mesh_of(size)
    for close, reshard in (("optimizer", False), ("neither", True)):
        assert_undisturbed(lambda r=reshard: sharded(mesh, reshard_after_forward=r), Training(close).of(rank, size))
    assert_undisturbed(lambda: sharded(mesh, mp_policy=BF16), Training().of(rank, size))
    assert_undisturbed(lambda: sharded(mesh, checkpointed()), Training().of(rank, size))


@check
def a_sharded_model_that_recomputes_is_recorded_as_in_one_process(rank: int, size: int) -> None:
    for close in ("optimizer", "neither"):
        assert_recorded_as_one(checkpointed, sharded(mesh_of(size), checkpointed()), Training(close).of(rank, size))


@check
def in_mixed_precision_sharded_signals_agree_within_its_rounding(rank: int, size: int) -> None:
    for close in ("optimizer", "neither"):
        how = Training(close, steps=1)
        got, expected = recorded(sharded(mesh_of(size), mp_policy=BF16), how.of(rank, size)), recorded(net(), how)
        assert {s.dtype for s in got.sites_of("activation") if s.name != "<input>"} == {"bfloat16"}
        assert {s.dtype for s in got.sites_of("weight")} == {"float32"}
        assert_alike(got, expected, ["weight"])
        # bfloat16 rounds to 2^-9 of an entry; weights, inputs, some ten layers forth and back, gradients summed.
        assert_alike(got, expected, rtol=32 * 2.0**-9, but_for=["dtype"])
        assert_everywhere_the_same(got)


@check
def updates_that_no_optimizer_of_torch_makes_are_recorded_sharded(rank: int, size: int) -> None:
    for reshard in (True, False):
        got = _by_hand(sharded(mesh_of(size), reshard_after_forward=reshard), rank, size)
        assert_alike(got, _by_hand(net(), 0, 1))
        assert_everywhere_the_same(got)


def _by_hand(model: nn.Module, rank: int, size: int) -> Recording:
    with GradScope(model) as scope:
        for step in range(2):
            model.zero_grad()
            model(whole_batch(step).chunk(size)[rank]).square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(parameter.grad, alpha=0.1)
    return scope.recording


@check
def parts_that_have_replicas_are_recorded_as_one_process(rank: int, size: int) -> None:
    """HSDP: sharded in pairs, each a replica of the others."""
    mesh = mesh_of(2, size // 2)
    for close in ("optimizer", "neither"):
        assert_recorded_as_one(net, sharded(mesh), Training(close, clip=0.05).of(rank, size))
    assert_undisturbed(lambda: sharded(mesh), Training().of(rank, size))


def split(mesh: DeviceMesh) -> nn.Module:
    """The block's layers are split by columns and rows."""
    return parallelize_module(net(), mesh, {"1.up": ColwiseParallel(), "1.down": RowwiseParallel()})


def assert_split_alike(got: Recording, expected: Recording, times: int) -> None:
    """A plain output that all ranks of a split have whole counts its entries so often: nothing tells it from a part."""
    assert_alike(got, expected, PARAMETERS)
    assert_alike(got, expected, counts=False)
    for signal in ("activation", "activation_grad"):
        mine, theirs = by_site(got, signal, "count"), by_site(expected, signal, "count")
        for site in expected.sites_of(signal):
            of_each = 1 if site.module.endswith((".up", ".act")) else times
            np.testing.assert_array_equal(mine[site.name], of_each * theirs[site.name], site.name)
    assert_noted_alike(got, expected)
    assert_everywhere_the_same(got)


@check
def a_split_model_is_recorded_as_one_process(rank: int, size: int) -> None:
    mesh = init_device_mesh("cpu", (size,))
    for close in WAYS:
        assert_split_alike(recorded(split(mesh), Training(close)), recorded(net(), Training(close)), size)
    assert_undisturbed(lambda: split(mesh), Training())


@check
def a_model_split_and_sharded_is_recorded_as_one_process(rank: int, size: int) -> None:
    mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("data", "tensor"))
    for close in ("optimizer", "neither"):
        how = Training(close).of(rank // 2, size // 2)
        got = recorded(sharded(mesh["data"], split(mesh["tensor"])), how)
        assert_split_alike(got, recorded(net(), Training(close)), 2)
    assert_undisturbed(lambda: sharded(mesh["data"], split(mesh["tensor"])), Training().of(rank // 2, size // 2))


@check
def a_gradient_that_no_rank_has_whole_is_said_to_be_unobserved(rank: int, size: int) -> None:
    """Of a norm between layers whose sequence is split: each rank has that of its part, summed nowhere."""
    plan = {
        "0": SequenceParallel(),
        "1": ColwiseParallel(input_layouts=Shard(1)),
        "3": RowwiseParallel(output_layouts=Shard(1)),
    }
    for optimizes in (True, False):
        model = parallelize_module(_of_sequences(), init_device_mesh("cpu", (size,)), plan)
        expected, got = _one_step(_of_sequences(), 0, 1, optimizes), _one_step(model, rank, size, optimizes)
        why = "its gradient is a partial sum, which no rank has whole"
        assert got.unobserved == {"0.weight": why, "0.bias": why}
        assert_alike(got.recording, expected.recording, ["activation", "activation_grad", "weight"])
        assert {s.module for s in got.recording.sites_of("weight_grad")} == {"1", "3"}
        for signal in ("weight_grad", "update"):
            theirs = by_site(expected.recording, signal, "rms")
            for name, rms in by_site(got.recording, signal, "rms").items():
                if not name.startswith("0."):  # of which torch applies the part of this rank
                    np.testing.assert_allclose(rms, theirs[name], rtol=RTOL, err_msg=name)
        assert "grad_norm" in expected.recording.note_names
        assert "grad_norm" not in got.recording.note_names  # it would be that of a part


def _of_sequences() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))


def _one_step(model: nn.Module, rank: int, size: int, optimizes: bool) -> GradScope:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with GradScope(model, optimizer if optimizes else None) as scope:
        x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(5))
        (model(x.chunk(size, dim=1)[rank]).square().sum() / x.numel()).backward()
        optimizer.step()
    return scope
