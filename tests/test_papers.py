"""The settings files of `configs/`, each run at a reduced size, find what their papers found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gradscope.experiments import SweepConfig, sweep
from gradscope.recording import decades_per_layer

CONFIGS = Path(__file__).parent.parent / "configs"


def test_every_settings_file_is_run_by_a_test_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*.toml")} == {"default", "glorot2010", "he2015", "selu"}


def test_the_default_file_runs() -> None:
    config = SweepConfig.from_toml(CONFIGS / "default.toml")
    result = sweep(config.replace(depth=3, width=16, batch=4, seeds=2))
    assert len(result.cells) == 100


# Standard deviations by mean-field theory (quadrature) in the five hidden layers, for σ_w² = 1/3 and 1: of the
# activations, and of the gradients relative to the top hidden layer's.
GLOROT = {
    "torch_default": ((0.4603, 0.2495, 0.1412, 0.0810, 0.0467), (0.0832, 0.1764, 0.3247, 0.5736, 1.0)),
    "glorot_uniform": ((0.6279, 0.4863, 0.4082, 0.3576, 0.3216), (0.4098, 0.6014, 0.7538, 0.8842, 1.0)),
}


@pytest.mark.parametrize("init", GLOROT)
def test_glorot2010_normalized_weights_keep_activations_and_gradients_standard_ones_lose_them(init: str) -> None:
    config = SweepConfig.from_toml(CONFIGS / "glorot2010.toml").replace(init=init, seeds=3)
    (cell,) = sweep(config).cells
    activations, gradients = map(np.array, GLOROT[init])
    assert cell.expected is not None
    np.testing.assert_allclose(10 ** cell.expected.act[:5], activations, atol=6e-5)  # printed to four digits
    np.testing.assert_allclose(10 ** (cell.expected.pre_grad - cell.expected.pre_grad[4])[:5], gradients, atol=6e-5)

    # One input's logarithm of a mean square has at most this variance (width 1000, six layers: 0.02). tanh
    # keeps inputs that begin orthogonal nearly so, and the batch averages over 64 of them.
    variance = max(cell.expected.forward_var.max(), cell.expected.backward_var.max())
    assert variance < 0.02
    tolerance = 5 * np.sqrt(variance / (64 * cell.seeds)) / 2
    measured = cell.act[:, :5].mean(axis=0)
    relative = (cell.pre_grad[:, :5] / cell.pre_grad[:, 4:5]).mean(axis=0)
    np.testing.assert_allclose(measured, activations, rtol=tolerance)
    np.testing.assert_allclose(relative, gradients, rtol=tolerance)


def test_he2015_at_22_and_30_layers_glorot_halves_the_mean_square_at_each_and_he_keeps_it() -> None:
    config = SweepConfig.from_toml(CONFIGS / "he2015.toml")
    assert config.depth == (22, 30)
    result = sweep(config.replace(width=256, batch=16))

    def decades(rms: NDArray[np.float64], direction: str) -> float:
        return float(np.mean([decades_per_layer(row, direction) for row in rms]))  # type: ignore[arg-type]

    for depth in config.depth:
        # A random walk of variance 5/256 a layer: the slope's standard error over L layers and 5 seeds.
        tolerance = 5 * np.sqrt(1.2 * 5 / 256 / depth / 5) / (2 * np.log(10))
        for init, expected in (("glorot_normal", -np.log10(2) / 2), ("he_normal", 0.0)):
            cell = result.cell(init, "relu", depth=depth)
            assert decades(cell.pre, "forward") == pytest.approx(expected, abs=tolerance)
            assert decades(cell.pre_grad, "backward") == pytest.approx(expected, abs=tolerance)
            # The paper's own number, 2^(-L/2): 4.9e-4 at 22 layers, 3.05e-5 at 30.
            if init == "glorot_normal":
                factor = 10 ** (depth * decades(cell.pre_grad, "backward"))
                assert factor == pytest.approx({22: 4.9e-4, 30: 3.05e-5}[depth], rel=10 ** (depth * tolerance) - 1)


def test_selu_is_drawn_to_variance_1_by_lecun_and_to_no_other_scale() -> None:
    config = SweepConfig.from_toml(CONFIGS / "selu.toml").replace(width=256, batch=16)
    result = sweep(config)
    lecun, he, default = (result.cell(init, "selu") for init in ("lecun_normal", "he_normal", "torch_default"))
    # κ_f = 1.503 a layer, of which (d ln q'/d ln q)² = 0.7826² is left at the next (`test_theory…` judges it layer
    # by layer): one input's log mean square has variance (1.503/(1 - 0.7826²) + 2)/256 = 0.023.
    spread = 5 * np.sqrt(0.023 / lecun.seeds) / 2
    for rms in (lecun.pre.mean(axis=0), lecun.act[:, :-1].mean(axis=0)):
        np.testing.assert_allclose(rms, 1.0, rtol=spread)
    assert (he.pre[:, -1] > 5.0).all()
    assert (default.pre[:, -1] < 1e-3).all()
