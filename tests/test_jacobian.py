"""The Jacobian's spectrum: against dense Jacobians, numpy's singular values, published moments, drawn matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope import GradScope, jacobian_spectrum, theory
from gradscope.theory import JacobianMoments

Array = NDArray[np.float64]


class First(nn.Module):
    """The first of what a module returns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)[0]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(9, 9), nn.ReLU(inplace=True), nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.act(self.first(x)))
        h += torch.tanh(x)
        return h


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5), nn.GELU())


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 8))


def normed() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.LayerNorm(8), nn.Linear(8, 6))
    model(torch.randn(64, 6))  # its running statistics are those of something
    return model.eval()


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (7,)),
    "a first layer in place": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4)), (6,)),
    "residual, in place": (Residual, (9,)),
    "convolutions": (convolutions, (1, 6, 6)),
    "batch norm that is frozen": (normed, (6,)),
    "attention": (encoder, (4, 8)),
    "lstm": (lambda: First(nn.LSTM(5, 6, batch_first=True)), (4, 5)),
    "gru": (lambda: First(nn.GRU(5, 6, batch_first=True)), (4, 5)),
    "more outputs than inputs": (lambda: nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 12)), (4,)),
}


def dense(model: nn.Module, x: Tensor) -> Array:
    """Singular values of each sample's Jacobian, `(batch, min(inputs, outputs))`."""
    found = []
    for one in x:
        jacobian: Any = torch.autograd.functional.jacobian(lambda row: model(row[None].clone())[0].flatten(), one)
        found.append(np.linalg.svd(jacobian.reshape(-1, one.numel()).numpy(), compute_uv=False))
    return np.stack(found)


def made(name: str, batch: int = 3) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    return make().double(), torch.randn(batch, *shape, dtype=torch.float64)


@pytest.mark.parametrize("name", list(MODELS))
def test_small_jacobians_have_the_singular_values_of_the_dense_ones(name: str) -> None:
    model, x = made(name)
    s = dense(model, x)
    found = jacobian_spectrum(model, x)
    assert found.singular_values == pytest.approx(s, abs=1e-10 * s.max())
    assert (found.batch, found.largest, found.smallest) == (3, pytest.approx(s.max()), pytest.approx(s.min(), abs=1e-9))
    squares = np.zeros((3, found.inputs))
    squares[:, : s.shape[1]] = s**2
    assert found.mean_square == pytest.approx(squares.mean())
    assert found.relative_variance == pytest.approx(np.mean(squares.var(1) / squares.mean(1) ** 2))
    assert found.weights.sum() == pytest.approx(1.0)
    assert found.weights @ found.nodes**2 == pytest.approx(squares.mean())


@pytest.mark.parametrize("name", list(MODELS))
def test_as_many_products_as_there_are_directions_give_every_singular_value(name: str) -> None:
    """Lanczos to the end: all of them, from each of two probes, without the copies that lost orthogonality makes."""
    model, x = made(name)
    s = dense(model, x)
    found = jacobian_spectrum(model, x, exact_up_to=0, probes=2, steps=1000)
    assert found.singular_values is None
    assert found.smallest is None
    without_width = found.nodes[found.nodes.size - 2 * s.size :]  # less the node of what lacks an output
    assert np.sort(without_width) == pytest.approx(np.sort(np.repeat(s, 2)), abs=1e-7 * s.max())
    assert found.largest == pytest.approx(s.max())
    assert found.largest_error < 1e-7 * s.max()
    assert found.weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["attention", "lstm", "gru", "convolutions", "residual, in place"])
def test_kernels_of_float32_that_have_no_second_derivative_are_gone_round(name: str) -> None:
    """Fused attention and recurrent layers: what float64 gives, to float32's digits."""
    model, x = made(name)
    exact = jacobian_spectrum(model, x)
    found = jacobian_spectrum(model.float(), x.float(), exact_up_to=0, probes=2, steps=1000)
    assert found.largest == pytest.approx(exact.largest, rel=1e-4)
    assert exact.singular_values is not None
    without_width = found.nodes[found.nodes.size - 2 * exact.singular_values.size :]
    assert np.sort(without_width) == pytest.approx(
        np.sort(np.repeat(exact.singular_values, 2)), abs=1e-3 * exact.largest
    )


@pytest.mark.parametrize(("inputs", "outputs"), [(40, 40), (60, 12), (12, 60)])
def test_probes_estimate_the_moments_with_honest_errors(inputs: int, outputs: int) -> None:
    """40 sets of 8 probes: their deviations in standard errors are t-distributed with 7 degrees of freedom, √(7/5)."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(inputs, 50), nn.Tanh(), nn.Linear(50, outputs)).double()
    x = torch.randn(2, inputs, dtype=torch.float64)
    exact = jacobian_spectrum(model, x)
    scores = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        found = jacobian_spectrum(model, x, exact_up_to=0, steps=2, generator=generator)
        scores.append(
            [
                (found.mean_square - exact.mean_square) / found.mean_square_error,
                (found.relative_variance - exact.relative_variance) / found.relative_variance_error,
            ]
        )
    mean, spread = np.mean(scores, 0), np.std(scores, 0)
    assert (np.abs(mean) < 4.0 * math.sqrt(7 / 5 / 40)).all(), mean
    assert ((spread > 0.7) & (spread < 1.8)).all(), spread


# --- theory ----------------------------------------------------------------------------------------------------


def plain(
    n: int, depth: int, act: Callable[[], nn.Module] | None, sigma_w2: float, sigma_b2: float, orthogonal: bool
) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layer = nn.Linear(n, n)
        if orthogonal:
            nn.init.orthogonal_(layer.weight, math.sqrt(sigma_w2))
        else:
            nn.init.normal_(layer.weight, std=math.sqrt(sigma_w2 / n))
        nn.init.normal_(layer.bias, std=math.sqrt(sigma_b2))
        layers += [layer] if act is None else [layer, act()]
    return nn.Sequential(*layers)


def test_eight_linear_layers_have_the_published_variance_of_eight() -> None:
    """Pennington et al. 2017, eq. 20: L for Gaussian weights; single networks of 400 units stray by 5 % at L = 8."""
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        found.append(jacobian_spectrum(plain(400, 8, None, 1.0, 0.0, orthogonal=False), torch.randn(1, 400)))
    for one in found:
        assert one.theory is not None
        assert one.theory.relative_variance == pytest.approx(8.0)
        assert one.theory.mean == pytest.approx(1.0, rel=0.05)  # of the weights that were drawn: ±√(2/400²) a layer
    assert np.mean([one.relative_variance for one in found]) == pytest.approx(8.0, rel=0.1)


@pytest.mark.parametrize(("orthogonal", "depth", "expected"), [(True, 40, 0.068), (False, 8, 40.068 / 5)])
def test_tanh_layers_on_the_critical_line_have_the_published_variance(
    orthogonal: bool, depth: int, expected: float
) -> None:
    """At q* = 1/64, sigma_w² = 1.030558: nearly an isometry with orthogonal weights."""
    torch.manual_seed(0)
    point = theory.critical_at("tanh", 1 / 64)
    assert point is not None
    assert point.sigma_w2 == pytest.approx(1.030558, abs=1e-6)
    model = plain(400, depth, nn.Tanh, point.sigma_w2, point.sigma_b2, orthogonal)
    x = torch.randn(1, 400)
    x *= math.sqrt((1 / 64 - point.sigma_b2) / point.sigma_w2 / float(x.square().mean()))
    found = jacobian_spectrum(model, x)
    assert found.theory is not None
    assert found.theory.relative_variance == pytest.approx(expected, rel=0.05)  # lengths stray from q* a little
    assert found.relative_variance == pytest.approx(expected, rel=0.05 if orthogonal else 0.15)


def test_widths_that_differ_and_their_theory() -> None:
    """Linear 300 → 200 → 60: n₀/n₁ + n₀/n₂ = 6.5; over 20 networks the mean strays by a few per cent at most."""
    measured = []
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(300, 200, bias=False), nn.Linear(200, 60, bias=False))
        found = jacobian_spectrum(model, torch.randn(1, 300))
        assert found.theory is not None
        assert found.theory.relative_variance == pytest.approx(6.5)
        measured.append((found.relative_variance / 6.5, found.mean_square / found.theory.mean))
    error = np.std(measured, 0) / math.sqrt(20)
    assert (np.abs(np.mean(measured, 0) - 1.0) < 5.0 * error + 2 / 60).all(), (np.mean(measured, 0), error)


def test_the_density_of_a_square_gaussian_matrix_is_a_quarter_circle() -> None:
    """√(4 − s²)/π, by sixteen probes of sixteen steps: nothing as large as the matrix is made."""
    torch.manual_seed(0)
    model = nn.Linear(600, 600, bias=False)
    nn.init.normal_(model.weight, std=600**-0.5)
    found = jacobian_spectrum(model, torch.randn(1, 600), probes=16, steps=16)
    at = np.linspace(0.4, 1.6, 7)
    assert found.density(at, width=0.15) == pytest.approx(np.sqrt(4 - at**2) / math.pi, abs=0.06)
    below = (at * np.sqrt(4 - at**2) / 2 + 2 * np.arcsin(at / 2)) / math.pi
    assert found.share_below(at) == pytest.approx(below, abs=0.05)
    assert found.largest == pytest.approx(2.0, abs=0.05)
    points = np.linspace(-1.0, 3.5, 4000)
    assert np.trapezoid(found.density(points), points) == pytest.approx(
        found.weights[found.nodes > 1e-5].sum(), abs=1e-3
    )


def test_an_output_of_fewer_entries_leaves_the_other_directions_at_zero() -> None:
    torch.manual_seed(0)
    for exact_up_to in (512, 0):
        found = jacobian_spectrum(nn.Linear(50, 5), torch.randn(2, 50), exact_up_to=exact_up_to)
        assert found.share_below(0.0) == pytest.approx(0.9)
        assert found.share_below(100.0) == pytest.approx(1.0)


class ByHand(nn.Module):
    """tanh, of which no name tells."""

    def forward(self, x: Tensor) -> Tensor:
        e = torch.exp(2.0 * x)
        return (e - 1.0) / (e + 1.0)


def test_an_activation_without_a_name_can_be_given() -> None:
    torch.manual_seed(0)
    linear = [nn.Linear(20, 20), nn.Linear(20, 10)]
    x = torch.randn(4, 20)
    named = jacobian_spectrum(nn.Sequential(linear[0], nn.Tanh(), linear[1]), x).theory
    by_hand = nn.Sequential(linear[0], ByHand(), linear[1])
    assert jacobian_spectrum(by_hand, x).theory is None
    given = jacobian_spectrum(by_hand, x, activation="tanh").theory
    assert named is not None
    assert given is not None
    assert (given.mean, given.relative_variance) == pytest.approx((named.mean, named.relative_variance), rel=1e-6)


@pytest.mark.parametrize(
    "name", ["residual, in place", "convolutions", "batch norm that is frozen", "attention", "lstm"]
)
def test_what_is_no_plain_chain_has_no_theory_beside_it(name: str) -> None:
    assert jacobian_spectrum(*made(name)).theory is None


# --- what it leaves, and what it refuses -------------------------------------------------------------------------


def test_the_model_and_the_random_state_are_as_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.BatchNorm1d(6).eval(), nn.ReLU(True), nn.Linear(6, 3))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    x, before = torch.randn(4, 6), {name: value.clone() for name, value in model.state_dict().items()}
    given, random = x.clone(), torch.random.get_rng_state()
    for exact_up_to in (512, 0):
        jacobian_spectrum(model, x, exact_up_to=exact_up_to)
    assert torch.equal(x, given)
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all((p.grad == 0.5).all() for p in model.parameters())  # type: ignore[union-attr]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.training
    assert not model[2].training


def test_a_spectrum_in_the_middle_of_a_step_is_no_part_of_the_scopes_recording() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with GradScope(model) as scope:
        out = scope(torch.randn(3, 4)).sum()
        jacobian_spectrum(model, torch.randn(100, 4))
        out.backward()
    assert scope.recording.values("activation", "count").tolist() == [[12, 12, 12]]


def test_positional_and_named_inputs_are_taken_and_the_first_floating_one_counts() -> None:
    class Scaled(nn.Module):
        def forward(self, ids: Tensor, x: Tensor) -> dict[str, Tensor]:
            return {"ids": ids, "y": x * torch.tensor([1.0, 2.0, 3.0])}

    ids, x = torch.arange(2), torch.randn(2, 3)
    for inputs in ((ids, x), {"ids": ids, "x": x}):
        assert jacobian_spectrum(Scaled(), inputs).singular_values == pytest.approx(np.array([[3.0, 2.0, 1.0]] * 2))


def test_batch_norm_in_training_mode_is_refused_for_a_batch_and_one_sample_is_taken() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 4))
    with pytest.raises(ValueError, match=r"samples of the batch depend on each other \(batch norm in training mode"):
        jacobian_spectrum(model, torch.randn(3, 1, 6, 6))
    assert jacobian_spectrum(model, torch.randn(1, 1, 6, 6)).batch == 1
    assert jacobian_spectrum(model.eval(), torch.randn(3, 1, 6, 6)).batch == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model": print}, "model is of type builtin_function_or_method; jacobian_spectrum takes a torch.nn.Module"),
        ({"probes": 1}, "probes=1 must be at least 2"),
        ({"steps": 0}, "steps=0 must be at least 2"),
        ({"inputs": torch.arange(3)}, "inputs has no floating tensor"),
        (
            {"model": nn.Flatten(0)},
            r"the output has shape \(6,\) and the input \(2, 3\); both must begin with the batch",
        ),
        ({"activation": "rleu"}, "did you mean 'relu'"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        jacobian_spectrum(**({"model": nn.Linear(3, 3), "inputs": torch.randn(2, 3)} | arguments))


def test_a_spectrum_is_said_in_a_few_lines() -> None:
    torch.manual_seed(0)
    found = jacobian_spectrum(nn.Linear(20, 20), torch.randn(2, 20))
    assert isinstance(found.theory, JacobianMoments)
    text = str(found)
    assert text.startswith("Jacobian of 20 outputs by 20 inputs, mean over 2 samples\n  mean of s²            0.3")
    assert text.count("theory") == 2
    assert " ± " in str(jacobian_spectrum(nn.Linear(20, 20), torch.randn(2, 20), exact_up_to=0, steps=3))
