"""What the native kernel costs: time and bytes read per second, beside torch's copy of the same bytes.

python benchmarks/native_kernel.py [ROUNDS]

One thread. Kinds are measured in turn, ROUNDS (31) times; a figure is the median. `torch alone` is what is done where
the kernel was not built.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor

from gradscope.hooks._blocks import Pool
from gradscope.hooks._kernel import CODES, native
from gradscope.hooks._moments import Arena
from gradscope.hooks._reduction import reduce_on_cpu

SIZES = (1 << 10, 1 << 16, 1 << 20, 1 << 24)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KINDS = ("moments", "with histogram", "minus another", "strided", "torch alone", "copy")


def calls(x: Tensor) -> dict[str, Callable[[], object]]:
    """What is measured of a tensor, by its kind."""
    assert native is not None
    code, row, counts = CODES[x.dtype], np.zeros(10), np.zeros(64, np.int64)
    address, entries = x.data_ptr(), x.numel()
    line, histogram = row.ctypes.data, counts.ctypes.data
    other, target = x.clone(), torch.empty_like(x)
    apart = x.new_empty(2 * entries)[::2].copy_(x)
    strided = (apart.data_ptr(), (entries,), (2,), code, line)
    flat = (address, (entries,), (1,), code, line)
    torch_row = Arena(Pool(False)).next_row(torch.device("cpu"))[0].host
    assert torch_row is not None
    made: tuple[Callable[[], object], ...] = (
        lambda: native.reduce(address, entries, code, line),
        lambda: native.reduce_strided(*flat, histogram),
        lambda: native.reduce_strided(*flat, 0, other.data_ptr()),
        lambda: (apart, native.reduce_strided(*strided)),
        lambda: reduce_on_cpu(x, None, torch_row[0]),
        lambda: target.copy_(x),
    )
    return dict(zip(KINDS, made, strict=True))


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Of one call, the mean over some in a row."""
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - started) / repeats


def main(rounds: int = 31) -> None:
    """Print the table."""
    if native is None:
        sys.exit("The native kernel was not built here, or GRADSCOPE_NATIVE is 0: there is nothing to measure.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"variant {native.VARIANT}, torch {torch.__version__}, one thread: µs a call (GB/s read)\n")
    print(f"{'dtype':>9} {'entries':>9}" + "".join(f"{kind:>20}" for kind in KINDS))
    for dtype in DTYPES:
        for size in SIZES:
            x = torch.randn(size).to(dtype)
            measured = calls(x)
            repeats = max(1, min(1000, (1 << 21) // size))
            times: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for _ in range(rounds):
                for kind, function in measured.items():
                    times[kind].append(seconds(function, repeats))
            gigabytes = size * x.element_size() / 1e9
            figures = [median(times[kind]) for kind in KINDS]
            cells = [
                f"{1e6 * s:>10.1f} ({gigabytes * (1 + (k == 'minus another')) / s:5.1f})"
                for k, s in zip(KINDS, figures, strict=True)
            ]
            print(
                f"{str(dtype).removeprefix('torch.'):>9} {size:>9}" + "".join(f"{cell:>20}" for cell in cells),
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
