"""A sweep that the ranks of `torchrun` share: each measures a stretch of the grid, rank 0 has the result.

The parts are those that one process would measure, so the numbers are the same. They come together in one sum,
in which every rank has zeros for what others measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gradscope._version import __version__
from gradscope.experiments._config import SweepConfig
from gradscope.experiments._grid import parts, ranks_of
from gradscope.experiments._launch import Launch
from gradscope.experiments._sweep import Progress, assembled, device_of, facts, measured, sweep
from gradscope.recording import SweepResult

_TO_MEET = timedelta(minutes=5)
_TO_FINISH = timedelta(days=7)
"""Ranks may differ by hours. One that has ended is noticed by those that wait for it, for its connections close;
`torchrun` ends them all at once."""


class RankError(RuntimeError):
    """The ranks could not meet, or one ended before all had measured their share."""


def shared_sweep(config: SweepConfig, here: Launch, progress: Progress | None = None) -> SweepResult | None:
    """The sweep, measured by all ranks together; alone, the sweep.

    Args:
        config: what to measure, the same on every rank; of `cuda` each rank takes the device of its local rank.
        here: which rank this is.
        progress: as in `sweep`, of this rank's share.

    Returns:
        The result on rank 0, None on the others.

    Raises:
        SettingsError: the device is not there.
        RankError: another rank did not come, has other settings, or ended before it had measured its share.
    """
    if here.ranks == 1:
        return sweep(config, progress)
    device, started, grid = _device(config, here), time.perf_counter(), parts(config)
    found = [np.zeros((len(part.activations), 4, len(part.seeds), part.depth)) for part in grid]
    with _meeting() as group:
        _agree(config, here, group)
        mine = [index for index, rank in enumerate(ranks_of(config, grid, here.ranks)) if rank == here.rank]
        for index, values in zip(mine, measured(config, device, [grid[i] for i in mine], progress), strict=True):
            found[index] = values
        everything = torch.from_numpy(np.concatenate([values.ravel() for values in found]))
        with _said("a rank ended before all had measured their share"):
            dist.reduce(everything, dst=0, group=group)
    if here.rank != 0:
        return None
    ends = np.cumsum([values.size for values in found])[:-1]
    whole = [flat.reshape(own.shape) for flat, own in zip(np.split(everything.numpy(), ends), found, strict=True)]
    return assembled(config, grid, whole, {**facts(device, started), "ranks": here.ranks})


def _device(config: SweepConfig, here: Launch) -> torch.device:
    devices = torch.cuda.device_count()
    if config.device == "cuda" and devices:
        config = config.replace(device=f"cuda:{here.local_rank % devices}")
    return device_of(config)


def _agree(config: SweepConfig, here: Launch, group: dist.ProcessGroup) -> None:
    """Have every rank measure the same sweep: a file of settings may be older on another machine."""
    mine = {"gradscope": __version__, **config.model_dump(mode="json", exclude={"device"})}
    every: list[Any] = [None] * here.ranks
    with _said("a rank ended before all had met"):
        dist.all_gather_object(every, mine, group=group)
    for rank, theirs in enumerate(every):
        for name, value in every[0].items():
            if theirs.get(name) != value:
                raise RankError(
                    f"every rank must have the same settings: {name} is {theirs.get(name)} on rank {rank} "
                    f"and {value} on rank 0"
                )


@contextmanager
def _meeting() -> Iterator[dist.ProcessGroup]:
    try:
        with _said("the ranks could not meet"):
            dist.init_process_group("gloo", timeout=_TO_MEET)  # numbers on the host, whatever measured them
            group = dist.new_group(timeout=_TO_FINISH)
        yield group
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _said(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError(f"{what} ({str(error).splitlines()[0]})") from error
