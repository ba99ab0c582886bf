"""Medians over seeds: the band is as wide as theory says, sound models stay in it, and what is 10 % off leaves it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t
from torch import nn

from gradscope.recording import Baseline, baseline_of, compare
from gradscope.testing import GradientRegression, Policy
from gradscope.testing._band import expected_spread, student_quantile
from gradscope.testing._observe import Subject, observed
from gradscope.testing._seeds import bands_of, entering, merged

DEPTH, WIDTH, SEEDS = 20, 64, 8


def he(std: float = 1.0, shift: int = 0, depth: int = DEPTH, width: int = WIDTH) -> nn.Sequential:
    """From the global generator, or from other numbers of it."""
    torch.rand(shift)
    layers = [part for _ in range(depth - 1) for part in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(width, width))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std * (2.0 / width) ** 0.5)
        else:
            nn.init.zeros_(parameter)
    return model


X = torch.linspace(-3, 3, 4 * WIDTH).reshape(4, WIDTH).sin()


@pytest.mark.parametrize("freedom", [6, 14, 62])
@pytest.mark.parametrize("tail", [0.025, 1e-4, 1e-7])
def test_students_quantile_is_scipys(tail: float, freedom: int) -> None:
    assert student_quantile(tail, freedom) == pytest.approx(t.isf(tail, freedom), rel=1e-9)


def test_the_spread_of_networks_is_at_most_what_theory_says_of_one_input_and_about_that() -> None:
    networks = 40
    runs = [observed(Subject(he, X[:1]), seed) for seed in range(networks)]
    spread = expected_spread(runs[0])
    for signal, site in (("activation", f"{2 * DEPTH - 2}"), ("activation_grad", "0")):
        sizes = [baseline_of(run).sizes[signal] for run in runs]  # type: ignore[index]
        last = f"{2 * DEPTH - 2}"
        away = [float(s[site][0] - (s[last][0] if signal == "activation_grad" else 0.0)) for s in sizes]
        # s of 40 has a relative deviation of 1/√78 = 11 %; theory is to first order in 1/n, at 20/64 good to some 10 %.
        assert np.std(away, ddof=1) / spread[signal][site] == pytest.approx(1.0, abs=0.45)  # type: ignore[index]


def test_the_band_grows_with_depth_and_falls_with_the_number_of_seeds_and_with_width() -> None:
    def widest(seeds: int, depth: int, width: int) -> float:
        make = partial(he, depth=depth, width=width)
        x = torch.ones(2, width)
        recording = observed(Subject(make, x), 0)
        one = baseline_of(recording)
        several = merged([one] * seeds, entering(recording))  # no spread of its own: theory's counts
        return float(bands_of(several, several, recording, 1e-3)["activation"][f"{2 * depth - 2}"][0])

    base = widest(8, 10, 32)
    assert widest(8, 20, 32) > 1.3 * base
    assert widest(8, 10, 128) < 0.6 * base
    # 1/√N, but for the part of the tolerance, 4e-4 decades.
    assert widest(32, 10, 32) == pytest.approx(base / 2, rel=0.01)


def runs_of(std: float, seeds: range) -> list[Baseline]:
    return [baseline_of(observed(Subject(partial(he, std), X), seed)) for seed in seeds]


def test_another_draw_stays_in_the_band_and_ten_percent_more_in_every_layer_leaves_it() -> None:
    recording = observed(Subject(he, X), 0)
    last = entering(recording)
    kept = merged(runs_of(1.0, range(SEEDS)), last)
    again = merged(runs_of(1.0, range(100, 100 + SEEDS)), last)
    more = merged(runs_of(1.1, range(200, 200 + SEEDS)), last)
    sound = compare(kept, again, bands=bands_of(kept, again, recording, 1e-3))
    assert sound.same, str(sound)
    sick = compare(kept, more, bands=bands_of(kept, more, recording, 1e-3))
    assert not sick.same
    weights = [one for one in sick.differences if one.signal == "weight"]
    assert len(weights) == DEPTH
    assert np.median([one.ratio for one in weights]) == pytest.approx(1.1, abs=0.01)


def test_a_check_over_seeds_passes_where_one_over_a_single_seed_fails_for_other_random_numbers(tmp_path: Path) -> None:
    """A refactoring that draws a number more than before is no fault, and a factor of 10 in one layer is."""
    x = torch.linspace(-3, 3, 32 * 8).reshape(8, 32).sin()
    small = partial(he, depth=4, width=32)

    def scaled() -> nn.Module:
        model = small()
        with torch.no_grad():
            model[2].weight *= 10  # type: ignore[operator, union-attr]
        return model

    GradientRegression(tmp_path / "one.json", policy=Policy(update=True)).check(small, x)
    GradientRegression(tmp_path / "many.json", policy=Policy(update=True)).check(small, x, seeds=6)
    other = partial(small, shift=1)
    with pytest.raises(AssertionError, match="numbers differ"):
        GradientRegression(tmp_path / "one.json").check(other, x)
    assert GradientRegression(tmp_path / "many.json").check(other, x, seeds=6)
    with pytest.raises(AssertionError, match="the band of the seeds"):
        GradientRegression(tmp_path / "many.json").check(scaled, x, seeds=6)


def test_the_loss_and_the_gradients_norm_have_a_band_of_their_own(tmp_path: Path) -> None:
    """A loss that is shifted has the same gradient: nothing but itself tells it."""
    x = torch.linspace(-3, 3, 32 * 8).reshape(8, 32).sin()
    small = partial(he, depth=4, width=32)

    def loss(out: torch.Tensor, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
        return shift + scale * out.square().mean()

    path = tmp_path / "a.json"
    GradientRegression(path, policy=Policy(update=True)).check(small, x, loss_fn=loss, seeds=6)
    assert GradientRegression(path).check(partial(small, shift=1), x, loss_fn=loss, seeds=6)
    with pytest.raises(AssertionError, match=r"1 of \d+ numbers differ .* first loss"):
        GradientRegression(path).check(small, x, loss_fn=partial(loss, shift=100.0), seeds=6)
    with pytest.raises(AssertionError, match=r"first loss: .* became not finite"):
        GradientRegression(path).check(small, x, loss_fn=partial(loss, shift=torch.nan), seeds=6)
    with pytest.raises(AssertionError, match="gradient norm"):
        GradientRegression(path).check(small, x, loss_fn=partial(loss, scale=100.0), seeds=6)


def test_a_gradient_that_enters_ten_times_as_large_is_caught_over_seeds_too(tmp_path: Path) -> None:
    x = torch.linspace(-3, 3, 32 * 8).reshape(8, 32).sin()
    small = partial(he, depth=4, width=32)
    GradientRegression(tmp_path / "a.json", policy=Policy(update=True)).check(
        small, x, loss_fn=lambda out: out.sigmoid().mean(), seeds=6
    )
    with pytest.raises(AssertionError, match="activation_grad"):
        GradientRegression(tmp_path / "a.json").check(small, x, loss_fn=lambda out: 10 * out.sigmoid().mean(), seeds=6)
