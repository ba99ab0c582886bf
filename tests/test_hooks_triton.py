"""The Triton kernels give what float64 numpy gives: on a GPU, or in Triton's interpreter, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradscope.hooks import _device as device_door
from gradscope.hooks._histogram import BINS, log2_histogram
from gradscope.hooks._rows import COLUMNS, WIDTH
from gradscope.recording import GradScopeWarning

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED
TRITON = find_spec("triton") is not None
DEVICE = "cuda" if GPU else "cpu"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

runs_kernels = pytest.mark.skipif(
    not TRITON or not (GPU or INTERPRETED),
    reason="no CUDA device with Triton here; without one the kernels run in Triton's interpreter, by a test below",
)

if TRITON:
    from gradscope.hooks import _launching as launching

    TILE = {dtype: launching.shape_for(dtype, False).tile for dtype in DTYPES}
else:
    TILE = dict.fromkeys(DTYPES, 0)


@pytest.fixture(autouse=True)
def nothing_waits_for_the_device() -> Iterator[None]:
    if GPU:
        torch.cuda.set_sync_debug_mode("error")
    yield
    if GPU:
        torch.cuda.set_sync_debug_mode("default")


def to_host(tensor: Tensor) -> np.ndarray:
    if GPU:
        torch.cuda.set_sync_debug_mode("default")
    found = tensor.cpu().numpy()
    if GPU:
        torch.cuda.set_sync_debug_mode("error")
    return found


def to_device(tensor: Tensor) -> Tensor:
    return tensor.pin_memory().to(DEVICE, non_blocking=True) if GPU else tensor


def reduced(
    x: Tensor, minus: Tensor | None = None, unit: Tensor | float | None = None, counting: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The row and the counts of one tensor."""
    row = torch.full((WIDTH,), -5.0, dtype=torch.float64, device=DEVICE)
    counts = torch.zeros(BINS, dtype=torch.int64, device=DEVICE) if counting else None
    launching.reduce_tensor(to_device(x), None if minus is None else to_device(minus), unit, row, counts)
    return to_host(row), to_host(torch.zeros(BINS) if counts is None else counts)


def expected(x: Tensor, minus: Tensor | None = None) -> dict[str, float]:
    """By float64 numpy in two passes over the values over the largest; `std` in place of `m2` and `scale`."""
    values = x.double().numpy().ravel()
    with np.errstate(invalid="ignore", over="ignore"):
        values = values if minus is None else values - minus.double().numpy().ravel()
    finite = values[np.isfinite(values)]
    size = np.abs(finite).max() if finite.size and np.abs(finite).max() > 0 else 1.0
    scaled = finite / size
    mean = scaled.mean() if finite.size else 0.0
    std = np.sqrt(np.square(scaled - mean).mean()) if finite.size else 0.0
    return {
        "count": values.size,
        "mean": mean * size,
        "std": std * size,
        "min": finite.min() if finite.size else 0.0,
        "max": finite.max() if finite.size else 0.0,
        "zeros": (values == 0).sum(),
        "nans": np.isnan(values).sum(),
        "infs": np.isinf(values).sum(),
        "subnormals": ((finite != 0) & (np.abs(finite) < torch.finfo(x.dtype).tiny)).sum(),
    }


def agrees(row: np.ndarray, right: dict[str, float], rel: float = 1e-12) -> None:
    found = dict(zip(COLUMNS, row.tolist(), strict=True))
    finite = found["count"] - found["nans"] - found["infs"]
    found["std"] = found["scale"] * np.sqrt(found["m2"] / max(finite, 1))
    for name in ("count", "min", "max", "zeros", "nans", "infs", "subnormals"):
        assert found[name] == right[name], (name, found, right)
    largest = max(abs(right["min"]), abs(right["max"]))
    assert abs(found["mean"] - right["mean"]) <= 1e-15 * largest + rel * abs(right["mean"]), (found, right)
    assert abs(found["std"] - right["std"]) <= 1e-15 * largest + rel * right["std"], (found, right)


def normal(size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def spoilt(size: int, dtype: torch.dtype) -> Tensor:
    """Of every kind of entry some."""
    x = normal(size, 3, dtype) * 5 + 2
    tiny = torch.finfo(dtype).tiny
    kinds = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, tiny, tiny / 2, -tiny / 2], dtype=dtype)
    places = torch.randperm(size, generator=torch.Generator().manual_seed(4))[: size // 3]
    x[places] = kinds.repeat(len(places))[: len(places)]
    return x


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("part", [(0, 1), (0, 7), (1, -1), (1, 0), (1, 1), (3, 17), (11, 5)], ids=str)
def test_every_column_is_that_of_float64_numpy_at_any_size(dtype: torch.dtype, part: tuple[int, int]) -> None:
    size = part[0] * TILE[dtype] + part[1]
    for x in (normal(size, 1, dtype), spoilt(size, dtype)):
        agrees(reduced(x)[0], expected(x))
        y = normal(size, 2, dtype)
        agrees(reduced(x, y)[0], expected(x, y))


@runs_kernels
@pytest.mark.parametrize("size", [1e-37, 1e-30, 1e30, 1e37])
def test_squares_leave_float32_and_the_deviation_is_right(size: float) -> None:
    x = (normal(3000).double() * size).float()
    agrees(reduced(x)[0], expected(x))


@runs_kernels
@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e200, 1e307])
def test_squares_leave_float64_and_the_deviation_is_right(size: float) -> None:
    x = normal(5000, dtype=torch.float64).clamp(-4, 4) * size
    agrees(reduced(x)[0], expected(x))


@runs_kernels
@pytest.mark.parametrize("mean", [1e3, 1e6, 1e7])
def test_the_deviation_survives_a_mean_that_is_far_larger(mean: float) -> None:
    x = (normal(50_000).double() + mean).float()
    agrees(reduced(x)[0], expected(x), rel=1e-9)
    x[:300] = torch.nan  # what entries are centred on is sought behind, and is one of them
    agrees(reduced(x)[0], expected(x), rel=1e-9)
    x[300] = 0.0
    agrees(reduced(x)[0], expected(x), rel=1e-9)


@runs_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 0.1, 1e-45])
def test_a_constant_tensor_has_no_deviation(value: float) -> None:
    x = torch.full((9000,), value)
    row = reduced(x)[0]
    agrees(row, expected(x))
    assert row[COLUMNS.index("m2")] <= 1e-25 * value**2 if np.isfinite(value) else row[COLUMNS.index("m2")] == 0.0


bits = st.lists(
    st.integers(0, 2**32 - 1)
    | st.sampled_from([0, 1 << 31, 1, 0x7FFFFF, 0x800000, 0x7F800000, 0xFF800000, 0x7F800001]),
    min_size=1,
    max_size=40,
)


@runs_kernels
@settings(deadline=None, max_examples=50)
@given(bits, st.integers(0, 3))
def test_no_float32_whatever_is_taken_for_another_kind(entries: list[int], lead: int) -> None:
    x = torch.from_numpy(np.array([*[0] * lead, *entries], dtype=np.uint32).view(np.float32))
    row = reduced(x)[0]
    right = expected(x)
    for name in ("count", "min", "max", "zeros", "nans", "infs", "subnormals"):
        assert row[COLUMNS.index(name)] == right[name], name


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_number_of_16_bits_is_told_by_its_kind(dtype: torch.dtype) -> None:
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    row, counts = reduced(x, counting=True)
    agrees(row, expected(x))
    assert np.array_equal(counts, log2_histogram(x).numpy())


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("unit", [None, 65536.0, 3.0, 0.1])
def test_counts_are_those_of_the_quotients_exponent(dtype: torch.dtype, unit: float | None) -> None:
    size = 2 * TILE[dtype] + 3
    x = spoilt(size, dtype) * torch.logspace(-8, 4, size).to(dtype)
    y = spoilt(size, dtype)
    for minus in (None, y):
        values = x.double() if minus is None else x.double() - minus.double()
        _, counts = reduced(x, minus, unit, counting=True)
        assert np.array_equal(counts, log2_histogram(values / (unit or 1.0)).numpy())


@runs_kernels
def test_a_quotient_on_an_edge_falls_in_the_bin_above_it_and_a_unit_may_lie_on_the_device() -> None:
    unit = 3.0
    edges = unit * 2.0 ** torch.arange(-40, 20, dtype=torch.float64)
    x = torch.cat([edges, torch.nextafter(edges, torch.zeros(())), torch.nextafter(edges, torch.full((), torch.inf))])
    found = reduced(x, None, to_device(torch.tensor(unit)), counting=True)[1]
    assert np.array_equal(found, log2_histogram(x / unit).numpy())


@runs_kernels
def test_counts_are_added_to_those_that_are_there() -> None:
    x = normal(5000)
    row = torch.zeros(WIDTH, dtype=torch.float64, device=DEVICE)
    counts = torch.ones(BINS, dtype=torch.int64, device=DEVICE)
    for _ in range(2):
        launching.reduce_tensor(to_device(x), None, None, row, counts)
    assert np.array_equal(to_host(counts), 1 + 2 * log2_histogram(x).numpy())


@runs_kernels
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "channels last"])
def test_any_layout_is_read_whole(layout: str) -> None:
    x, y = (normal(8 * 12 * 5 * 7, seed).view(8, 12, 5, 7) for seed in (0, 1))
    change = {
        "transposed": lambda t: t.transpose(0, 1),
        "strided": lambda t: t[:, ::2],
        "expanded": lambda t: t[:1].expand(4, -1, -1, -1),
        "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    }[layout]
    a, b = change(x), change(y)
    agrees(reduced(a)[0], expected(a))
    agrees(reduced(a, b)[0], expected(a, b))


@runs_kernels
def test_the_same_entries_give_the_same_bits_and_the_ticket_is_left_at_zero() -> None:
    x = normal(40 * TILE[torch.float32] + 11)
    first = reduced(x)[0].tobytes()
    assert all(reduced(x)[0].tobytes() == first for _ in range(3))
    assert to_host(launching.workspace(torch.empty(0, device=DEVICE).device).ticket).tolist() == [0]


def many(
    tensors: list[Tensor], minus: list[Tensor] | None, unit: float | None, counting: bool, times: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The rows and the counts of many tensors, which are on the device."""
    rows = torch.full((len(tensors), WIDTH), -5.0, dtype=torch.float64, device=DEVICE)
    counts = torch.zeros((len(tensors), BINS), dtype=torch.int64, device=DEVICE)
    line = np.arange(len(tensors), dtype=np.int64)
    for _ in range(times):
        launching.reduce_tensors(
            tensors,
            minus,
            unit,
            rows.data_ptr() + line * rows.stride(0) * 8,
            counts.data_ptr() + line * counts.stride(0) * 8 if counting else None,
        )
    return to_host(rows), to_host(counts)


@runs_kernels
@pytest.mark.parametrize("taken", [False, True])
def test_many_tensors_of_several_dtypes_each_have_their_row(taken: bool) -> None:
    sizes = [0, 1, 700, TILE[torch.float32], 33 * TILE[torch.float32] + 3]
    tensors = [spoilt(size, dtype) for dtype in DTYPES for size in sizes]
    there = [to_device(x) for x in tensors]
    tensors.append(normal(1000)[1:])
    there.append(to_device(normal(1000))[1:])  # on no boundary of 16 bytes
    minus = [normal(x.numel(), 5, x.dtype) for x in tensors] if taken else None
    taken_there = None if minus is None else [to_device(y) for y in minus]
    rows, counts = many(there, taken_there, 2.5, counting=True, times=2)
    for i, x in enumerate(tensors):
        y = None if minus is None else minus[i]
        agrees(rows[i], expected(x, y))
        values = x.double() if y is None else x.double() - y.double()
        assert np.array_equal(counts[i], 2 * log2_histogram(values / 2.5).numpy())


@runs_kernels
def test_a_table_is_sent_once_while_tensors_stay_where_they_are_and_sees_what_they_hold_now() -> None:
    tensors = [to_device(normal(3000, seed)) for seed in range(3)]
    before, _ = many(tensors, None, None, counting=False)
    plans = dict(launching.workspace(tensors[0].device).plans)
    tensors[1] += 1
    after, _ = many(tensors, None, None, counting=False)
    assert dict(launching.workspace(tensors[0].device).plans) == plans
    assert np.array_equal(before[[0, 2]], after[[0, 2]])
    assert abs(after[1, 1] - before[1, 1] - 1) < 1e-6


@pytest.mark.cuda
@pytest.mark.skipif(not (GPU and TRITON), reason="no CUDA device with Triton here")
def test_streams_do_not_meet_and_nothing_waits_for_any() -> None:
    tensors = [normal(2_000_000, seed) for seed in range(4)]
    there = [to_device(x) for x in tensors]
    rows = torch.zeros((4, WIDTH), dtype=torch.float64, device=DEVICE)
    streams = [torch.cuda.Stream() for _ in tensors]
    for _ in range(5):
        for x, row, stream in zip(there, rows, streams, strict=True):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                assert device_door.reduce_on_device(x, None, None, row, None)
    for stream in streams:
        torch.cuda.current_stream().wait_stream(stream)
    for x, row in zip(tensors, to_host(rows), strict=True):
        agrees(row, expected(x))


@pytest.mark.skipif(not TRITON, reason="triton is not installed, so the kernels cannot run in its interpreter")
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.skipif(GPU, reason="they run on the GPU itself")
@pytest.mark.slow
def test_the_kernels_hold_in_tritons_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "only 0-dimensional arrays can be converted" in done.stdout:  # 3.6 reads the bounds of a loop in a way of old
        pytest.skip(f"the interpreter of this Triton does not work with numpy {np.__version__}")
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


def test_what_is_not_on_a_gpu_is_left_to_others() -> None:
    x, row = torch.ones(3), torch.zeros(WIDTH, dtype=torch.float64)
    assert not device_door.reduce_on_device(x, None, None, row, None)
    assert not device_door.reduce_many_on_device([x], None, None, np.zeros(1, np.int64), None)
    assert not device_door.reduce_many_on_device([], None, None, np.zeros(0, np.int64), None)


def test_where_no_kernel_can_be_built_it_is_said_once_and_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_door, "_suits", lambda tensor, beside: True)
    monkeypatch.setattr(device_door, "_unusable", False)
    monkeypatch.setattr(torch.cuda, "device", _no_device)
    monkeypatch.setattr(device_door, "_launching", sys)  # which has nothing of the kind
    x, row = torch.ones(3), torch.zeros(WIDTH, dtype=torch.float64)
    with pytest.warns(GradScopeWarning, match=r"read by torch's operations.*AttributeError"):
        assert not device_door.reduce_on_device(x, None, None, row, None)
    assert not device_door.reduce_on_device(x, None, None, row, None)


class _no_device:
    def __init__(self, device: torch.device) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
