"""Bytes from each rank to each, on the host, within a time limit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

_HEAD = 64
"""Bytes of a message's head; its last eight say how long the body is."""

_made: Counter[tuple[int, ...]] = Counter()
"""How often this process has met with these ranks: each meeting has a name of its own in the store."""


class RankLost(RuntimeError):
    """Ranks cannot merge any more: one is dead, late or at another step. The sentence says which, where known."""


class Exchange:
    """A meeting of ranks, on gloo: apart from the training's own collectives, and without a GPU.

    Not made by `torch.distributed.new_group`: that wants also those ranks that take no part or, told not to, names
    the group so that a second one meets the first one's leavings; and it is gone after `destroy_process_group()`.
    Messages go from each to each, not round a ring, so that it is known who did not answer.

    Args:
        ranks: global numbers, ascending; each of them has to make its exchange at the same point of its program.
        timeout: seconds to wait for the others, here and at each call.

    Attributes:
        timeout: of the next call.

    Raises:
        RankLost: some rank did not come.
    """

    def __init__(self, ranks: tuple[int, ...], timeout: float) -> None:
        self._ranks = ranks
        self.timeout = timeout
        self._me = ranks.index(dist.get_rank())
        name = f"gradscope/{'_'.join(map(str, ranks))}/{_made[ranks]}"
        _made[ranks] += 1
        if not dist.is_gloo_available():
            raise RankLost("this build of torch has no gloo, by which ranks merge")
        c10d: Any = dist.distributed_c10d
        try:
            store = c10d.PrefixStore(name, c10d._get_default_store())
            self._group: Any = c10d.ProcessGroupGloo(store, self._me, len(ranks), timedelta(seconds=timeout))
        except Exception as error:
            everyone = ", ".join(map(str, ranks))
            raise RankLost(f"ranks {everyone} did not meet within {timeout:g} s ({_first_line(error)})") from error

    def __call__(self, head: bytes, body: bytes) -> list[tuple[bytes, bytes]]:
        """Each rank's head (at most 56 bytes) and body, in the order of the ranks.

        Raises:
            RankLost: a rank did not answer in time.
        """
        deadline = time.monotonic() + self.timeout
        others = [peer for peer in range(len(self._ranks)) if peer != self._me]
        body = body or b"\0"
        mine = _tensor(head.ljust(_HEAD - 8, b"\0") + len(body).to_bytes(8, "little")), _tensor(body)
        sent = [(peer, self._send(part, peer, tag, deadline)) for peer in others for tag, part in enumerate(mine)]
        heads = self._receive(dict.fromkeys(others, _HEAD), 0, deadline)
        bodies = self._receive({peer: int.from_bytes(heads[peer][-8:], "little") for peer in others}, 1, deadline)
        for peer, work in sent:
            self._wait(work, peer, deadline)
        heads[self._me], bodies[self._me] = head, body
        return [(heads[peer][: len(head)], bodies[peer]) for peer in range(len(self._ranks))]

    def _send(self, part: Tensor, peer: int, tag: int, deadline: float) -> Any:
        with self._blaming(peer, deadline):
            return self._group.send([part], peer, tag)

    def _receive(self, sizes: dict[int, int], tag: int, deadline: float) -> dict[int, bytes]:
        buffers = {peer: np.empty(size, dtype=np.uint8) for peer, size in sizes.items()}
        under_way = []
        for peer, buffer in buffers.items():
            with self._blaming(peer, deadline):
                under_way.append((peer, self._group.recv([torch.from_numpy(buffer)], peer, tag)))
        for peer, work in under_way:
            self._wait(work, peer, deadline)
        return {peer: buffer.tobytes() for peer, buffer in buffers.items()}

    def _wait(self, work: Any, peer: int, deadline: float) -> None:
        with self._blaming(peer, deadline):
            if not work.wait(timedelta(seconds=max(deadline - time.monotonic(), 0.001))):
                raise TimeoutError("no answer")

    @contextmanager
    def _blaming(self, peer: int, deadline: float) -> Iterator[None]:
        """Whatever gloo says inside, it is about this rank."""
        try:
            yield
        except Exception as error:
            late = time.monotonic() > deadline - 0.05
            reason = f"did not answer within {self.timeout:g} s" if late else f"is gone ({_first_line(error)})"
            raise RankLost(f"rank {self._ranks[peer]} {reason}") from error

    def close(self) -> None:
        """Leave; the others find out when they call."""
        self._group = None


def _tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


def _first_line(error: Exception) -> str:
    """What gloo says, without the place in its source."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.rpartition("] ")[2].split(". This is typically")[0] or type(error).__name__
