"""The native kernel gives what float64 numpy gives, whichever variant the processor runs."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gradscope.hooks import _kernel as kernel
from gradscope.hooks._histogram import log2_histogram
from gradscope.hooks._lattice import CHUNK, chunks_of
from gradscope.hooks._rows import COLUMNS

if kernel.native is None:
    pytest.skip("the native kernel was not built here, or GRADSCOPE_NATIVE=0", allow_module_level=True)
native = kernel.native

DTYPES = tuple(kernel.CODES)
SIZES = [*range(70), 127, 4095, 4096, 4097, 8191, 8192, 8193, 100_003, 131_073, 300_007]


@pytest.fixture(params=native.VARIANTS)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.VARIANT
    native.set_variant(request.param)
    yield request.param
    native.set_variant(before)


def expected(x: Tensor, dtype: torch.dtype | None = None) -> NDArray[np.float64]:
    """The row of a tensor by float64 numpy, two passes over the values over a power of two; `scale` is left out."""
    values = x.detach().double().numpy().ravel()
    finite = values[np.isfinite(values)]
    tiny = torch.finfo(dtype or x.dtype).tiny
    scale = 2.0 ** np.floor(np.log2(np.abs(finite).max())) if finite.size and np.abs(finite).max() > 0 else 1.0
    scaled = finite / scale
    mean = scaled.mean() if finite.size else 0.0
    mean += (scaled - mean).mean() if finite.size else 0.0
    std = np.sqrt(np.square(scaled - mean).mean()) if finite.size else 0.0
    ends = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    subnormals = ((finite != 0) & (np.abs(finite) < tiny)).sum()
    counts = ((values == 0).sum(), np.isnan(values).sum(), np.isinf(values).sum(), subnormals)
    return np.array([values.size, mean * scale, std * scale, *ends, *counts])


def with_std(row: NDArray[np.float64]) -> NDArray[np.float64]:
    """A row with its standard deviation in place of m2 and without scale."""
    count, mean, m2, low, high, zeros, nans, infs, subnormals, scale = row
    finite = count - nans - infs
    return np.array(
        [count, mean, scale * np.sqrt(m2 / finite) if finite else 0.0, low, high, zeros, nans, infs, subnormals]
    )


def agree(found: NDArray[np.float64], oracle: NDArray[np.float64]) -> None:
    """Counts and ends exactly; mean and std to the rounding of float64 at the size of the largest entry."""
    found = with_std(found)
    assert np.array_equal(found[[0, 3, 4, 5, 6, 7, 8]], oracle[[0, 3, 4, 5, 6, 7, 8]]), (found, oracle)
    largest = max(abs(oracle[3]), abs(oracle[4]))
    assert abs(found[1] - oracle[1]) <= 1e-12 * largest, (found, oracle)
    assert abs(found[2] - oracle[2]) <= 1e-12 * oracle[2] + 1e-15 * largest, (found, oracle)


def reduce(x: Tensor) -> NDArray[np.float64]:
    row = np.full(10, 7.0)
    bad = native.reduce(x.data_ptr(), x.numel(), kernel.CODES[x.dtype], row.__array_interface__["data"][0])
    assert bad == row[6] + row[7]
    return row


def run(
    tensors: list[Tensor],
    *,
    minus: list[Tensor] | None = None,
    copy: list[Tensor] | None = None,
    threads: int = 1,
    histograms: bool = True,
    lattice: tuple[int, int] = (1, 0),
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rows and histograms of several tensors in one call; the histograms count the lattice's chunks."""
    rows, counts = np.full((len(tensors), 10), 7.0), np.zeros((len(tensors), 64), dtype=np.int64)
    jobs = np.zeros((len(tensors), 12), dtype=np.int64)
    for i, x in enumerate(tensors):
        at = [x.data_ptr(), x.numel(), kernel.CODES[x.dtype]]
        at += [rows[i].__array_interface__["data"][0], counts[i].__array_interface__["data"][0] * histograms]
        at += [minus[i].data_ptr() if minus else 0, copy[i].data_ptr() if copy else 0, 1, 0, *lattice]
        jobs[i] = [*at, np.float64(1).view(np.int64)]
    native.run(jobs.__array_interface__["data"][0], len(jobs), threads)
    return rows, counts


def mixture(size: int, dtype: torch.dtype, seed: int = 0, bad: bool = True) -> Tensor:
    """Values of many sizes, zeros of both signs, subnormals, and what is not finite."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=generator, dtype=torch.float64)
    x = (x * torch.exp2(torch.randint(-12, 12, (size,), generator=generator).double())).to(dtype)
    tiny = torch.finfo(dtype).tiny
    special = [0.0, -0.0, tiny, -tiny / 2, tiny / 4] + ([float("nan"), float("inf"), float("-inf")] if bad else [])
    for i, value in enumerate(special):
        x[torch.rand(size, generator=generator) < 0.02] = torch.tensor(value, dtype=dtype)
        if size > len(special):
            x[i] = value
    return x


def test_the_columns_are_those_of_a_row() -> None:
    assert native.COLUMNS == COLUMNS
    assert native.VARIANT in native.VARIANTS


@pytest.mark.parametrize("bad", [False, True], ids=["finite", "with NaN and infinity"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_those_of_float64_numpy_at_any_size(dtype: torch.dtype, bad: bool, variant: str) -> None:
    for size in SIZES:
        x = mixture(size, dtype, seed=size, bad=bad)
        agree(reduce(x), expected(x))


values = st.lists(
    st.floats(width=32) | st.sampled_from([0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-45, 3e38]),
    max_size=80,
)


@settings(deadline=None, max_examples=300)
@given(values, st.sampled_from(native.VARIANTS), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_rows_of_any_values_are_those_of_float64_numpy(entries: list[float], name: str, dtype: torch.dtype) -> None:
    before = native.VARIANT
    native.set_variant(name)
    try:
        x = torch.tensor(entries, dtype=torch.float32).to(dtype)
        agree(reduce(x), expected(x))
    finally:
        native.set_variant(before)


@pytest.mark.parametrize("size", [1e-37, 1e-30, 1e30, 1e37])
def test_squares_that_leave_float32_are_no_trouble(size: float, variant: str) -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * size
    agree(reduce(x), expected(x))


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e200, 1e300])
def test_squares_that_leave_float64_are_no_trouble(size: float, variant: str) -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * size
    agree(reduce(x), expected(x))


@pytest.mark.parametrize("mean", [1e3, 1e6, -1e6])
def test_a_small_spread_about_a_large_mean_is_exact(mean: float, variant: str) -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) + mean
    agree(reduce(x), expected(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_histogram_is_that_of_the_exponents(dtype: torch.dtype, variant: str) -> None:
    for size in (0, 1, 15, 16, 17, 1000, 8193, 150_001):
        x = mixture(size, dtype, seed=size)
        _, counts = run([x])
        assert np.array_equal(counts[0], log2_histogram(x).numpy()), size


@pytest.mark.parametrize("unit", [0.5, 65_536.0, 3.0])
def test_the_histogram_counts_entries_over_their_unit(unit: float, variant: str) -> None:
    x = mixture(5000, torch.float32)
    row, counts = np.zeros(10), np.zeros(64, dtype=np.int64)
    at = [array.__array_interface__["data"][0] for array in (row, counts)]
    native.reduce_strided(x.data_ptr(), (5000,), (1,), native.FLOAT32, *at, 0, 0, 1, 0, 1, 0, unit)
    assert np.array_equal(counts, log2_histogram(x.double() / unit).numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_difference_is_taken_in_float64_and_a_copy_made_on_the_way(dtype: torch.dtype, variant: str) -> None:
    for size in (1, 33, 5000, 140_000):
        x, y = mixture(size, dtype, 1, bad=False), mixture(size, dtype, 2, bad=False)
        copy = torch.zeros_like(x)
        rows, counts = run([x], minus=[y], copy=[copy])
        difference = x.double() - y.double()
        agree(rows[0], expected(difference, dtype))
        assert np.array_equal(counts[0], log2_histogram(difference).numpy())
        assert torch.equal(copy.view(torch.uint8), x.view(torch.uint8))


def test_a_difference_read_at_once_is_that_in_float64(variant: str) -> None:
    """Blocks of 2,048 entries are read without staging unless something in them is unusual: here are both."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randn(40_011, generator=rng)
    x = y + 1e-3 * torch.randn(40_011, generator=rng)
    x[:5000:3] = y[:5000:3]  # equal
    x[9000:9010], y[9000:9010] = 3e-38, 2.9e-38  # their differences are subnormal
    x[15_000], y[20_000], x[20_001] = math.nan, math.inf, -math.inf
    y[25_000:30_000] = x[25_000:30_000] - 0.125  # far from 0 by their spread
    x[35_000:37_000], y[35_000:37_000] = 3e38, -3e38
    for first, last in ((0, 40_011), (1, 40_000), (5, 2048), (7, 30), (16_384, 19_000)):
        taken, given = x[first:last], y[first:last]
        difference = taken.double() - given.double()
        (row,), _ = run([taken], minus=[given], histograms=False)
        agree(row, expected(difference, torch.float32))
        (row_too,), (counts,) = run([taken], minus=[given], lattice=(3, 1))
        assert row_too.tobytes() == row.tobytes()
        chunks = chunks_of(last - first, 3, 1)
        read = np.unique((chunks[:, None] * CHUNK + np.arange(CHUNK)).clip(max=last - first - 1))
        assert np.array_equal(counts, log2_histogram(difference[read]).numpy())


def test_copies_that_go_past_the_caches_are_whole(variant: str) -> None:
    tensors = [mixture(size, torch.float32, seed=size) for size in (2_500_003, 17, 64, 1, 40_000)]
    room = torch.zeros(sum(map(len, tensors)) + 3)
    copies = list(room[3:].split([len(x) for x in tensors]))  # none of them aligned alike
    together = run(tensors, copy=copies)[0]
    assert together.tobytes() == run(tensors)[0].tobytes()
    for x, copy in zip(tensors, copies, strict=True):
        assert torch.equal(copy.view(torch.int32), x.view(torch.int32))
    (row,), _ = run([tensors[0]], minus=[copies[0]], copy=[copies[0]], histograms=False)
    finite = int(torch.isfinite(tensors[0]).sum())
    assert (row[0] - row[6] - row[7], row[1], row[2], row[5]) == (finite, 0.0, 0.0, finite)


def reduce_strided(tensor: Tensor) -> np.ndarray:
    row = np.zeros(10)
    address, shape = tensor.data_ptr(), tuple(tensor.shape)
    native.reduce_strided(
        address, shape, tensor.stride(), kernel.CODES[tensor.dtype], row.__array_interface__["data"][0]
    )
    return row


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_are_read_whole(dtype: torch.dtype, variant: str) -> None:
    x = mixture(60 * 70 * 3, dtype).view(60, 70, 3)
    base = mixture(1000, dtype)
    layouts = [x, x.transpose(0, 1), x.permute(2, 1, 0), x[::2, 3:], x[:, :, 1], x[:1].expand(5, -1, -1), base[::7]]
    layouts += [base[:900].as_strided((30, 30), (1, 1)), base[:900].as_strided((2, 3, 5), (15, 1, 3))]
    for tensor in [*layouts, x[:0], x.view(4, 15, 70, 3).to(memory_format=torch.channels_last)]:
        agree(reduce_strided(tensor), expected(tensor))


def test_entries_that_leave_no_gap_are_read_as_they_lie_in_memory(variant: str) -> None:
    x = mixture(4 * 15 * 70 * 3, torch.float32).view(4, 70, 3, 15)
    for order in itertools.permutations(range(4)):
        assert reduce_strided(x.permute(order)).tobytes() == reduce(x).tobytes()


def test_the_bits_are_the_same_for_any_number_of_threads(variant: str) -> None:
    tensors = [mixture(size, torch.float32, seed=size) for size in (1_000_003, 300_000, 17, 64, 262_144, 5000)]
    alone = run(tensors, threads=1)
    for threads in (2, 3, 8):
        together = run(tensors, threads=threads)
        assert alone[0].tobytes() == together[0].tobytes()
        assert np.array_equal(alone[1], together[1])
        for x, row in zip(tensors, alone[0], strict=True):
            found, dense, apart = np.zeros((3, 10))
            at = [row.__array_interface__["data"][0] for row in (found, dense, apart)]
            native.reduce(x.data_ptr(), x.numel(), native.FLOAT32, at[0], threads)
            rest = (0, 0, 0, 1, 0, 1, 0, 1.0, threads)
            native.reduce_strided(x.data_ptr(), (x.numel(),), (1,), native.FLOAT32, at[1], *rest)
            twice = torch.stack([x, -x], dim=1)
            native.reduce_strided(twice.data_ptr(), (x.numel(),), (2,), native.FLOAT32, at[2], *rest)
            assert row.tobytes() == found.tobytes() == dense.tobytes() == apart.tobytes()


_LARGE_ACTIVATION = """
import os, torch
from gradscope.hooks._blocks import Pool
from gradscope.hooks._moments import Arena
torch.set_num_threads(2)
x, arena = torch.full((1 << 20,), 2.0), Arena(Pool())
y = torch.ones(1 << 10, 1 << 10).T[:, ::2]
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
arena.observe_as_it_lies(torch.ones(5))
assert threads() == before
arena.observe_as_it_lies({tensor})
assert threads() == before + 1
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="nothing tells of a process's threads here")
@pytest.mark.parametrize("tensor", ["x", "y"])
def test_a_large_activation_is_read_by_as_many_threads_as_torch_has(tensor: str) -> None:
    code = _LARGE_ACTIVATION.replace("{tensor}", tensor)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # torch makes no threads of its own before
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_flushing_of_subnormal_numbers_changes_nothing(variant: str) -> None:
    x = mixture(10_000, torch.float32)
    before = reduce(x)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        after = reduce(x)
    finally:
        torch.set_flush_denormal(False)
    assert before[8] > 0
    assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_few_subnormal_entries_are_not_flushed(variant: str, dtype: torch.dtype) -> None:
    x = torch.full((8,), 3 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps, dtype=dtype)
    expected = x.double().numpy()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    table, found = np.array([[x.data_ptr(), 8, kernel.CODES[dtype]]], dtype=np.int64), np.zeros((1, 8))
    try:
        native.some_entries(table.__array_interface__["data"][0], 1, found.__array_interface__["data"][0])
    finally:
        torch.set_flush_denormal(False)
    assert 0.0 < expected[0] < torch.finfo(dtype).smallest_normal
    assert np.array_equal(found[0], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_few_entries_reach_from_the_beginning_to_the_end(dtype: torch.dtype) -> None:
    tensors = [mixture(size, dtype, bad=False) for size in (0, 1, 7, 8, 9, 1000)]
    table = np.array([[x.data_ptr(), x.numel(), kernel.CODES[dtype]] for x in tensors], dtype=np.int64)
    found = np.zeros((len(tensors), 8))
    native.some_entries(table.__array_interface__["data"][0], len(table), found.__array_interface__["data"][0])
    for x, line in zip(tensors, found, strict=True):
        few = x[:: max(1, x.numel() // 8)][:8].double().numpy()
        assert np.array_equal(line[: len(few)], few)
        assert not line[len(few) :].any()


def test_other_threads_of_python_run_while_a_large_tensor_is_read() -> None:
    x, ticks, done = torch.ones(1 << 22), [0], threading.Event()

    def tick() -> None:
        while not done.is_set():
            time.sleep(0.0002)  # gives way
            ticks[0] += 1

    other = threading.Thread(target=tick)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody is made to give way: the other runs only while the kernel lets it
    other.start()
    try:
        before = ticks[0]
        for _ in range(5000):  # a busy machine may not wake the other thread during the first of them
            reduce(x)
            if ticks[0] > before:
                break
        assert ticks[0] > before
    finally:
        sys.setswitchinterval(interval)
        done.set()
        other.join()


def test_callers_in_several_threads_do_not_disturb_each_other() -> None:
    """Four at once, of which one has the pool's threads and the others do their work alone."""
    tensors = [[mixture(300_007 + 1000 * i, torch.float32), mixture(5000 + i, torch.float16)] for i in range(4)]
    alone = [run(some, threads=2)[0].tobytes() for some in tensors]
    wrong: list[int] = []

    def call(i: int) -> None:
        for _ in range(100):
            if run(tensors[i], threads=2)[0].tobytes() != alone[i]:
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


_FORK = """
import os, sys
from tests.test_native import mixture, run
import torch
tensors = [mixture(1_000_003, torch.float32), mixture(400_000, torch.float32)]
before = run(tensors, threads=2)[0].tobytes()
child = os.fork()
if child == 0:
    os._exit(0 if run(tensors, threads=2)[0].tobytes() == before else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_makes_threads_of_its_own() -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORK], cwd=root, timeout=60, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((8, -1, 0, 8), "entries is -1; it must be 0 or more"),
        ((8, 1, 9, 8), r"dtype is 9; it must be FLOAT32 \(0\), FLOAT64 \(1\), FLOAT16 \(2\) or BFLOAT16 \(3\)"),
        ((0, 1, 0, 8), "address is 0; it must be that of 1 entries"),
        ((8, 1, 0, 0), "row is 0; it must be the address of 10 float64"),
    ],
)
def test_what_is_not_allowed_is_named(arguments: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        native.reduce(*arguments)


def test_a_variant_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="name is 'mmx'; this processor has the variants"):
        native.set_variant("mmx")
