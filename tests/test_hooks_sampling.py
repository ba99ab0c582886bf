"""A sample reads the same chunks by either way, and no matrix has a shape that it is blind to."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import ceil, isqrt
from unittest.mock import patch

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.hooks import _kernel as kernel
from gradscope.hooks import _moments as moments
from gradscope.hooks._blocks import Pool
from gradscope.hooks._histogram import log2_histogram
from gradscope.hooks._lattice import CHUNK, Lattice, chunks_of
from gradscope.hooks._moments import Arena
from gradscope.hooks._reduction import sample_of
from gradscope.recording import Moments

natively = pytest.mark.skipif(kernel.native is None, reason="the native kernel was not built here")
WAYS = [pytest.param("native", marks=natively), "torch"]

_BITS = 200
_TURN = (isqrt(5 << 2 * _BITS) - (1 << _BITS)) // 2  # (√5 − 1)/2 over 2^-200


def entries_read(entries: int, stride: int, offset: int) -> NDArray[np.int64]:
    """Those of the lattice as it is defined, with a fraction of 200 bits, of which the code has 32.

    The two differ where a place is less than stride/2^32 below the next, which nothing that is asked here is.
    """
    chunks = ceil(entries / CHUNK)
    stride = min(stride, chunks)
    firsts = []
    for k in range(ceil(chunks / stride)):
        turn = stride * (k * k * _TURN % (1 << _BITS)) >> _BITS
        firsts.append(CHUNK * (k * stride + (offset + turn) % stride))
    found = (np.array(firsts)[:, None] + np.arange(CHUNK)).ravel()
    return found[found < entries]


# Fewer entries than a chunk, fewer chunks than the stride, a last chunk that is incomplete; beyond 131,072 entries the
# kernel reads several segments.
SIZES = [1, 15, 16, 17, 80, 100, 4097, 8192, 40_001, 65_535, 131_072, 131_073, 200_704, 300_007, 600_011]
STRIDES = [2, 3, 4, 7, 21, 49, 8191, 8193, 1 << 33]
OFFSETS = [0, 1, 2, 6, 48, 5000, (1 << 40) + 3]


@pytest.mark.parametrize("entries", SIZES)
def test_torch_reads_the_chunks_of_the_lattice(entries: int) -> None:
    x = torch.arange(entries)
    for stride in STRIDES:
        for offset in OFFSETS:
            read = sample_of(x, stride, offset).numpy()
            assert np.array_equal(read, entries_read(entries, stride, offset)), (stride, offset)


def test_every_chunk_is_read_at_just_one_offset() -> None:
    for entries in SIZES[:-4]:
        chunks = ceil(entries / CHUNK)
        for stride in (2, 3, 21, 49, 257):
            read = [chunks_of(entries, stride, offset) for offset in range(min(stride, chunks))]
            assert sorted(np.concatenate(read).tolist()) == list(range(chunks))


def natively_read(
    x: Tensor, lattices: tuple[int, int, int, int], minus: Tensor | None = None, threads: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Row and histogram, of the sample where the strides are above 1."""
    assert kernel.native is not None
    row, counts = np.full(10, 7.0), np.zeros(64, dtype=np.int64)
    own = [array.__array_interface__["data"][0] for array in (row, counts)]
    other = 0 if minus is None else minus.data_ptr()
    job = [x.data_ptr(), x.numel(), kernel.CODES[x.dtype], *own, other, 0, *lattices, np.float64(1).view(np.int64)]
    table = np.array([job], dtype=np.int64)
    kernel.native.run(table.__array_interface__["data"][0], 1, threads)
    return row, counts


def numbers(entries: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Of many sizes, and zeros: no two chunks are alike."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(entries, generator=generator, dtype=torch.float64)
    x = x * torch.exp2(torch.randint(-6, 7, (entries,), generator=generator).double())
    return (x * (torch.rand(entries, generator=generator) < 0.9)).to(dtype)


@natively
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("entries", SIZES)
def test_the_kernel_reads_the_chunks_of_the_lattice(entries: int, dtype: torch.dtype) -> None:
    x, y = numbers(entries, dtype, 0), numbers(entries, dtype, 1)
    sampled = 0
    for stride, offset in itertools.product(STRIDES[1:], OFFSETS[3:]):
        lattices = stride, offset, stride + 2, offset + 1  # the histogram's is another
        chosen, counted = entries_read(entries, *lattices[:2]), entries_read(entries, *lattices[2:])
        for minus in (None, y):
            values = x.double() if minus is None else x.double() - y.double()
            row, counts = natively_read(x, lattices, minus)
            read, largest = values[chosen].numpy(), float(values.abs().max())
            if largest > 10 * np.sqrt(np.square(read).mean()):  # a sample that does not tell
                read = values.numpy()
            sampled += len(read) < entries
            # The sums are float64's: 1e-12 of the largest entry. One chunk for another moves them by more than 1e-6.
            assert abs(row[1] - read.mean()) <= 1e-12 * largest, lattices
            std = row[9] * (row[2] / entries) ** 0.5
            assert abs(std - read.std()) <= 1e-12 * read.std() + 1e-15 * largest, lattices
            assert row[5] == np.rint((read == 0).sum() * (entries / len(read))), lattices
            assert np.array_equal(counts, log2_histogram(values[counted]).numpy()), lattices
    assert sampled or entries < 4 * CHUNK


@natively
def test_a_sample_has_the_same_bits_for_any_number_of_threads() -> None:
    x = numbers(1_000_003, torch.float32, 0)
    for stride, offset in ((3, 1), (245, 0), (245, 151), (8191, 5000), (40_001, 39_000)):
        lattices = stride, offset, stride + 2, offset
        row, counts = natively_read(x, lattices)
        for threads in (2, 3):
            other, others = natively_read(x, lattices, threads=threads)
            assert other.tobytes() == row.tobytes()
            assert np.array_equal(others, counts)


def estimated(x: Tensor, step: int, way: str) -> Moments:
    """By the recorder, of the step of that number."""
    with patch.object(moments, "native", kernel.native if way == "native" else None):
        arena = Arena(Pool(), Lattice(step))
        row = arena.observe(x)
        arena.send()
        assert row is not None
        return arena.host.moments([row])


@natively
@pytest.mark.parametrize("entries", [8193, 65_531, 300_007])
def test_both_ways_estimate_the_same_at_every_step(entries: int) -> None:
    x = numbers(entries, torch.float32, 0)
    for step in range(12):
        a, b = estimated(x, step, "native"), estimated(x, step, "torch")
        assert (a.count, a.zeros, a.min, a.max) == (b.count, b.zeros, b.min, b.max)
        assert np.allclose((a.mean, a.std), (b.mean, b.std), rtol=1e-12, atol=1e-12 * float(x.abs().max()))


def test_no_width_of_a_matrix_meets_the_same_columns_always() -> None:
    # An eighth of the columns is due an eighth of the sample. Of 256 independent chunks, as many as most samples have,
    # less than a quarter of that, or more than twice, would be there once in 6 million times (binomial); of 171, the
    # fewest here, once in 65,000, but those are a third of all chunks, which leaves less to chance.
    bands, rows = 8, (32, 50, 64, 100, 128, 256, 300, 512, 1000, 2048, 10_007)
    for width in range(17, 2001):
        for height in rows[width % 2 :: 2]:
            entries = width * height
            stride, offset = Lattice(step=width).of(entries)
            if stride > 1:
                read = (CHUNK * chunks_of(entries, stride, offset)[:, None] + np.arange(CHUNK)).ravel()
                read = read[read < entries]
                met = np.bincount(read % width * bands // width, minlength=bands) / len(read)
                due = np.bincount(np.arange(width) * bands // width, minlength=bands) / width
                assert 0.25 < (met / due).min() <= (met / due).max() < 2, (width, height, met / due)


@pytest.mark.parametrize("way", WAYS)
def test_pictures_with_an_empty_border_are_estimated_as_the_exact_ones(way: str) -> None:
    pictures = torch.zeros(256, 28, 28)  # a row of 784 entries is as long as the stride
    pictures[:, 4:24, 4:24] = torch.rand(256, 20, 20, generator=torch.Generator().manual_seed(0))
    squares = pictures.double().square().view(-1, CHUNK).mean(1)
    exact = squares.mean().sqrt().item()
    found = np.array([float(np.hypot(m.mean, m.std)[0]) for m in (estimated(pictures, i, way) for i in range(8))])
    # 256 of the chunks, whose mean squares deviate by 0.79 of their mean: the mean of as many independent ones deviates
    # by 4.9 %, its square root by half of that, 2.5 %, and the mean over eight steps by 0.9 %.
    deviation = (squares.std() / squares.mean()).item() / 256**0.5 / 2
    assert np.abs(found / exact - 1).max() < 3 * deviation
    assert abs(found.mean() / exact - 1) < 3 * deviation / 8**0.5


def rows_of_an_embedding() -> Tensor:
    """Its gradient: zero but for the rows of a few tokens."""
    gradient = torch.zeros(100_000, 32)
    gradient[torch.arange(32) * 3001] = 1e-3 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    return gradient


def gradient_of_logits() -> Tensor:
    """Of a cross-entropy over 1,000 classes: most of it is in one entry a row."""
    logits = torch.randn(512, 1000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.nn.functional.cross_entropy(logits, torch.arange(512)).backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [rows_of_an_embedding, gradient_of_logits])
def test_all_is_read_where_a_few_entries_are_most_of_it(make: Callable[[], Tensor], way: str) -> None:
    x = make()
    exact = Moments.from_array(x.double().numpy())
    for step in range(4):
        found = estimated(x, step, way)
        assert (found.count, found.zeros) == (exact.count, exact.zeros)
        assert np.allclose((found.mean, found.std), (exact.mean, exact.std), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_entries_of_one_byte_are_sampled_as_the_wider_ones_that_they_are(dtype: torch.dtype) -> None:
    x = torch.randn(100, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows, counts = [], []
    for tensor in (x, x.float()):
        arena = Arena(Pool(histograms=True), Lattice(3), Lattice(3))
        row = arena.observe(tensor)
        arena.send()
        assert row is not None
        rows.append(arena.host.moments([row]))
        counts.append(arena.host.histograms([row]))
    for name in ("count", "mean", "std", "min", "max", "zeros"):
        np.testing.assert_allclose(getattr(rows[0], name), getattr(rows[1], name), rtol=1e-12, err_msg=name)
    assert np.array_equal(*counts)
