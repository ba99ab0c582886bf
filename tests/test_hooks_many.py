"""Many tensors of one device read by one launch: which of them, and that every row is its tensor's.

The launch itself is tested in `test_hooks_triton.py`. Here the CPU stands for the GPU, and our kernel for the CPU,
which takes the same addresses, for that of the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradscope import GradScope
from gradscope.hooks import _moments as moments_file
from gradscope.hooks import _parameters as parameters_file
from gradscope.hooks._blocks import ROWS_PER_BLOCK, Pool
from gradscope.hooks._kernel import CODES, native
from gradscope.hooks._moments import Arena

kernel_is_here = pytest.mark.skipif(native is None, reason="the native kernel was not built here")


class Launches:
    """Stands for `reduce_many_on_device`, and counts its calls."""

    def __init__(self, works: bool) -> None:
        self.works = works
        self.of: list[int] = []

    def __call__(
        self, tensors: Sequence[Tensor], minus: Sequence[Tensor] | None, unit: Any, rows: Any, counts: Any
    ) -> bool:
        self.of.append(len(tensors))
        if not self.works:
            return False
        assert native is not None
        for i, tensor in enumerate(tensors):
            taken = 0 if minus is None else minus[i].data_ptr()
            count = 0 if counts is None else int(counts[i])
            where = tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), CODES[tensor.dtype], int(rows[i])
            native.reduce_strided(*where, count, taken, 0, 1, 0, 1, 0, 1.0 if unit is None else float(unit))
        return True


@pytest.fixture(params=[True, False], ids=["launched", "no kernel"])
def launches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Launches:
    made = Launches(request.param)
    monkeypatch.setattr(moments_file, "_GPU", "cpu")
    monkeypatch.setattr(moments_file, "reduce_many_on_device", made)
    return made


@kernel_is_here
@pytest.mark.parametrize("histograms", [False, True])
@pytest.mark.parametrize("difference", [False, True])
def test_every_row_is_its_tensor_s_over_several_blocks(difference: bool, histograms: bool, launches: Launches) -> None:
    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    tensors = [
        torch.randn(1 + i % 7, 3, generator=generator).to(dtypes[i % 3]) * 2.0 ** (i % 9)
        for i in range(ROWS_PER_BLOCK + 40)
    ]
    minus = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in tensors] if difference else None
    alone = 0
    if minus is not None:
        minus[9] = minus[9].bfloat16()
        alone = 1  # of two dtypes
    arena = Arena(Pool(histograms))
    rows = arena.observe_many(tensors, minus)
    assert launches.of == [len(tensors) - alone]
    arena.send()
    moments = arena.host.moments([row for row in rows if row is not None])
    for i, x in enumerate(tensors):
        values = x.double().numpy() - (0.0 if minus is None else minus[i].double().numpy())
        assert moments.count[i] == values.size
        assert moments.mean[i] == pytest.approx(values.mean(), rel=1e-6, abs=1e-9)
        assert moments.std[i] == pytest.approx(values.std(), rel=1e-6, abs=1e-9)
        assert moments.max[i] == pytest.approx(values.max(), rel=1e-6)


@kernel_is_here
def test_parameters_are_read_by_three_launches_a_step(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters_file, "readable", lambda _: False)  # nothing lies on the CPU
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(5) for m in (nn.Linear(8, 8), nn.Tanh())])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, 8)
    updates = []
    with GradScope(model, optimizer, every=1) as scope:
        for _ in range(3):
            before = [p.detach().double().clone() for p in model.parameters()]
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            updates.append(
                [(p.detach().double() - b).numpy().std() for p, b in zip(model.parameters(), before, strict=True)]
            )
    assert launches.of == [10] * 9
    found = scope.recording.values("update", "std")
    np.testing.assert_allclose(found, updates, rtol=1e-6)
