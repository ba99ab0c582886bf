"""The ranks that train one model together, and the merge of what each of them saw.

Moments merge exactly, so the statistics are those of the global batch and of the whole parameters. Each rank folds
the same parts in the same order: all have the same result, to the bit.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from gradscope.hooks._distributed import Parallelism, local_part, parallelism
from gradscope.hooks._exchange import Exchange, RankLost
from gradscope.hooks._tables import Layout, Part, Plan, Table, fold, pack, plan, unpack
from gradscope.recording import Signal, Site

__all__ = ["RankLost", "Ranks", "Table"]

K = TypeVar("K")
V = TypeVar("V")

_HEADER = struct.Struct("<8sqq16sqq")
_FORMAT = b"gscope02"
_HURRY = 5.0
"""Seconds."""
_MOST_LAYOUTS = 64
"""So many lists of sites of one rank are remembered; sender and receivers forget the oldest alike."""


class Ranks:
    """The ranks that train one model together.

    Attributes:
        rank: this one's place among them, from 0.
        size: how many they are.
        averaged_over: by how much the gradients' sum over ranks is divided (DDP and `fully_shard`: the number of
            data-parallel ranks); dL/d activation of the mean over all ranks is this rank's divided by it. 1 where
            only layers are split (tensor parallel).
        sharded: parameters lie in parts on several ranks.
        lost: why merging is not possible (any more), None while it is.
        longest: of the intervals that the ranks proposed with the latest merge.
    """

    def __init__(self, parallel: Parallelism, timeout: float) -> None:
        self._ranks = parallel.ranks
        self.rank = parallel.ranks.index(dist.get_rank())
        self.size = len(parallel.ranks)
        self.averaged_over = parallel.averaged_over
        self.sharded = parallel.sharded
        self.lost: str | None = None
        self.longest = 0
        self._known: list[dict[bytes, Layout]] = [{} for _ in parallel.ranks]
        self._latest: tuple[Layout, bytes, bytes] | None = None
        self._plans: dict[tuple[bytes, ...], list[Plan]] = {}
        self._exchange: Exchange | None = None
        try:
            self._exchange = Exchange(parallel.ranks, timeout)
        except RankLost as error:
            self.lost = str(error)

    @staticmethod
    def of(model: nn.Module, process_group: Any = "auto", timeout: float = 60.0) -> Ranks | None:
        """The ranks on which the model is trained, None where it is this one alone.

        Collective: where the answer is not None, each of these ranks has to ask at the same point of its program;
        it waits for the others. Should they not come, the first `merge` raises.

        Args:
            model: as it is called in training: with its `DistributedDataParallel`, after `fully_shard` and
                `parallelize_module`. The model inside a `DistributedDataParallel` is known only in its forward.
            process_group: "auto" finds the ranks by the model; else a `torch.distributed` group of them, or None.
            timeout: seconds to wait for the others, here and at each merge.

        Raises:
            TypeError: process_group is something else.
            ValueError: the model has a wrapper that cannot be observed.
        """
        parallel = parallelism(model, process_group)
        return None if parallel is None else Ranks(parallel, timeout)

    def owns(self, parameter: Tensor) -> bool:
        """Whether this rank contributes a parameter, its gradient or update, where several ranks hold the same."""
        mesh: Any = getattr(parameter, "device_mesh", None)
        if mesh is None:
            return self.rank == 0
        return local_part(parameter)[1] and self._ranks[0] in mesh.mesh.flatten().tolist()

    def merge(self, step: int, tables: Mapping[Signal, Table], interval: int = 0) -> dict[Signal, Table]:
        """What all ranks saw of one step, the same on each: sites of any of them by depth, then by rank and row.

        Collective, like the training's own operations: all ranks call it for the same steps, at the same point
        between those. A row is the merge of those that ranks contribute (`own`); where none does, it is that of the
        lowest rank that has entries, or drops out. `interval` is this rank's proposal for `longest`.

        Raises:
            RankLost: a rank did not answer in time, or is at another step. Then nothing can be merged any more.
        """
        if self._exchange is None:
            raise RankLost(self.lost or "this rank has left the others")
        try:
            return self._merge(self._exchange, step, tables, interval)
        except RankLost as error:
            self.lost = str(error)
            self.close()
            raise

    def hurry(self) -> None:
        """Wait no longer for others than a few seconds: this rank may be the only one that ends now."""
        if self._exchange is not None:
            self._exchange.timeout = min(self._exchange.timeout, _HURRY)

    def close(self) -> None:
        """Leave the others."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def _merge(
        self, exchange: Exchange, step: int, tables: Mapping[Signal, Table], interval: int
    ) -> dict[Signal, Table]:
        given = {signal: table for signal, table in tables.items() if table.sites}
        mine, digest, text = self._encoded(tuple(Part.of(signal, table) for signal, table in given.items()))
        known = {digest: mine}
        if digest in self._known[self.rank]:
            text = b""  # the others have it
        columns = pack(list(given.values()))
        head = _HEADER.pack(_FORMAT, step, interval, digest, len(columns), len(text))
        digests, data, self.longest = [], [], interval
        for peer, (other, body) in enumerate(exchange(head, columns + text)):
            kind, at, proposed, digest, length, extent = _HEADER.unpack(other)
            self._check(peer, kind, at, step)
            self.longest = max(self.longest, proposed)
            if extent:
                known[digest] = known.get(digest) or _decoded(body[length : length + extent])  # mostly all have mine
                _remember(self._known[peer], digest, known[digest])
            digests.append(digest)
            data.append(body)
        layouts = [of_peer[digest] for of_peer, digest in zip(self._known, digests, strict=True)]
        plans = self._plans.get(tuple(digests))
        if plans is None:
            plans = plan(layouts)
            _remember(self._plans, tuple(digests), plans)
        received = [unpack(columns, layout) for columns, layout in zip(data, layouts, strict=True)]
        merged = {p.signal: fold(p, received) for p in plans}
        return {signal: table for signal, table in merged.items() if table.sites}

    def _check(self, peer: int, kind: bytes, at: int, step: int) -> None:
        if kind != _FORMAT:
            raise RankLost(f"rank {self._ranks[peer]} runs another version of GradScope")
        if at != step:
            raise RankLost(
                f"rank {self._ranks[peer]} is at step {at} where rank {self._ranks[self.rank]} is at step {step}"
            )

    def _encoded(self, layout: Layout) -> tuple[Layout, bytes, bytes]:
        """A layout with its digest and text; mostly it is that of the step before."""
        if self._latest is None or self._latest[0] != layout:
            text = json.dumps([[p.signal, p.bins, [vars(site) for site in p.sites]] for p in layout]).encode()
            self._latest = layout, blake2b(text, digest_size=16).digest(), text
        return self._latest


def _decoded(text: bytes) -> Layout:
    return tuple(Part(signal, tuple(_site(site) for site in sites), bins) for signal, bins, sites in json.loads(text))


def _site(fields: dict[str, Any]) -> Site:
    return Site(**(fields | {"shape": tuple(fields["shape"])}))


def _remember(cache: dict[K, V], key: K, value: V) -> None:
    cache[key] = value
    if len(cache) > _MOST_LAYOUTS:
        del cache[next(iter(cache))]
