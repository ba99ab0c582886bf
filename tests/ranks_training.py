"""Training on several ranks and on one, watched by a scope, and what it means that both were recorded alike."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from gradscope import GradScope
from gradscope.hooks import _schedule
from gradscope.recording import SIGNALS, GradScopeWarning, Recording, Signal

BATCH = 8
"""Of the whole: a multiple of the ranks."""

WAYS = ("optimizer", "step", "neither")
"""What may close a step."""

PARAMETERS: tuple[Signal, ...] = ("weight", "weight_grad", "update")
RTOL = 1e-5
"""float32 sums of the same terms in another order, a few hundred of them: each rounds to 6e-8."""


class Block(nn.Module):
    """Two layers and a norm in a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.act = nn.Tanh()
        self.down = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


def net() -> nn.Sequential:
    """Its last bias has one entry: on most ranks none of it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), Block(), nn.Linear(8, 1))


def mesh_of(*shape: int) -> DeviceMesh:
    names = {1: ("shards",), 2: ("replicas", "shards")}[len(shape)]
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def sharded(mesh: DeviceMesh, model: nn.Module | None = None, **options: Any) -> nn.Module:
    """Each block by itself, and the rest with the root."""
    model = net() if model is None else model
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


MAKES: dict[str, Callable[[], nn.Module]] = {
    "replicas": lambda: DistributedDataParallel(net()),
    "parts": lambda: sharded(mesh_of(dist.get_world_size())),
}


def whole_batch(number: int) -> torch.Tensor:
    return torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(100 + number))


def local_unless_last(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Gradients are summed over ranks at the last micro-batch of a step only."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


@dataclass(frozen=True)
class Training:
    """One way to train.

    Attributes:
        close: what closes a step for the scope, one of `WAYS`.
        steps: how many.
        micro: batches in each.
        clip: to which norm gradients are clipped.
        optimizer: makes it.
        scope: further arguments of the scope.
        spoil: what becomes of a batch, by its number.
        part: of which part of how many of each batch.
    """

    close: str = "optimizer"
    steps: int = 3
    micro: int = 1
    clip: float | None = None
    optimizer: Callable[..., torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)
    scope: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[int, torch.Tensor], torch.Tensor] | None = None
    part: tuple[int, int] = (0, 1)

    def of(self, rank: int, size: int) -> Training:
        return replace(self, part=(rank, size))

    def batch(self, number: int) -> torch.Tensor:
        x = whole_batch(number)
        rank, size = self.part
        return (x if self.spoil is None else self.spoil(number, x)).chunk(size)[rank]


def train(model: nn.Module, how: Training, optimizer: torch.optim.Optimizer, after_step: Callable[[], None]) -> None:
    for step in range(how.steps):
        optimizer.zero_grad()
        for micro in range(how.micro):
            with local_unless_last(model, micro == how.micro - 1):
                (model(how.batch(step * how.micro + micro)).square().mean() / how.micro).backward()
        if how.clip is not None:
            clip_grad_norm_(model.parameters(), how.clip)
        optimizer.step()
        after_step()


def watched(model: nn.Module, how: Training) -> GradScope:
    """The closed scope of a training."""
    optimizer = how.optimizer(model.parameters())
    scope = GradScope(model, **({"optimizer": optimizer} if how.close == "optimizer" else {}) | how.scope)
    train(model, how, optimizer, scope.step if how.close == "step" else lambda: None)
    scope.close()
    return scope


@contextmanager
def on_a_clock(layer: nn.Module, cost: float) -> Iterator[Callable[..., torch.optim.Optimizer]]:
    """Inside, a budget's clock goes by steps: 10 ms each, and `cost` seconds more where hooks are on the layer.

    It gives what makes the optimizer that moves the clock.
    """
    now = [0.0]

    def tick(*_: Any) -> None:
        now[0] += 0.01 + (cost if layer._forward_hooks else 0)

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = Training().optimizer(parameters)
        optimizer.register_step_pre_hook(tick)
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_schedule.Budget.__init__, "__defaults__", (lambda: now[0],))
        yield make


@contextmanager
def warned() -> Iterator[list[str]]:
    """The GradScopeWarnings given inside; any other is an error."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    assert all(w.category is GradScopeWarning for w in caught), [str(w.message) for w in caught]
    said += [str(w.message) for w in caught]


def recorded(model: nn.Module, how: Training, unobserved: Collection[str] = ()) -> Recording:
    """Of a training in which nothing warned, and nothing but this was passed over."""
    with warned() as said:
        scope = watched(model, how)
    assert said == []
    assert sorted(scope.unobserved) == sorted(unobserved)
    return scope.recording


def assert_recorded_as_one(
    plain: Callable[[], nn.Module], model: nn.Module, how: Training, unobserved: Collection[str] = (), **tolerance: Any
) -> None:
    """Every rank has the recording of one process that trains the plain model on the whole batches."""
    expected, got = recorded(plain(), replace(how, part=(0, 1)), unobserved), recorded(model, how, unobserved)
    assert_alike(got, expected, **tolerance)
    assert_noted_alike(got, expected)
    assert_everywhere_the_same(got)


def assert_undisturbed(make: Callable[[], nn.Module], how: Training) -> None:
    """After five steps of AdamW the parameters are the same to the bit, watched or not."""
    how = replace(how, steps=5, optimizer=lambda p: torch.optim.AdamW(p, 0.01))
    alone, seen = make(), make()
    train(alone, how, how.optimizer(alone.parameters()), lambda: None)
    watched(seen, how)
    for mine, theirs in zip(seen.parameters(), alone.parameters(), strict=True):
        assert torch.equal(local(mine), local(theirs))


def local(parameter: Any) -> torch.Tensor:
    with torch.no_grad():
        return parameter.to_local() if hasattr(parameter, "to_local") else parameter  # type: ignore[no-any-return]


# When two recordings are alike


def assert_everywhere_the_same(recording: Recording) -> None:
    """On all ranks, to the bit."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, fingerprint(recording))
    assert all(other == everyone[0] for other in everyone)


def fingerprint(recording: Recording) -> str:
    """Of the names of its sites, and their moments."""
    made = hashlib.blake2b()
    for step, signal, sites, moments in recording.rows():
        names = [site.name for site in sites]
        made.update(repr((step, signal, sorted(names))).encode())
        for column in vars(moments.take(np.argsort(names))).values():
            made.update(column.tobytes())
    return made.hexdigest()


def assert_alike(
    got: Recording,
    expected: Recording,
    signals: Iterable[Signal] = SIGNALS,
    rtol: float = RTOL,
    counts: bool = True,
    but_for: Collection[str] = (),
) -> None:
    """Steps, sites and statistics are the same; `but_for` names what may differ in sites."""
    assert got.steps.tolist() == expected.steps.tolist()
    assert got.skipped.tolist() == expected.skipped.tolist()
    for signal in signals:
        mine, theirs = ({s.name: s for s in r.sites_of(signal)} for r in (got, expected))
        assert sorted(mine) == sorted(theirs), signal
        free = {*but_for, *(() if signal in PARAMETERS else ("shape",))}  # a rank has a part of the batch
        for name, site in theirs.items():
            assert mine[name] == replace(site, **{field: getattr(mine[name], field) for field in free})
        order = [list(mine).index(name) for name in theirs]  # weight and bias lie at one depth, in any order
        for stat in ("count", "nonfinite_count") if counts else ("nonfinite_count",):
            values = got.values(signal, stat)[:, order]
            np.testing.assert_array_equal(values, expected.values(signal, stat), f"{signal} {stat}")
        largest = expected.values(signal, "abs_max")
        bound = rtol * largest
        if signal == "update":  # the difference of two weights, each of which rounds
            weights = by_site(expected, "weight", "abs_max")
            bound = bound + 2.0**-23 * np.array([weights[name] for name in theirs]).T
        for stat in ("rms", "mean", "std", "min", "max"):
            off = np.abs(got.values(signal, stat)[:, order] - expected.values(signal, stat))
            step, site = np.unravel_index(np.argmax(np.nan_to_num(off - bound)), off.shape)
            where = f"{signal} {stat} of {list(theirs)[site]}, step {step}"
            assert not (off > bound).any(), f"{where}: {off[step, site]:.2g} off"


def by_site(recording: Recording, signal: Signal, stat: str) -> dict[str, np.ndarray]:
    """Of every step."""
    names = [site.name for site in recording.sites_of(signal)]
    return dict(zip(names, recording.values(signal, stat).T, strict=True))


def assert_noted_alike(got: Recording, expected: Recording) -> None:
    """How the norm of the whole gradient, and its clipping, is noted."""
    for i in range(len(got.steps)):
        mine, theirs = got.notes_at(i), expected.notes_at(i)
        assert mine.pop("ranks_merged") == dist.get_world_size()
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if not isinstance(value, str):
                np.testing.assert_allclose(mine[name], value, rtol=RTOL, err_msg=name)
