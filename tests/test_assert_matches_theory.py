"""`assert_matches_theory`: sound networks pass, faulty ones fail at the faulty place, scores are standard scores."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradscope import GradScope, init, theory
from gradscope.testing import TheoryMatch, assert_matches_theory

PAIRS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "relu, He": (nn.ReLU, "he_normal"),
    "tanh, Glorot": (nn.Tanh, "glorot_normal"),
    "selu, LeCun": (nn.SELU, "lecun_normal"),
    "gelu, He": (nn.GELU, "he_normal"),
    "sigmoid, Glorot": (nn.Sigmoid, "glorot_normal"),
}


def layer(n: int, scheme: str, into: int | None = None) -> nn.Linear:
    made = nn.Linear(into or n, n)
    init.get_scheme(scheme)(made.weight)
    nn.init.zeros_(made.bias)
    return made


def chain(n: int, depth: int, pair: str = "relu, He") -> nn.Sequential:
    """Layers at the even places, activations at the odd ones."""
    act, scheme = PAIRS[pair]
    layers = [module for _ in range(depth) for module in (layer(n, scheme), act())]
    return nn.Sequential(*layers[:-1])


def scores(match: TheoryMatch) -> np.ndarray:
    return np.stack([match.forward_z, match.backward_z, match.both_z])


# --- sound networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", list(PAIRS))
def test_single_inputs_of_sound_networks_have_standard_scores(pair: str) -> None:
    """20 networks of 15 layers, one input each: 580 scores each way, of mean 0 and deviation 1 but for O(1/√n)."""
    found = []
    for seed in range(20):
        torch.manual_seed(seed)
        found.append(scores(assert_matches_theory(chain(256, 15, pair), torch.randn(1, 256))))
    z = np.stack(found)
    assert np.abs(z.mean((0, 2))).max() < 0.25
    assert ((z.std((0, 2)) > 0.85) & (z.std((0, 2)) < 1.15)).all(), z.std((0, 2))


@pytest.mark.parametrize("pair", list(PAIRS))
@pytest.mark.parametrize("batch", [2, 64])
def test_a_batch_is_judged_by_no_less_than_its_spread(pair: str, batch: int) -> None:
    """The bound holds: scores of networks of 128 units spread no more than 1, whatever the batch."""
    found = []
    for seed in range(12):
        torch.manual_seed(seed)
        found.append(scores(assert_matches_theory(chain(128, 10, pair), torch.randn(batch, 128))))
    z = np.stack(found)
    assert (z.std((0, 2)) < 1.15).all(), z.std((0, 2))
    assert np.abs(z).max() < 4.5


def test_an_input_repeated_is_one_input() -> None:
    torch.manual_seed(0)
    model, x = chain(64, 4, "gelu, He").double(), torch.randn(1, 64, dtype=torch.float64)
    one, many = (assert_matches_theory(model, batch) for batch in (x, x.repeat(7, 1)))
    assert many.forward_z == pytest.approx(one.forward_z)
    gap = slice(1, None, 2)  # of the activations: the gradients that enter are not alike, those of the weights differ
    assert many.forward_sd[gap] == pytest.approx(one.forward_sd[gap])


def test_the_spread_of_a_layer_and_its_activation_is_that_of_theorys_one_step() -> None:
    """One input: both variances add up to `theory.one_step`'s, less 2·1/n² of theory's own error."""
    torch.manual_seed(0)
    n = 128
    model, x = chain(n, 5, "selu, LeCun"), torch.randn(1, n)
    match = assert_matches_theory(model, x)
    lengths = [float(model[: 2 * i + 1](x).detach().double().square().mean()) for i in range(5)]
    step = theory.one_step("selu", lengths, [1.0] * 5, sigma_w2=1.0, width=n)
    forward = match.forward_sd[1::2] ** 2 + match.forward_sd[2::2] ** 2 - 2 / n**2
    assert forward == pytest.approx(step.forward_sd**2, rel=1e-6)
    backward = match.backward_sd[1::2] ** 2 + match.backward_sd[2::2] ** 2 - 2 / n**2
    assert backward == pytest.approx(step.backward_sd**2, rel=1e-6)


def test_the_factors_are_those_of_mean_squares_measured_by_hand() -> None:
    torch.manual_seed(0)
    model, x = chain(64, 3).double(), torch.randn(5, 64, dtype=torch.float64)
    match = assert_matches_theory(model, x)
    h = [x, *(model[: i + 1](x) for i in range(5))]
    squares = np.array([float(t.detach().square().mean()) for t in h])
    assert match.places == ("0", "relu after 0", "2", "relu after 2", "4")
    assert match.forward == pytest.approx(squares[1:] / squares[:-1])
    assert match.forward_expected[1::2] == pytest.approx(0.5)
    median = np.median(
        [float(model[i].weight.square().mean().detach()) for i in (0, 2, 4)]
    )  # of the layers of one shape
    assert match.forward_expected[::2] == pytest.approx(64 * median)
    assert match.backward_expected[1::2] == pytest.approx(0.5)
    rows = [line.split()[0] for line in str(match).splitlines()]
    assert rows == ["place", "0", "relu", "2", "relu", "4"]


def test_scores_of_weights_are_those_of_the_cube_root_and_of_relu_those_of_the_ratio_itself() -> None:
    """χ² (Wilson & Hilferty 1931) but for its short tail, and z²·sign(z), what is left of ReLU's square beside |h|."""
    torch.manual_seed(0)
    match = assert_matches_theory(chain(128, 4), torch.randn(1, 128))
    x, v = match.forward / match.forward_expected, match.forward_sd**2
    root, ratio = (3 * (np.cbrt(x) - 1) + v / 3) / np.sqrt(v), (x - 1) / np.sqrt(v)
    assert match.forward_z[::2] == pytest.approx(np.maximum(root, np.where(x < 1, ratio, -np.inf))[::2])
    assert match.forward_z[1::2] == pytest.approx(ratio[1::2], abs=1e-3)


@pytest.mark.parametrize("arguments", [{}, {"padding": 1}, {"padding": 2, "stride": 2}, {"padding": 2, "dilation": 2}])
def test_a_convolution_expects_what_its_outputs_read_within_the_picture(arguments: dict[str, int]) -> None:
    """Σ x² over each patch, zeros beyond the border: by unfolding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 64, 3, **arguments), nn.Tanh(), nn.Conv2d(64, 64, 1)).double()
    x = torch.randn(3, 8, 9, 9, dtype=torch.float64)
    match = assert_matches_theory(model, x)
    read = functional.unfold(x, 3, **arguments).square().sum(1).mean()
    expected = (read * model[0].weight.square().mean() + model[0].bias.square().mean()) / x.square().mean()
    assert match.forward_expected[0] == pytest.approx(float(expected.detach()))


@pytest.mark.parametrize("arguments", [{"padding": 2}, {"padding": 2, "stride": 2}, {"padding": 2, "groups": 4}])
def test_zero_padding_is_counted_in_both_directions(arguments: dict[str, int]) -> None:
    """5 × 5 kernels on 5 × 5 pictures, of whose taps 4 in 10 lie outside: the mean of measured/expected is 1."""
    ratios = []
    for seed in range(40):
        torch.manual_seed(seed)
        second = nn.Conv2d(32, 32, 5, bias=False, **arguments)
        match = assert_matches_theory(nn.Sequential(nn.Conv2d(8, 32, 1), nn.ReLU(), second), torch.randn(2, 8, 5, 5))
        ratios.append([match.forward[2] / match.forward_expected[2], match.backward[2] / match.backward_expected[2]])
        assert match.forward_expected[2] < 0.8 * second.weight[0].numel() * float(
            second.weight.detach().square().mean()
        )
    error = np.std(ratios, 0) / math.sqrt(40)
    assert (np.abs(np.mean(ratios, 0) - 1.0) < 5.0 * error).all()
    assert (error < 0.03).all()


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_scores_of_a_relu_network_do_not_depend_on_the_size_of_its_input(scale: float) -> None:
    torch.manual_seed(0)
    model, x = chain(64, 5).double(), torch.randn(4, 64, dtype=torch.float64)
    one, other = assert_matches_theory(model, x), assert_matches_theory(model, x * scale)
    assert scores(other) == pytest.approx(scores(one), abs=1e-6)


def pictures() -> tuple[nn.Module, Tensor]:
    """Zero padding, strides, groups, and a head: all in place."""
    layers: list[nn.Module] = []
    for into, out, stride, groups in ((3, 48, 1, 1), (48, 48, 2, 1), (48, 64, 1, 4), (64, 64, 2, 1)):
        layers += [nn.Conv2d(into, out, 3, stride, 1, groups=groups), nn.ReLU(inplace=True)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 100), nn.ReLU(inplace=True), nn.Linear(100, 10))
    init.initialize(model, "he_normal")
    return model, torch.rand(6, 3, 16, 16)


def test_convolutions_with_padding_strides_and_groups_match() -> None:
    z = []
    for seed in range(12):
        torch.manual_seed(seed)
        z.append(scores(assert_matches_theory(*pictures())))
    assert np.abs(np.mean(z, 0)).max() < 5.0 / math.sqrt(12) + 0.3
    assert np.std(z) < 1.15


# --- faults ------------------------------------------------------------------------------------------------------


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x)


class Factor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1.5


def scaled(model: nn.Sequential) -> None:
    model[12].__class__ = Scaled


def heavy(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[12].weight *= 1.5


def factor(model: nn.Sequential) -> None:
    model[13] = nn.Sequential(model[13], Factor())


def dropout(model: nn.Sequential) -> None:
    model[13] = nn.Sequential(model[13], nn.Dropout(0.5))


def other(model: nn.Sequential) -> None:
    model[13] = nn.Sigmoid() if not isinstance(model[13], nn.Sigmoid) else nn.Tanh()


def none(model: nn.Sequential) -> None:
    model[13] = nn.Identity()


FAULTS: dict[str, tuple[Callable[[nn.Sequential], None], str, str]] = {
    "output of a layer scaled": (scaled, r"^'12' \((Scaled|Linear)\), layer 7 of 12", ""),
    "weights scaled": (heavy, r"^'12' \(Linear\), layer 7 of 12", r"mean square of its weights is \S+, 2\.\d+ times"),
    "a factor in between": (factor, r"^between '12' and '14'", r"there is a factor in Factor '13\.1'"),
    "dropout by mistake": (dropout, r"^between '12' and '14'", r"dropout of 0\.5 in Dropout '13\.1'; model\.eval\(\)"),
    "another activation": (other, r"^between '12' and '14'", "the activation found here is (sigmoid|tanh), where"),
    "no activation": (none, r"^between '12' and '14'", "the activation found here is identity, where"),
}


UNSEEN = {("no activation", "selu, LeCun")}
"""At q = 1 SELU has the second moments of the identity, but for 7 % backward."""


@pytest.mark.parametrize(
    ("fault", "pair"),
    [(fault, pair) for pair in list(PAIRS)[:4] for fault in FAULTS if (fault, pair) not in UNSEEN],
)
def test_a_faulty_place_is_named_with_what_is_wrong_there(fault: str, pair: str) -> None:
    """12 layers of 512 units, one fault in the middle: found there in each of three networks."""
    break_it, where, why = FAULTS[fault]
    for seed in range(3):
        torch.manual_seed(seed)
        model = chain(512, 12, pair)
        break_it(model)
        with pytest.raises(AssertionError, match=where) as failed:
            assert_matches_theory(model, torch.randn(16, 512))
        message = str(failed.value)
        assert "expected is" in message
        assert "z = " in message
        assert re.search(why, message), message
        assert "more of 23 places are off" not in message


def test_sigma_w2_asks_for_the_weights_that_theory_wants() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(256, 256), nn.ReLU()))), torch.randn(8, 256)
    assert_matches_theory(model, x)  # torch's default does what its variance of 1/(3·fan_in) says
    with pytest.raises(AssertionError, match=r"^'0' \(Linear\), layer 1 of 6[^·]*· the mean square of its weights"):
        assert_matches_theory(model, x, sigma_w2=2.0)
    init.initialize(model)
    assert_matches_theory(model, x, sigma_w2=[2.0] * 6)


def test_weights_that_are_not_independent_are_found() -> None:
    """Equal rows: one output is all outputs, of which no layer of 256 units takes more than one."""
    torch.manual_seed(0)
    model = chain(256, 6)
    with torch.no_grad():
        model[4].weight[:] = model[4].weight[0] + 0.1  # and a mean
    with pytest.raises(AssertionError, match=r"^'4' \(Linear\)[^·]*(·.*\n\s+)*· its weights have the mean"):
        assert_matches_theory(model, torch.randn(16, 256))


def test_a_gradient_that_float32_cannot_hold_is_said_to_be_so_and_float64_passes() -> None:
    torch.manual_seed(0)
    model, x = chain(128, 60, "sigmoid, Glorot"), torch.randn(4, 128)
    with torch.no_grad():
        for module in model[::2]:
            module.weight *= 0.3
    with pytest.raises(
        AssertionError, match=r"(?s)backward the first.*the gradient's rms is \S+: float32 cannot hold it"
    ):
        assert_matches_theory(model, x)
    assert_matches_theory(model.double(), x.double())


def test_a_signal_that_is_not_finite_fails() -> None:
    torch.manual_seed(0)
    model = chain(64, 4)
    with torch.no_grad():
        model[2].weight[3, 3] = math.nan
    with pytest.raises(AssertionError, match=r"(?s)^'2' .*the signal is not finite"):
        assert_matches_theory(model, torch.randn(4, 64))


# --- which models ------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Functions, an in-place one, a view, a side computation, and a loss at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = layer(64, "he_normal"), layer(64, "he_normal"), layer(64, "he_normal")

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.a(x), inplace=True)
        self.seen = h.abs().mean()
        h = self.b(h.reshape(-1, 64)).clamp(min=0.0)
        return functional.log_softmax(functional.dropout(self.c(h), training=False), -1).sum()


def test_functions_views_and_what_follows_the_last_layer_are_no_hindrance() -> None:
    torch.manual_seed(0)
    match = assert_matches_theory(Functional(), torch.randn(4, 5, 64))
    assert match.places == ("a", "relu after a", "b", "relu after b", "c")


class Cubed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


def test_an_activation_of_your_own_is_tested_by_its_function() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        layer(256, "lecun_normal"), Cubed(), layer(256, "lecun_normal"), Cubed(), layer(64, "lecun_normal", 256)
    )
    with pytest.raises(ValueError, match=r"Cubed '1' calls pow"):
        assert_matches_theory(model, torch.randn(4, 256))
    cubed = theory.activation_of(lambda z: z**3, lambda z: 3.0 * z**2, kinks=(), name="cubed")
    match = assert_matches_theory(model, torch.randn(4, 256), activation=cubed)
    assert match.places[1] == "cubed after 0"
    with pytest.raises(AssertionError, match=r"^between '0' and '2' \(identity\)"):
        assert_matches_theory(model, torch.randn(4, 256), activation="identity")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.b(torch.relu(self.a(x))))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.tanh(self.a(x)))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.b(h) + self.c(h)


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1.0


def between(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(8, 8), *modules, nn.Linear(8, 8))


NO_CHAINS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "norm": (between(nn.LayerNorm(8), nn.ReLU()), "LayerNorm '1' calls layer_norm"),
    "batch norm": (between(nn.BatchNorm1d(8)), "BatchNorm1d '1' calls batch_norm"),
    "residual": (lambda: nn.Sequential(Residual(), Residual()), "Residual '0' calls add"),
    "twice": (Twice, "Linear 'a' is called a second time"),
    "branches": (Branches, "Linear 'c' is given what 'a' returned, which another layer has already taken"),
    "softmax": (between(nn.Softmax(-1)), "Softmax '1' is softmax, whose units"),
    "two activations": (between(nn.ReLU(), nn.Tanh()), "Tanh '2' calls tanh on what relu"),
    "one layer": (lambda: nn.Linear(8, 8), "the model has one layer, '<root>'"),
    "none": (nn.ReLU, "it calls no Linear or convolution"),
    "a shift": (between(Shift()), "Shift '1' calls add"),
}


@pytest.mark.parametrize("name", list(NO_CHAINS))
def test_what_is_no_plain_chain_is_told_with_what_was_met(name: str) -> None:
    make, sentence = NO_CHAINS[name]
    with pytest.raises(ValueError, match=sentence):
        assert_matches_theory(make(), torch.randn(4, 8))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model": print}, "assert_matches_theory takes a torch.nn.Module"),
        ({"z": 0.0}, r"z=0\.0 must be finite and above 0"),
        ({"activation": ["relu", "relu", "relu"]}, "activation has 3 entries; the model has 2 places"),
        ({"activation": "rleu"}, "did you mean 'relu'"),
        (
            {"sigma_w2": [1.0, 2.0]},
            r"sigma_w2=\[1\.0, 2\.0\] must be one number above 0, or one for each of the model's 3",
        ),
        ({"sigma_w2": -1.0}, r"sigma_w2=-1\.0 must be"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        assert_matches_theory(**({"model": chain(8, 3), "inputs": torch.randn(2, 8)} | arguments))


def test_the_model_is_left_as_it_was_and_no_scope_takes_it_for_a_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(layer(32, "he_normal"), nn.Dropout(0.1), nn.ReLU(inplace=True), layer(32, "he_normal"))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    model[0].requires_grad_(False)
    x, before = torch.randn(3, 32), {name: value.clone() for name, value in model.state_dict().items()}
    given, random = x.clone(), torch.random.get_rng_state()
    with GradScope(model) as scope:
        out = scope(x)
        changed = torch.random.get_rng_state()
        assert_matches_theory(model, torch.randn(5, 32, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(changed, torch.random.get_rng_state())
        out.sum().backward()
    assert not torch.equal(random, changed)
    assert scope.recording.values("activation", "count").tolist() == [[96] * 5]
    assert torch.equal(x, given)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model[0].weight.grad == 0.5).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
