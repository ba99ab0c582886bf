"""A limit for clipping, from the norms that were recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gradscope import GradScope
from gradscope.recording import Recording, StepRecord


def recorded(norms: np.ndarray, skipped: tuple[int, ...] = ()) -> Recording:
    recording = Recording.create()
    for step, norm in enumerate(norms.tolist()):
        recording.append(StepRecord(step, step in skipped, {"grad_norm": norm}))
    return recording


def test_it_is_the_quantile_of_the_norms() -> None:
    norms = np.random.default_rng(0).lognormal(size=101)
    recording = recorded(norms)
    assert recording.max_norm() == np.sort(norms)[90]
    assert recording.max_norm(0.5) == np.median(norms)
    assert recording.max_norm(1.0) == norms.max()


def test_a_spike_does_not_move_it_beyond_the_next_norm() -> None:
    norms = np.random.default_rng(0).lognormal(size=101)
    spiked = norms.copy()
    spiked[50] = 1e9
    assert np.sort(norms)[90] <= recorded(spiked).max_norm() <= np.sort(norms)[91]


def test_it_goes_with_the_loss_s_scale() -> None:
    norms = np.random.default_rng(0).lognormal(size=40)
    assert recorded(1024 * norms).max_norm() == 1024 * recorded(norms).max_norm()


def test_steps_that_were_skipped_or_are_not_finite_do_not_count() -> None:
    norms = np.array([1.0, 2.0, 3.0, np.inf, np.nan, 1e9])
    assert recorded(norms, skipped=(5,)).max_norm(1.0) == 3.0


@pytest.mark.parametrize("quantile", [0.0, -0.1, 1.1, float("nan")])
def test_a_quantile_is_a_share(quantile: float) -> None:
    with pytest.raises(ValueError, match=f"quantile={quantile!r} must be above 0 and at most 1"):
        recorded(np.ones(3)).max_norm(quantile)


def test_without_the_whole_gradient_there_is_no_norm() -> None:
    for how in ({"signals": ("activation",)}, {"sites": "0"}):
        with GradScope(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), **how) as scope:
            scope(torch.ones(2, 4)).sum().backward()
        with pytest.raises(ValueError, match="no finite norm of a gradient before clipping"):
            scope.recording.max_norm()


def test_a_step_that_was_clipped_counts_with_its_norm_before() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with GradScope(model, optimizer) as scope:
        scope(torch.ones(2, 4)).sum().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    assert scope.recording.max_norm() == pytest.approx(float(norm), rel=1e-5)
