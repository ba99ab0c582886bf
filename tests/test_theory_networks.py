"""Batches, budgets, one-step residuals and Jacobians: against closed forms and networks drawn in float64 numpy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from gradscope import theory
from gradscope.activations import Activation, get
from gradscope.theory import propagate, propagate_batch
from gradscope.theory._budget import FORMATS

Array = NDArray[np.float64]


def network(
    activation: Activation, widths: list[int], sigma_w2: float, rng: np.random.Generator, sigma_b2: float = 0.0
) -> tuple[list[Array], list[Array]]:
    weights = [rng.normal(0.0, math.sqrt(sigma_w2 / a), (b, a)) for a, b in itertools.pairwise(widths)]
    return weights, [rng.normal(0.0, math.sqrt(sigma_b2), b) for b in widths[1:]]


def passes(
    activation: Activation, weights: list[Array], biases: list[Array], x: Array, g: Array
) -> tuple[list[Array], list[Array]]:
    """Pre-activations of each layer, and their gradients, for inputs `(b, n)` and output gradients `(b, n)`."""
    pre, h = [], x
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        pre.append((h if i == 0 else activation.function(h)) @ w.T + b)
        h = pre[-1]
    grads = [g]
    for w, h in zip(weights[:0:-1], pre[-2::-1], strict=True):
        grads.insert(0, grads[0] @ w * activation.derivative(h))
    return pre, grads


# --- batches ---------------------------------------------------------------------------------------------


def test_one_input_is_what_propagate_says():
    one = np.array([[0.7]])
    arguments = {
        "weight_variance": np.array([1.5, 2.0, 0.9]) / 64,
        "fan_in": [64, 100, 80],
        "fan_out": [100, 80, 30],
        "bias_variance": [0.1, 0.0, 0.2],
    }
    batch = propagate_batch("gelu", 3, inputs=one, output_grad=np.array([[1.0]]), **arguments)
    alone = propagate("gelu", 3, input_mean_square=0.7, **arguments)
    assert np.log10(batch.pre[:, 0, 0]) / 2 == pytest.approx(alone.pre, abs=1e-12)
    assert np.log10(batch.pre_grad[:, 0, 0]) / 2 == pytest.approx(alone.pre_grad, abs=1e-12)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_weight_gradients_of_a_batch_have_the_predicted_mean_square(name):
    """80 networks of 200 units, 4 inputs: the mean over networks lies within 5 of its own standard errors."""
    activation, depth, width, inputs, rng = get(name), 5, 200, 4, np.random.default_rng(7)
    x = rng.normal(size=(inputs, width)) + 0.7 * rng.normal(size=width)  # inputs that are alike
    seen: list[list[float]] = []
    g = rng.normal(size=(inputs, width)) / inputs
    for _ in range(80):
        weights, biases = network(activation, [width] * (depth + 1), 1.8, rng, 0.05)
        pre, grads = passes(activation, weights, biases, x, g)
        act = [x, *(activation.function(h) for h in pre[:-1])]
        seen.append([float(np.mean(np.square(d.T @ a))) for d, a in zip(grads, act, strict=True)])
    found = propagate_batch(
        name,
        depth,
        weight_variance=1.8 / width,
        fan_in=width,
        bias_variance=0.05,
        inputs=x @ x.T / width,
        output_grad=g @ g.T / width,
    )
    ratio = np.array(seen) / found.weight_grad
    error = ratio.std(0, ddof=1) / math.sqrt(len(seen))
    assert np.all(np.abs(ratio.mean(0) - 1.0) < 5 * error + 5 / width)  # 1/width: the means' own finite-width part
    assert np.all(error < 0.1)


@pytest.mark.parametrize(
    ("inputs", "grads", "words"),
    [
        (np.ones((2, 3)), np.eye(2), r"inputs has shape \(2, 3\)"),
        (np.eye(3), np.eye(2), r"output_grad has shape \(2, 2\)"),
        (np.array([[1.0, 2.0], [0.0, 1.0]]), np.eye(2), "not symmetric"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), np.eye(2), "eigenvalue -1"),
    ],
)
def test_wrong_gram_matrices_are_one_sentence(inputs, grads, words):
    with pytest.raises(ValueError, match=words):
        propagate_batch("tanh", 2, weight_variance=0.1, fan_in=10, inputs=inputs, output_grad=grads)


# --- depth budgets ---------------------------------------------------------------------------------------


def test_number_formats_are_torch_s():
    torch = pytest.importorskip("torch")
    for name, one in FORMATS.items():
        info = torch.finfo(getattr(torch, name))
        assert one.normal == pytest.approx(math.log10(info.smallest_normal), rel=1e-12)
        assert one.largest == pytest.approx(math.log10(info.max), abs=4e-3)  # all ones, not the power of two
        assert one.smallest == pytest.approx(math.log10(info.smallest_normal * info.eps), rel=1e-12)


def test_sigmoid_under_glorot_loses_61_5_decades_and_float32_squares_on_the_way():
    expected = propagate("sigmoid", 50, weight_variance=1 / 256, fan_in=256)
    budget = theory.depth_budget(expected)
    assert budget.backward == pytest.approx(-61.5445, abs=1e-3)
    single = {(loss.format, loss.direction): loss for loss in budget.losses}["float32", "backward"]
    squares = 2 * expected.pre_grad  # the first layer, from the output, whose mean square rounds to 0 in float32
    first = max(layer + 1 for layer in range(50) if 10.0 ** squares[layer] < 2.0**-150)
    assert single.squares_gone == first
    assert single.gone is None
    assert f"squares are 0 from layer {first} on" in str(budget)
    assert "loses 61.5 decades" in str(budget)


def test_a_budget_in_half_precision_dies_earlier_and_growth_overflows():
    lost = propagate("tanh", 400, weight_variance=0.7 / 64, fan_in=64)
    half = {(loss.format, loss.direction): loss for loss in theory.depth_budget(lost).losses}["float16", "forward"]
    assert half.imprecise < half.gone
    assert half.squares_gone < half.gone
    grown = propagate("relu", 60, weight_variance=4.0 / 64, fan_in=64)
    over = {(loss.format, loss.direction): loss for loss in theory.depth_budget(grown).losses}["float16", "forward"]
    rms = 10.0**grown.pre
    assert rms[over.overflows - 1] > 65504 * 0.999 > rms[over.overflows - 2]
    with pytest.raises(ValueError, match="output_grad_rms=0"):
        theory.depth_budget(grown, output_grad_rms=0.0)


# --- one step --------------------------------------------------------------------------------------------


def residuals(
    name: str, sigma_w2: float, width: int, depth: int, seed: int, fault: int | None = None
) -> theory.OneStep:
    rng = np.random.default_rng(seed)
    activation = get(name)
    weights, biases = network(activation, [width] * (depth + 1), sigma_w2, rng)
    if fault is not None:
        weights[fault] = weights[fault] * 2.0
    x, g = rng.normal(size=(1, width)), rng.normal(size=(1, width))
    pre, grads = passes(activation, weights, biases, x, g)
    return theory.one_step(
        name,
        [float(np.mean(h * h)) for h in pre],
        [float(np.mean(d * d)) for d in grads],
        sigma_w2=sigma_w2,
        width=width,
    )


@pytest.mark.parametrize(
    ("name", "sigma_w2"), [("relu", 2.0), ("tanh", 1.0), ("sigmoid", 1.0), ("selu", 1.0), ("gelu", 2.0), ("silu", 2.2)]
)
def test_one_step_residuals_have_the_predicted_spread_at_any_depth(name, sigma_w2):
    """20 networks of 30 layers and 300 units: 580 scores each way, of which each mean and spread is known."""
    found = [residuals(name, sigma_w2, 300, 30, seed) for seed in range(20)]
    for z in (np.stack([one.forward_z for one in found]), np.stack([one.backward_z for one in found])):
        assert abs(z.mean()) < 5 / math.sqrt(z.size) + 0.1  # skewness of order 1/√n
        assert 0.85 < z.std() < 1.2
        assert np.abs(z).max() < 6.0


def test_a_faulty_layer_is_found_at_its_place_even_in_a_network_that_strays():
    """One layer of twice the weights in a GELU network, whose profile says nothing: the curve itself is unstable."""
    found = residuals("gelu", 2.0, 300, 30, 3, fault=12)
    assert int(np.argmax(np.abs(found.forward_z))) == 11  # the step from layer 12 to layer 13
    assert found.forward_z[11] > 10.0
    assert np.abs(np.delete(found.forward_z, 11)).max() < 5.0
    assert int(np.argmax(np.abs(found.backward_z))) == 11


def test_wrong_one_step_arguments_are_one_sentence():
    with pytest.raises(ValueError, match="lengths has 2 layers and grads 3"):
        theory.one_step("relu", [1.0, 1.0], [1.0, 1.0, 1.0], sigma_w2=2.0, width=10)
    with pytest.raises(ValueError, match=r"grads=.* must be finite and above 0"):
        theory.one_step("relu", [1.0, 1.0], [1.0, 0.0], sigma_w2=2.0, width=10)
    with pytest.raises(ValueError, match="width has shape"):
        theory.one_step("relu", [1.0, 1.0], [1.0, 1.0], sigma_w2=2.0, width=[10, 10, 10])


# --- Jacobians -------------------------------------------------------------------------------------------


def jacobian(name: str, depth: int, width: int, sigma_w2: float, q: float, orthogonal: bool, seed: int) -> Array:
    """Singular values of D_L W_L ⋯ D_1 W_1 at pre-activations of length q, drawn layer by layer."""
    rng = np.random.default_rng(seed)
    activation, product = get(name), np.eye(width)
    h = rng.normal(0.0, math.sqrt(q), width)
    for _ in range(depth):
        w = rng.normal(size=(width, width)) / math.sqrt(width)
        if orthogonal:
            w, upper = np.linalg.qr(w)
            w = w * np.sign(np.diag(upper))
        w = w * math.sqrt(sigma_w2)
        product = activation.derivative(h)[:, None] * (w @ product)
        h = rng.normal(0.0, math.sqrt(q), width)
    return np.linalg.svd(product, compute_uv=False)


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize(
    ("name", "sigma_w2", "q"), [("tanh", 1.05, 0.0259186027), ("relu", 2.0, 1.0), ("gelu", 2.2, 1.0)]
)
def test_jacobian_moments_and_density_are_those_of_drawn_matrices(name, sigma_w2, q, orthogonal):
    depth, width = 6, 400
    weights = "orthogonal" if orthogonal else "independent"
    s = np.concatenate([jacobian(name, depth, width, sigma_w2, q, orthogonal, seed) for seed in range(4)])
    moments = theory.jacobian_moments(name, depth, sigma_w2=sigma_w2, q=q, weights=weights)
    assert np.mean(s**2) == pytest.approx(moments.mean, rel=0.06)
    assert np.var(s**2) / moments.mean**2 == pytest.approx(moments.relative_variance, rel=0.25, abs=0.02)
    edges = np.quantile(s[s > 1e-9], np.linspace(0.3, 0.95, 9))
    for low, high in itertools.pairwise(edges):
        points = np.linspace(low, high, 41)
        share = np.trapezoid(
            theory.jacobian_density(name, depth, points, sigma_w2=sigma_w2, q=q, weights=weights), points
        )
        assert share == pytest.approx(np.mean((s >= low) & (s < high)), abs=0.015)


def test_known_jacobians():
    """Var(s²)/mean² = L·(μ₂/μ₁² − 1 − s₁): 40 for linear Gaussian layers, 0 for orthogonal ones."""
    linear = theory.jacobian_moments(None, 40, sigma_w2=1.0, q=1.0)
    assert (linear.mean, linear.relative_variance) == (pytest.approx(1.0), pytest.approx(40.0))
    assert theory.jacobian_moments(
        None, 40, sigma_w2=1.0, q=1.0, weights="orthogonal"
    ).relative_variance == pytest.approx(0.0, abs=1e-12)
    tanh = theory.jacobian_moments("tanh", 40, sigma_w2=1.030558, q=1 / 64, weights="orthogonal")
    assert tanh.relative_variance == pytest.approx(0.068, abs=1e-3)
    assert tanh.mean == pytest.approx(1.0, abs=1e-4)
    quarter = np.linspace(1e-3, 2.0 - 1e-9, 400)  # one square Gaussian matrix: the quarter circle √(4 − s²)/π
    found = theory.jacobian_density(None, 1, quarter, sigma_w2=1.0, q=1.0)
    assert found == pytest.approx(np.sqrt(4.0 - quarter**2) / math.pi, abs=1e-5)
    with pytest.raises(ValueError, match="weights='haar'"):
        theory.jacobian_moments("tanh", 4, sigma_w2=1.0, q=1.0, weights="haar")  # type: ignore[arg-type]
