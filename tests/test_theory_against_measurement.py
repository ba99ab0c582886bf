"""Theory against measurement: every pair and layer of the default sweep, within the derived spread.

Of one input in a network of random weights, the logarithm of a layer's mean square is close to normal, with the
variance v that `theory.propagate` derives and the mean ln(expected) - v/2, for its exponential has the expected
mean. So over S independent networks

    |mean of ln(measured / expected) + v/2| < 5·√(v/S) + 2/width.

One input per network: a batch would average part of the spread away, and by how much depends on how alike its
samples have become. 2/width is the curve's own error, that of a limit of infinite width: beside it stand the
pairs whose spread is much smaller (orthogonal weights). Three restrictions, each derived:

- where float32 cannot hold the signal (N(0, 1) weights, softmax's gradient), the theory itself says which layers
  it can hold: those where even a network 5 standard deviations off stays in range;
- where the theory says that it is not valid (softmax under weights so large that its denominator is no number);
- where the map is unstable (`stable` is False) the logarithm is normal only while its deviation is small, v ≤ 0.25:
  under He a deviation of GELU and SiLU changes the factor by which it grows; with identity weights the mean over
  units is carried by a few (those that begin near a repelling fixed point of SELU, GELU, SiLU). Under He that
  leaves the first few layers forward and none backward in 50, for each gradient has passed the last ones: ten
  wider layers show both.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import NDArray

from gradscope import theory
from gradscope.experiments import SweepConfig, sweep
from gradscope.recording import Expected, SweepCell, decades_per_layer

Array = NDArray[np.float64]
Layers = NDArray[np.bool_]

INITS = SweepConfig().init
SEEDS = 16
SIGMAS = 5.0
SMALL_VARIANCE = 0.25
LN_SQUARE = 2 * np.log(10)  # from log10 of an rms to ln of a mean square
# float32 holds an rms to full precision from its smallest normal number to where the largest entry, which among
# 256 is below 8 rms, overflows.
LOWEST, HIGHEST = np.log10(1.2e-38), np.log10(3.4e38 / 8)


@functools.cache
def cells_of(init: str) -> tuple[SweepCell, ...]:
    return sweep(SweepConfig(init=init, batch=1, seeds=SEEDS)).cells


def in_float32(expected: Array, variance: Array) -> Layers:
    margin = SIGMAS * np.sqrt(variance) / LN_SQUARE
    return (expected - margin > LOWEST) & (expected + margin < HIGHEST)  # False for NaN


def judged(expected: Expected, slope_is_one: bool) -> tuple[Layers, Layers]:
    """The layers where theory and measurement must agree, forward and backward."""
    forward = in_float32(expected.pre, expected.forward_var) & expected.valid
    backward = in_float32(expected.pre_grad, expected.backward_var)
    if not expected.stable:
        forward &= expected.forward_var <= SMALL_VARIANCE
        backward &= expected.backward_var <= SMALL_VARIANCE
    # A layer's gradient has passed its own slope and those of all later layers but the last, which has none.
    # Where the forward signal is lost, so is the slope, unless it is 1 everywhere.
    slopes = np.append(np.logical_and.accumulate(forward[-2::-1])[::-1], True)
    return forward, backward & (slopes | slope_is_one)


def disagreements(cell: SweepCell, expected: Expected) -> list[str]:
    forward, backward = judged(expected, slope_is_one=cell.activation == "identity")
    found = []
    for what, layers, measured, curve, variance in (
        ("forward", forward, cell.pre, expected.pre, expected.forward_var),
        ("backward", backward, cell.pre_grad, expected.pre_grad, expected.backward_var),
    ):
        away = np.mean(2 * np.log(measured[:, layers]), axis=0) - curve[layers] * LN_SQUARE + variance[layers] / 2
        allowed = SIGMAS * np.sqrt(variance[layers] / cell.seeds) + 2 / cell.width
        found += [
            f"{cell.init} × {cell.activation}, {what}, layer {layer + 1}: {distance:.4f}, allowed is {limit:.4f}"
            for layer, distance, limit in zip(np.flatnonzero(layers), np.abs(away), allowed, strict=True)
            if not distance < limit
        ]
    return found


@pytest.mark.parametrize("init", INITS)
def test_every_pair_of_an_init_lies_where_theory_says_in_every_layer(init: str) -> None:
    found = []
    for cell in cells_of(init):
        assert cell.expected is not None
        found += disagreements(cell, cell.expected)
    assert not found, "\n".join(found)


def test_unstable_maps_lie_where_theory_says_while_their_spread_is_small() -> None:
    config = SweepConfig(init="he_normal", activation=["gelu", "silu"], depth=10, width=1024, batch=1, seeds=SEEDS)
    for cell in sweep(config).cells:
        assert cell.expected is not None
        assert cell.expected.forward_var.max() < SMALL_VARIANCE
        assert all(layers.all() for layers in judged(cell.expected, slope_is_one=False))
        assert not disagreements(cell, cell.expected)


@pytest.mark.parametrize("init", INITS)
def test_all_layers_are_judged_except_where_float32_or_the_theory_ends(init: str) -> None:
    for cell in sweep(SweepConfig(init=init, batch=1, seeds=1)).cells:
        assert cell.expected is not None
        activation = cell.activation
        forward, backward = judged(cell.expected, slope_is_one=activation == "identity")
        least = {
            ("he", "gelu"): (5, 1),  # unstable
            ("he", "silu"): (5, 1),
            ("identity", "gelu"): (15, 1),
            ("identity", "silu"): (5, 1),
            ("identity", "selu"): (50, 15),
            ("torch", "sigmoid"): (50, 40),  # the gradient loses 0.87 decades a layer and leaves float32
            ("naive", "tanh"): (50, 50),
            ("naive", "sigmoid"): (50, 50),
            ("naive", "identity"): (30, 30),  # 1.2 decades a layer, both ways
            ("naive", "softmax"): (0, 1),  # a softmax of 256 units at q = 256 is no longer wide
        }.get(
            (init.partition("_")[0], activation),
            # A softmax of 256 units passes 1/256 of a gradient on; N(0, 1) weights multiply the signal by 11
            # and a gradient that comes back through lost layers is lost.
            (50, 15) if activation == "softmax" else (34, 1) if init == "naive_normal" else (50, 50),
        )
        assert forward.sum() >= least[0], f"{init} × {activation}"
        assert backward.sum() >= least[1], f"{init} × {activation}"


@pytest.mark.parametrize("factor", [1.1, 1 / 1.1])
@pytest.mark.parametrize("init", ["he_normal", "torch_default", "orthogonal"])
def test_a_curve_wrong_by_10_percent_in_sigma_w_is_found(init: str, factor: float) -> None:
    right = {"he_normal": 2.0, "torch_default": 1 / 3, "orthogonal": 1.0}[init]
    for cell in cells_of(init):
        wrong = theory.propagate(
            cell.activation,
            cell.depth,
            weight_variance=factor**2 * right / cell.width,
            fan_in=cell.width,
            weights="orthogonal" if init == "orthogonal" else "independent",
        )
        curve = Expected(**{name: getattr(wrong, name) for name in Expected.__dataclass_fields__})
        found = disagreements(cell, curve)
        assert any("forward" in one for one in found), f"{init} × {cell.activation}"
        if judged(curve, slope_is_one=cell.activation == "identity")[1].sum() > 10:
            assert any("backward" in one for one in found), f"{init} × {cell.activation}"


TABLE = {  # forward, backward: decades of the pre-activations' rms per layer
    ("he_normal", "relu"): (0.0, 0.0),
    ("he_normal", "identity"): (0.1505, 0.1505),  # log10(√2): the mean square doubles
    ("glorot_normal", "relu"): (-0.1505, -0.1505),
    ("glorot_normal", "tanh"): (-0.013, -0.013),  # not exponential: q ~ 1/(2·layer)
    ("glorot_normal", "sigmoid"): (-0.001, -0.627),  # 31 decades over 50 layers
    ("lecun_normal", "selu"): (0.0, 0.015),
    ("torch_default", "tanh"): (-0.239, -0.239),
    ("torch_default", "relu"): (-0.389, -0.389),
}


@pytest.mark.parametrize("init", ["he_normal", "glorot_normal", "lecun_normal", "torch_default"])
def test_the_known_slopes_are_measured_to_a_hundredth_of_a_decade_per_layer(init: str) -> None:
    pairs = [activation for scheme, activation in TABLE if scheme == init]
    result = sweep(SweepConfig(init=init, activation=pairs, depth=50, width=512, batch=32, seeds=10))
    for activation in pairs:
        cell = result.cell(init, activation)
        slopes = (
            np.mean([decades_per_layer(rms) for rms in cell.pre]),
            np.mean([decades_per_layer(rms, "backward") for rms in cell.pre_grad]),
        )
        # ReLU strays most: a random walk of variance 5/512 a layer, whose slope over 50 layers has a standard
        # error of √(1.2·(5/512)/50)/(2·ln 10)/√10 = 0.001.
        assert slopes == pytest.approx(TABLE[init, activation], abs=0.01), activation
