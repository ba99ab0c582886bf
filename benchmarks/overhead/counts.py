"""What a recorder does, in counts that no other load can move: operations, synchronisations, memory.

Time is for a quiet machine; these are for CI. Operations are counted by the profiler, which sees what is issued in
forward hooks, in tensor hooks during the backward and in the optimizer's hooks, also where dispatch modes see nothing.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch.autograd.profiler import profile
from torch.autograd.profiler_util import FunctionEvent

SYNC = "aten::_local_scalar_dense"
"""What `.item()`, `float(tensor)` and `if tensor:` come down to; on a GPU each waits for the device."""


@dataclass(frozen=True)
class Operations:
    """ATen operations by name.

    Args:
        issued: those that Python or autograd asked for; what an operation calls in turn is not among them.
        syncs: how often a tensor's value was taken to the host.
    """

    issued: Counter[str]
    syncs: int

    @property
    def total(self) -> int:
        """How many were issued."""
        return self.issued.total()

    def __sub__(self, other: Operations) -> Operations:
        """What there is more, name by name; a name may be negative."""
        more = Counter(self.issued)
        more.subtract(other.issued)
        return Operations(Counter({name: n for name, n in more.items() if n}), self.syncs - other.syncs)


def operations(function: Callable[[], object]) -> Operations:
    """The operations that are issued while `function` runs, in this thread and in the backwards that it starts."""
    with profile(use_kineto=False) as record:
        function()
    events = record.function_events or []
    issued = Counter(event.name for event in events if event.name.startswith("aten::") and not _within(event))
    return Operations(issued, sum(event.name == SYNC for event in events))


def _within(event: FunctionEvent) -> bool:
    """Whether another operation called this one."""
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("aten::"):
            return True
        parent = parent.cpu_parent
    return False


@dataclass(frozen=True)
class Memory:
    """What a process holds at one moment.

    Args:
        resident: bytes in RAM, which also move with what the allocator keeps for later.
        heap: bytes in use that malloc gave out (tensors, SQLite); 0 where the C library cannot tell.
        blocks: small Python objects.
    """

    resident: int
    heap: int
    blocks: int

    def __sub__(self, other: Memory) -> Memory:
        return Memory(self.resident - other.resident, self.heap - other.heap, self.blocks - other.blocks)


def memory() -> Memory:
    """Now, after a garbage collection."""
    gc.collect()
    return Memory(_resident(), _heap(), sys.getallocatedblocks())


def measurable() -> bool:
    """Whether this system tells what `memory` asks for."""
    return Path("/proc/self/statm").exists() and hasattr(ctypes.CDLL(None), "mallinfo2")


def growth(step: Callable[[], object], steps: int, warm: int) -> Memory:
    """By how much `steps` further calls after `warm` ones make the process grow."""
    for _ in range(warm):
        step()
    before = memory()
    for _ in range(steps):
        step()
    return memory() - before


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`: ten sizes, of which two are read."""

    _fields_ = (
        ("before", ctypes.c_size_t * 4),
        ("mapped", ctypes.c_size_t),
        ("between", ctypes.c_size_t * 2),
        ("in_use", ctypes.c_size_t),
        ("after", ctypes.c_size_t * 2),
    )


def _heap() -> int:
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return 0
    library.mallinfo2.restype = _MallInfo
    info = library.mallinfo2()
    return int(info.in_use + info.mapped)
